"""Checks of a Run's record before it is reported: the type and range of each value.

A record may have been edited or damaged: a proportion above 1, a NaN or a list instead of a number is reported by its
name. A rule takes a value and returns the path of an invalid part ("" for the value itself, ".name" or "[2]" for a
part), or None if the value is valid.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from featcache import metrics
from featcache.errors import CorruptStore
from featcache.identity import Json
from featcache.names import printable
from featcache.runs import Run
from featcache.runs.evaluation import FORMAT, RECORD
from featcache.training.results import EXTERNAL, OUTER, TEST, TRAIN, VAL

Rule = Callable[[Json], str | None]

_SUBSETS = (TRAIN, VAL, OUTER, TEST, EXTERNAL)
_PER_CLASS = ("auroc", "auprc", "precision", "recall", "specificity", "f1")
_MOST = {"loss": math.inf, "brier": 2.0}  # of the others 1


def check(run: Run) -> None:
    """Raises CorruptStore if a value of a Run's record is missing or invalid."""
    wrong = _of_task(run.record)
    if wrong is None:
        c, has_findings = len(run.record["classes"]), run.record["task"] == "findings"
        wrong = _record(c, has_findings)(run.record) or _together(run.record)
    _raise_if_invalid(run, wrong)


def check_evaluation(run: Run) -> None:
    """Raises CorruptStore if a value of an evaluation's record is missing or invalid."""
    wrong = _of_task(run.record)
    if wrong is None:
        c, has_findings = len(run.record["classes"]), run.record["task"] == "findings"
        wrong = _evaluation(c, has_findings)(run.record) or _of_numbers(run.record)
    _raise_if_invalid(run, wrong)


def _raise_if_invalid(run: Run, wrong: str | None) -> None:
    if wrong is not None:
        raise damaged(run, f"it does not say {printable(wrong.removeprefix('.'))}")
    try:
        _ = run.spec
    except (TypeError, ValueError) as error:
        raise damaged(run, f"its head is none ({printable(str(error))})") from error


def check_vectors(run: Run) -> None:
    """Raises CorruptStore if the recorded identity of the vectors is invalid."""
    if (wrong := _identity()(run.record["store"]["identity"])) is not None:
        raise damaged(run, f"it does not say store.identity{printable(wrong)}")


def damaged(run: Run, reason: str) -> CorruptStore:
    """The error for a damaged record."""
    name, kind = (RECORD, "evaluation") if run.record.get("format") == FORMAT else ("run.json", "Run")
    return CorruptStore(f"{run.path / name} is damaged: {reason}. Make the {kind} again.")


# --- rules ------------------------------------------------------------------------------------------------------------


def _is(test: Callable[[Json], bool]) -> Rule:
    return lambda value: None if test(value) else ""


def _or_none(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def _fields(must: Mapping[str, Rule], may: Mapping[str, Rule] | None = None) -> Rule:
    """A mapping with required and optional keys."""

    def rule(value: Json) -> str | None:
        if not isinstance(value, dict):
            return ""
        of = {**must, **{name: rule for name, rule in (may or {}).items() if name in value}}
        lacking = (f".{name}" for name in of if name not in value)
        return next(lacking, None) or _first((f".{name}", rule(value[name])) for name, rule in of.items())

    return rule


def _values(element_rule: Rule) -> Rule:
    """A mapping of any keys to values of one kind."""

    def rule(value: Json) -> str | None:
        if not isinstance(value, dict):
            return ""
        return _first((f".{name}", element_rule(field_value)) for name, field_value in value.items())

    return rule


def _list(element_rule: Rule, n: int | None = None) -> Rule:
    """A list of values of one kind, with n values if n is given."""

    def rule(value: Json) -> str | None:
        if not isinstance(value, list) or (n is not None and len(value) != n):
            return ""
        return _first((f"[{i}]", element_rule(element)) for i, element in enumerate(value))

    return rule


def _first(faults: Iterable[tuple[str, str | None]]) -> str | None:
    return next((name + wrong for name, wrong in faults if wrong is not None), None)


def _number(low: float = -math.inf, high: float = math.inf) -> Rule:
    """A finite number from `low` to `high`."""
    return _is(lambda v: isinstance(v, int | float) and not isinstance(v, bool) and _is_finite(v) and low <= v <= high)


def _is_finite(value: float) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


_TEXT = _is(lambda value: isinstance(value, str))
_BOOL = _is(lambda value: isinstance(value, bool))
_COUNT = _is(lambda value: type(value) is int and 0 <= value < 2**63)
_SHARE = _number(0.0, 1.0)
_ANY_DICT = _values(_is(lambda value: True))
_INTERVALS = _fields({}, {name: _list(_number(0.0, _MOST.get(name, 1.0)), 2) for name in metrics.SCALARS})


# --- a record ---------------------------------------------------------------------------------------------------------


def _of_task(record: Json) -> str | None:
    """The task and its classes, on which the other rules depend."""
    is_texts = _list(_TEXT)
    wrong = _fields({"task": _is(lambda v: v in ("classes", "findings")), "classes": is_texts, "positive": _TEXT})
    fault = wrong(record)
    if fault is None:
        classes = record["classes"]
        if len(set(classes)) < max(2, len(classes)):
            return ".classes"
        if record["positive"] not in classes:
            return ".positive"
    return fault


def _record(c: int, has_findings: bool) -> Rule:
    scores = _scores(c, has_findings)
    split = _fields({"seed": _COUNT, "group_by": _or_none(_TEXT)})
    request = _fields({"split": split, "tta": _BOOL}, {"refit_all": _BOOL})
    store = _fields({"name": _TEXT, "identity": _ANY_DICT}, {"weights": _or_none(_TEXT), "weights_file": _TEXT})
    must = {
        "asked": request,
        "head": _fields({"kind": _TEXT}),
        "heads": _list(_ANY_DICT),
        "metrics": _fields({TRAIN: scores, VAL: scores}, {OUTER: _or_none(scores), TEST: _or_none(scores)}),
        "baselines": _baselines(),
        "notes": _list(_TEXT),
        "left_out": _values(_COUNT),
        "store": store,
        "environment": _values(_TEXT),
        "n_parameters": _COUNT,
        "epoch": _or_none(_COUNT),
        "seconds": _number(0.0),
        "temperature": _or_none(_number(1e-12)),
        "operating_point": _or_none(_point(scores)),
        **{f"{name}_sha256": _TEXT for name in ("identity", "content", "split")},
    }
    return _fields(must, _of_pixels(scores))


def _evaluation(c: int, has_findings: bool) -> Rule:
    scores = _scores(c, has_findings)
    texts = _values(_TEXT)
    counts = ("found", "scored", "failed", "n_groups")
    about = {"source": _TEXT, **dict.fromkeys(counts, _COUNT), "respelled": texts, "mapped": texts}
    split = _fields({"seed": _COUNT, "group_by": _or_none(_TEXT)})
    point = _fields({"threshold": _number(0.0, 1.0 + 1e-9), EXTERNAL: scores})
    return _fields(
        {
            "run": _fields({"name": _TEXT, "is_bundle": _BOOL}),
            "set": _fields({**about, "unknown_labels": _values(_COUNT)}),
            "asked": _fields({"split": split, "tta": _BOOL}),
            "head": _fields({"kind": _TEXT}),
            "metrics": _fields({EXTERNAL: scores}),
            "baselines": _baselines(),
            "comparison": _compared(scores),
            "subgroups": _values(_list(_subgroup(scores, c))),
            "without_training_images": _or_none(_subgroup(scores, c)),
            "notes": _list(_TEXT),
            "left_out": _values(_COUNT),
            "store": _fields({"name": _TEXT, "identity": _ANY_DICT}, {"weights": _or_none(_TEXT)}),
            "environment": _values(_TEXT),
            "n_parameters": _COUNT,
            "seconds": _number(0.0),
            "temperature": _or_none(_number(1e-12)),
            "operating_point": _or_none(point),
            **{f"{name}_sha256": _TEXT for name in ("identity", "content")},
        }
    )


def _subgroup(scores: Rule, c: int) -> Rule:
    must = {"value": _TEXT, "n": _COUNT, "n_units": _COUNT, "support": _list(_COUNT, c), "metrics": scores}
    return _fields({**must, "at_operating_point": _or_none(scores), "reasons": _list(_TEXT)})


def _compared(scores: Rule) -> Rule:
    own = _fields({"n": _COUNT, "intervals": _INTERVALS})
    differences = _values(_list(_number(), 3))
    must = {"subset": _is(lambda value: value in _SUBSETS), "own": own, "own_at_operating_point": _or_none(own)}
    more = {"differences": differences, "differences_at_operating_point": _or_none(differences)}
    return _fields({**must, **more, "reason": _or_none(_TEXT)})


def _together(record: Json) -> str | None:
    """Rules between values."""
    if wrong := _of_numbers(record):
        return wrong
    pixels = [name for name in ("gain", "before", "recipe", "n_trainable") if record.get(name)]
    if pixels and len(pixels) < 4:
        return f".{next(name for name in ('gain', 'before', 'recipe', 'n_trainable') if name not in pixels)}"
    return _of_gain(record) if pixels else None


def _of_numbers(record: Json) -> str | None:
    """Calibrated metrics need a temperature, operating points and baselines need their subsets."""
    subsets = [subset for subset in _SUBSETS if record["metrics"].get(subset)]
    if record["temperature"] is None and any("calibrated" in record["metrics"][subset] for subset in subsets):
        return ".temperature"
    for subset in (TEST, EXTERNAL):
        if record["operating_point"] and subset in subsets and subset not in record["operating_point"]:
            return f".operating_point.{subset}"
    return None if record["baselines"]["on"] in subsets else ".baselines.on"


def _of_gain(record: Json) -> str | None:
    """Every change needs its values before and after."""
    for subset, changes in record["gain"].items():
        for key, names in (("metrics", changes), ("operating_point", changes.get("at_operating_point", {}))):
            comparable = [(place[key] or {}).get(subset) or {} for place in (record["before"], record)]
            names = [name for name in names if name != "at_operating_point"]
            if lacking := [name for name in names if any(numbers.get(name) is None for numbers in comparable)]:
                return f".before.{key}.{subset}.{lacking[0]}"
    return None


def _identity() -> Rule:
    """The displayed part of the identity of the vectors."""
    backbone = _fields({"name": _TEXT, "weights_sha256": _TEXT})
    values = _list(_number(), 3)
    subsets = _list(_is(lambda value: type(value) is int and 0 < value < 2**16), 2)
    transform = {"input_size": subsets, "crop_pct": _number(0.0), "interpolation": _TEXT, "mean": values, "std": values}
    must = {"backbone": backbone, "transform": _fields(transform), "decode": _ANY_DICT}
    return _fields({**must, "precision": _TEXT, "stored_dtype": _TEXT})


def _scores(c: int, has_findings: bool) -> Rule:
    """The metrics of a subset."""
    scalars = {name: _or_none(_number(0.0, _MOST.get(name, 1.0))) for name in metrics.SCALARS}
    support = {"n": _COUNT, "support": _COUNT} if has_findings else {"support": _COUNT}
    per_class = _list(_fields({**support, **{name: scalars[name] for name in _PER_CLASS}}), c)
    must = {"n": _COUNT, **scalars}
    must |= {} if has_findings else {"confusion": _list(_list(_COUNT, c), c)}
    must |= {"per_class": per_class} if has_findings or c > 2 else {}
    point = _fields({"n": _COUNT, **dict.fromkeys(("low", "high", "confidence", "frequency"), _SHARE)})
    calibrated = _fields({"ece": scalars["ece"], "reliability": _list(point)})
    may = {"intervals": _INTERVALS, "chose": _list(_TEXT), "calibrated": calibrated}
    return _fields(must, may)


def _point(scores: Rule) -> Rule:
    """The operating point; its threshold may be the first float above 1."""
    return _fields({"threshold": _number(0.0, 1.0 + 1e-9), VAL: scores}, {TEST: scores})


def _baselines() -> Rule:
    may = {name: _or_none(_SHARE) for name in ("auroc", "accuracy")} | {"intervals": _INTERVALS}
    permuted = _fields({"n_permutations": _COUNT}, may)
    other = _fields({"store": _TEXT, "backbone": _fields({}, {"name": _TEXT})}, may)
    must = {"on": _is(lambda value: value in _SUBSETS), "majority": _fields({}, may)}
    return _fields(must, {"permuted_labels": permuted, "other_stores": _list(other)})


def _of_pixels(scores: Rule) -> dict[str, Rule]:
    """Optional values of fine-tuned Runs."""
    stage = _fields({"unfreeze": _TEXT, "epochs": _COUNT})
    triple = _list(_number(), 3)
    changes = _changes(triple)
    point = _or_none(_point(scores))
    before = _fields({"metrics": _values(_or_none(scores)), "operating_point": point})
    return {
        "n_trainable": _or_none(_fields({"backbone": _COUNT, "head": _COUNT})),
        "recipe": _or_none(_fields({"stages": _list(stage)}, {"augment": _or_none(_ANY_DICT)})),
        "parent": _or_none(_fields({"run": _TEXT})),
        "gain": _or_none(_values(changes)),
        "before": before,
    }


def _changes(triple: Rule) -> Rule:
    """Changes by metric, also at the operating points."""

    def rule(value: Json) -> str | None:
        if not isinstance(value, dict):
            return ""
        at = {name: numbers for name, numbers in value.items() if name == "at_operating_point"}
        rest = {name: numbers for name, numbers in value.items() if name not in at}
        return _values(_values(triple))(at) or _values(triple)(rest)

    return rule
