"""The classes of a Run, and which of them a text of another set stands for.

Another hospital writes `Normal` where the Run learnt `normal`. A text is the class that has its name; failing that, the
one class that differs from it in case, blanks, hyphens, underscores or the format of a number alone; then what the
Run's own labels made of it (classes that were merged, codes for uncertain). Whatever else it may stand for is said by a
map, and nothing is guessed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from featcache.prediction.predictor import Predictor
from featcache.runs.backbone import said_by
from featcache.specs import TargetSpec
from featcache.splits.class_names import alike, number

_UNCERTAIN = -1.0  # as CheXpert and MIMIC-CXR write it
_MEANT = {"positive": 1.0, "negative": 0.0}


@dataclass(frozen=True)
class Matching:
    """Which class of a Run each text of a set stands for.

    Attributes:
        number_of: text -> number of a class; texts that stand for none are not in it.
        respelled: texts that are the name of a class in another spelling, or that the Run's own labels made a class ->
            that class.
        mapped: texts that were said to stand for a class -> its name.
        uncertain: texts that the Run's own labels left out as uncertain.
        unknown: texts that stand for no class, in sorted order.
    """

    number_of: Mapping[str, int]
    respelled: Mapping[str, str]
    mapped: Mapping[str, str]
    uncertain: Sequence[str]
    unknown: Sequence[str]


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a Run, and what its own labels made them of.

    Attributes:
        classes: c names.
        is_multi_label: whether several of them may hold at once.
        columns: label columns of the Run.
        merged: labels that were made other classes -> the class.
        uncertain: what a label of -1 was: "ignore", "positive", "negative", or None for a class of its own.
        separator: what separated the findings of a list.
    """

    classes: Sequence[str]
    is_multi_label: bool
    columns: Sequence[str] = ("label",)
    merged: Mapping[str, str] = field(default_factory=dict)
    uncertain: str | None = None
    separator: str | None = None

    @classmethod
    def of(cls, predictor: Predictor, uncertain: str | None = None, separator: str | None = None) -> "Vocabulary":
        """That of a Run, as its record has it.

        Args:
            predictor: the Run.
            uncertain: what a label of -1 is in the set; None for what it was in the Run's own labels.
            separator: separator of lists in the set; None for that of the Run's own labels.

        Raises:
            CorruptStore: the record is damaged.
            UsageError: a wrong word for what a label of -1 is, or a separator that is blank.
        """
        own_target = TargetSpec(uncertain=uncertain, separator=separator)
        model = predictor.model
        with said_by(predictor.run):
            own = predictor.run.record["asked"].get("labels") or {}
            recorded_target = TargetSpec(
                tuple(own.get("columns") or ("label",)),
                uncertain=own.get("uncertain"),
                separator=own.get("separator"),
                merge_classes=dict(own.get("merge_classes") or {}),
            )
        codes = own_target.uncertain or recorded_target.uncertain, own_target.separator or recorded_target.separator
        return cls(model.classes, model.has_findings, recorded_target.columns, recorded_target.merge_classes, *codes)

    def match(self, texts: Iterable[str], class_map: Mapping[str, str]) -> Matching:
        """What texts stand for: what was said, the class of that name, the only one that is spelled alike, or what the
        Run's own labels made of it.

        Args:
            texts: labels of the set, which may repeat and are not empty.
            class_map: text -> class.
        """
        classes = {name: i for i, name in enumerate(self.classes)}
        respelled, mapped, uncertain, unknown = dict[str, str](), dict[str, str](), list[str](), list[str]()
        number_of = dict[str, int]()
        for text in sorted(set(texts)):
            if text in class_map:
                name: str | None = class_map[text]
                mapped[text] = class_map[text]
            elif text in classes:
                name = text
            elif (name := self._respelled(text)) is not None:
                respelled[text] = name
            if name is not None:
                number_of[text] = classes[name]
            elif number(text) == _UNCERTAIN and self.uncertain == "ignore":
                uncertain.append(text)
            else:
                unknown.append(text)
        return Matching(number_of, respelled, mapped, uncertain, unknown)

    def _respelled(self, text: str) -> str | None:
        """The class of another spelling, or the one that the Run's own labels made of such a text."""
        if (name := _only(text, self.classes)) is not None:
            return name
        if (merged := _only(text, list(self.merged))) is not None:
            return _only(self.merged[merged], self.classes)
        if number(text) == _UNCERTAIN and self.uncertain in _MEANT:
            return next((name for name in self.classes if number(name) == _MEANT[self.uncertain]), None)
        return None


def _only(text: str, names: Sequence[str]) -> str | None:
    """The name that is spelled as a text is; None where there is none, or more than one."""
    matches = [name for name in names if alike(name) == alike(text)]
    return text if text in matches else matches[0] if len(matches) == 1 else None
