"""Tables of a Run: data and model, performance by subset, the sweep, the gain.

Nothing is computed here: every number is read from the record.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from featcache.errors import in_our_words
from featcache.identity import Json, flatten
from featcache.names import plural, printable
from featcache.reporting.document import (
    Block,
    Cell,
    Facts,
    Table,
    Words,
    count,
    head,
    interval_of,
    listed,
    name_of,
    number,
    with_sign,
)
from featcache.reporting.run_view import SUBSET_NAMES, RunView
from featcache.runs.backbone import identity_of, said_by
from featcache.runs.subsets import SUBSETS
from featcache.specs import busy
from featcache.training.results import OUTER, TEST, TRAIN, VAL

Array = np.ndarray[Any, Any]

SCORES = (
    "auroc", "auprc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "loss", "brier",
    "ece",
)  # fmt: skip
MOVED = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1")  # depend on the threshold
_MOST_SPECS = 20


# --- data and model ---------------------------------------------------------------------------------------------------


def identity(run_view: RunView) -> list[Block]:
    """Facts about the backbone, the store and the training of the head."""
    with said_by(run_view.run):
        return _identity(run_view, identity_of(run_view.run))


def _backbone(record: Json) -> str:
    """Source of the backbone's weights, as recorded."""
    source = str(record["store"].get("weights"))
    if record.get("n_trainable"):
        return "fine-tuned in this Run, stored in backbone.safetensors"
    if has_random_weights(record):
        return f"random, seed {printable(source.removeprefix('random:'))} (not pretrained)"
    return _SOURCES.get(source, "not recorded")


_SOURCES = {
    "hub": "pretrained, from the Hugging Face hub",
    "file": "from a file",
    "run": "fine-tuned in an earlier Run",
}


def has_random_weights(record: Json) -> bool:
    """Whether the vectors come from a backbone with random weights."""
    return str(record["store"].get("weights")).startswith("random:")


def _identity(run_view: RunView, identity: Json) -> list[Block]:
    record, backbone, transform = run_view.record, identity["backbone"], identity["transform"]
    size = " × ".join(map(str, transform["input_size"]))
    kept = "all" if transform["crop_pct"] == 1 else f"{transform['crop_pct']:.1%}"
    resized = f"{size} pixels, {transform['interpolation']}, {kept} of the shorter side"
    pixels = f"mean {_numbers(transform['mean'])}, standard deviation {_numbers(transform['std'])}"
    rows = [
        ("Backbone", printable(str(backbone["name"]))),
        ("Weights", _backbone(record)),
        ("Weights (sha256)", f"`{backbone['weights_sha256']}"),
        ("Input", f"{resized}; {pixels}"),
        ("Precision", f"{identity['precision']}, stored as {identity['stored_dtype']}"),
        ("Vectors (identity)", f"`{record['identity_sha256']}"),
        ("Store", printable(record["store"]["name"]) or "none (trained on pixels)"),
        *_training(run_view),
        ("Software", _environment(record["environment"])),
        ("Date", _date(run_view)),
    ]
    rules = [(name.replace("_", " "), printable(str(value))) for name, value in flatten(identity["decode"])]
    return [Facts(rows), Facts(rules, "Decoding rules")]


def _training(run_view: RunView) -> Iterator[tuple[str, str]]:
    record = run_view.record
    parameters = {name: value for name, value in busy(record["head"]).items() if name != "kind"}
    yield "Head", "; ".join(part for part in (record["head"]["kind"], _settings(parameters)) if part)
    if recipe := record.get("recipe"):
        lengths = [(stage["unfreeze"], stage["epochs"]) for stage in recipe["stages"]]
        stages = ", ".join(f"{name} for {plural(n, 'epoch')}" for name, n in lengths)
        rest = {name: value for name, value in busy(recipe).items() if name not in ("stages", "augment")}
        yield "Fine-tuning", f"{stages}; {_settings(rest)}"
        augment = recipe.get("augment")
        yield "Augmentation", _settings(augment) if augment else "none"
    trainable = record.get("n_trainable")
    parts = f" ({trainable['backbone']:,} backbone, {trainable['head']:,} head)" if trainable else ""
    yield "Trainable parameters", f"{run_view.run.n_parameters:,}{parts}"
    n_heads = len(record["heads"])
    yield "Training time", f"{record['seconds']:.1f} s" + (f", {n_heads:,} heads compared" if n_heads > 1 else "")


def settings(run_view: RunView) -> dict[str, str]:
    """Settings of a Run by name: backbone, head, training, split, operating point."""
    record, identity = run_view.record, identity_of(run_view.run)
    recipe = busy(record.get("recipe") or {})
    stages = [f"{stage['unfreeze']} for {plural(stage['epochs'], 'epoch')}" for stage in recipe.pop("stages", ())]
    point, head = record["operating_point"], busy(record["head"])
    flat = {
        "backbone": identity["backbone"]["name"],
        "weights": f"{_backbone(record)} ({identity['backbone']['weights_sha256'][:12]}…)",
        "input size": " × ".join(map(str, identity["transform"]["input_size"])),
        "head": head.pop("kind"),
        **{f"head, {name}": value for name, value in head.items()},
        "fine-tuned": ", ".join(stages) or "nothing",
        **{f"training, {name}": value for name, value in flatten(recipe)},
        **_training_settings(run_view),
        "operating point": f"{point['rule']}, p ≥ {point['threshold']:.3f}" if point else "none",
        **{name: value for name, value in record["asked"].items() if name in ("tta", "refit_all", "select")},
    }
    return {printable(name.replace("_", " ")): printable(_plain(value)) for name, value in flat.items()}


def _training_settings(run_view: RunView) -> dict[str, Any]:
    """The split and the number of heads; for an evaluation the name of its Run."""
    if run_view.is_external:
        return {"evaluated Run": run_view.record["run"]["name"]}
    folds = run_view.protocol.folds
    return {
        "validation": "hold-out" if len(folds) == 1 else f"{len(folds)} folds",
        "training images of the final head": f"{len(run_view.subsets[TRAIN]):,}",
        "heads compared": len(run_view.record["heads"]),
    }


def _settings(values: Mapping[str, Any]) -> str:
    return printable(", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in values.items()))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return _numbers(value) if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _date(run_view: RunView) -> str:
    path = run_view.run.path / "run.json"
    with in_our_words("reading", path):
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return f"{at:%Y-%m-%d %H:%M} UTC (modification time of run.json)"


def _environment(environment: Mapping[str, str]) -> str:
    first = ("featcache", "torch", "timm", "scikit-learn", "numpy", "pillow")
    return (
        ", ".join(f"{name} {environment[name]}" for name in first if name in environment)
        + f"; {environment.get('device', '')}"
    )


def protocol(run_view: RunView) -> list[Block]:
    """The split: a paragraph, and the images by subset and class."""
    return [Words(split_text(run_view)), _counts(run_view)]


def split_text(run_view: RunView) -> str:
    """Which images were used for training, for selection and for testing."""
    record, request = run_view.record, run_view.record["asked"]
    n = {subset: f"{len(predictions):,}" for subset, predictions in run_view.subsets.items()}
    folds = run_view.protocol.folds
    repeats = len({fold.repeat for fold in folds})
    parts = []
    if len(folds) == 1:
        parts.append(
            f"The head was trained on {plural(len(folds[0].train), 'image')}; {n[VAL]} other images were held out for "
            f"validation."
        )
        if request.get("refit_all"):
            parts.append("After selection, the final head was refitted on the training and validation images together.")
    else:
        times = f", repeated {repeats} times" if repeats > 1 else ""
        split = f"{n[VAL]} images were split into {len(folds) // repeats} folds{times}"
        if len(folds) == repeats:
            split = f"Some of the images were held out{times}, {n[VAL]} of them in total"
        parts.append(
            f"{split}; validation predictions come from heads that were not trained on the image. The final head was "
            f"trained on {n[TRAIN]} images."
        )
    if OUTER in n:
        parts.append(f"The outer folds ({n[OUTER]} images) were used for no selection; their numbers are reported.")
    if selected := run_view.scores(VAL).get("chose"):
        names = {"head": "the head", "operating_point": "the operating point", "epoch": "the epoch"}
        parts.append(f"The validation images selected {listed([names.get(name, name) for name in selected])}.")
    if TEST in n:
        parts.append(
            f"The {n[TEST]} test images were used neither for training nor for selection and were scored once, at the "
            f"end."
        )
    parts.append(_groups(run_view))
    if left_out := record["left_out"]:
        parts.append(
            "Excluded: " + ", ".join(f"{m:,} with {printable(reason)}" for reason, m in left_out.items()) + "."
        )
    return " ".join(parts)


def _groups(run_view: RunView) -> str:
    groups = run_view.protocol.groups
    n = len(np.unique(groups))
    column = printable(run_view.record["asked"]["split"]["group_by"] or "group")
    if n == len(groups):
        return (
            "The patients are unknown: every image is treated as its own group, so images of one patient may be in two "
            "subsets."
        )
    return (
        f"The images form {n:,} groups, defined by the column “{column}” and by identical files. No group is in two "
        f"subsets, and the confidence intervals account for the groups."
    )


def _counts(run_view: RunView) -> Table:
    names, rows, data = list(run_view.classes), [], []
    for subset in (subset for subset in SUBSETS if subset in run_view.subsets):
        n = run_view.task.counts(run_view.subsets[subset].rows).tolist()
        total = len(run_view.subsets[subset])
        shares = [Cell(f"{n_images:,}", n_images, f"{n_images / total:.1%}") for n_images in n]
        rows.append([head(SUBSET_NAMES[subset]), count(total), *shares])
        data.append([subset, total, *n])
    note = "An image may have several labels, or none." if run_view.task.has_findings else ""
    name, header = f"{run_view.slug}-counts", ["subset", "images", *names]
    caption = f"Images by subset and {'label' if run_view.task.has_findings else 'class'}"
    return Table(name, caption, header, rows, note, data=(["subset", "images", *names], data))


# --- numbers ----------------------------------------------------------------------------------------------------------


def scores(run_view: RunView) -> list[Block]:
    """Every metric of every subset with its interval, and the baselines."""
    columns = [(subset, False) for subset in SUBSETS if run_view.scores(subset)]
    columns += [(subset, True) for subset in SUBSETS if run_view.scores(subset, True)]
    header = ["metric", *(_column(run_view, subset, at) for subset, at in columns)]
    rows, data = [], []
    for name in SCORES:
        subset_scores = [run_view.scores(subset, at) for subset, at in columns]
        cells = [
            number(subset_score.get(name), subset_score.get("intervals", {}).get(name))
            if name in MOVED or not at
            else Cell("")
            for (_, at), subset_score in zip(columns, subset_scores, strict=True)
        ]
        rows.append([head(name_of(name)), *cells])
        for (subset, at), subset_score in zip(columns, subset_scores, strict=True):
            low, high = subset_score.get("intervals", {}).get(name, ("", ""))
            value = subset_score.get(name)
            data.append([subset, "operating point" if at else 0.5, name, "" if value is None else value, low, high])
    note = f"{_averages(run_view)} In brackets: 95 % confidence intervals (none for training images)."
    csv = (["subset", "threshold", "metric", "value", "low", "high"], data)
    table = Table(f"{run_view.slug}-scores-by-subset", "Performance by subset", header, rows, note, data=csv)
    return [table, Words(_baselines(run_view))]


def _averages(run_view: RunView) -> str:
    tta = " Test-time augmentation: predictions are averaged over an image and its augmented copies."
    tta = tta if run_view.record["asked"]["tta"] else ""
    if run_view.task.has_findings:
        return f"Means over the labels.{tta}"
    if run_view.is_binary:
        return f"The positive class is {run_view.positive}.{tta}"
    return f"Macro averages over the classes.{tta}"


def _column(run_view: RunView, subset: str, at_point: bool) -> str:
    selected = run_view.scores(subset, at_point).get("chose", ())
    marked = f", selected the {listed([name.replace('_', ' ') for name in selected])}" if selected else ""
    at = f", at p ≥ {run_view.record['operating_point']['threshold']:.3f}" if at_point else ""
    return f"{SUBSET_NAMES[subset]}{at}{marked}"


def _baselines(run_view: RunView) -> str:
    baselines = run_view.record["baselines"]

    def summary(scores: Mapping[str, Any]) -> str:
        names = [name for name in ("auroc", "accuracy") if scores.get(name) is not None]
        return ", ".join(
            f"{name_of(name)} {scores[name]:.3f} {interval_of(scores.get('intervals', {}).get(name))}".strip()
            for name in names
        )

    parts = [f"predicting the most frequent class, {summary(baselines['majority'])}"]
    if permuted := baselines.get("permuted_labels"):
        n = plural(permuted["n_permutations"], "permutation")
        parts.append(f"heads trained on permuted labels ({n}), {summary(permuted)}")
    for other in baselines.get("other_stores", ()):
        name = printable(f"{other['store']} ({other['backbone'].get('name', '')})")
        parts.append(f"the same head on {name}, {summary(other)}")
    return f"Baselines on {SUBSET_NAMES[baselines['on']]} images: {'; '.join(parts)}."


def gain(run_view: RunView) -> list[Block]:
    """Metrics before and after fine-tuning, and their differences; test images first."""
    record = run_view.record
    parent = record.get("parent")
    start = f"the Run {printable(parent['run'])}" if parent else "the network before training"
    note = (
        f"“Before” is {start}, evaluated on the same images. If the interval of a difference includes 0, the "
        f"difference is not significant at the 5 % level."
    )
    blocks: list[Block] = []
    for subset in (subset for subset in (TEST, VAL) if subset in record["gain"]):
        rows, data = [], []
        for name, key, (value, low, high) in _changes(record["gain"][subset]):
            before, after = record["before"][key][subset], record[key][subset]
            cells = [number(result[name], result.get("intervals", {}).get(name)) for result in (before, after)]
            where = "at the respective operating points" if key == "operating_point" else ""
            change = Cell(with_sign(value), value, interval_of((low, high), signed=True))
            rows.append([head(name_of(name), where), *cells, change])
            data.append([subset, name, key, before[name], after[name], value, low, high])
        csv = (["subset", "metric", "at", "before", "after", "difference", "low", "high"], data)
        selected = " (used to select the epoch)" if subset == VAL else ""
        caption = f"Before and after fine-tuning, {SUBSET_NAMES[subset]} images{selected}"
        header = ["metric", "before", "after", "difference"]
        blocks.append(Table(f"{run_view.slug}-before-after-{subset}", caption, header, rows, note, data=csv))
        note = ""
    return blocks


def _changes(gain: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[float]]]:
    """(metric, key of the record, [difference, low, high]), at 0.5 and at the operating points."""
    for name, change in gain.items():
        if name != "at_operating_point":
            yield name, "metrics", change
    for name, change in gain.get("at_operating_point", {}).items():
        if name in MOVED:
            yield name, "operating_point", change


# --- the sweep --------------------------------------------------------------------------------------------------------


def sweep(run_view: RunView) -> list[Block]:
    """The head specs that were compared, best first; nothing if there was only one."""
    trials = run_view.run.sweep()
    if not trials:
        return []
    names = list(trials[0])
    first = names.index("n_fits")
    select = names[first + 1].removesuffix("_mean")
    columns = [
        *names[: first + 1],
        *(f"{select}_{statistic}" for statistic in ("mean", "std")),
        *names[first + 5 :],
    ]
    rows = [[_spec_cell(row[name], name == "rank") for name in columns] for row in trials[:_MOST_SPECS]]
    header = ["rank", *(name.replace("_", " ") for name in columns[1:])]
    rest = f" The table shows the best {_MOST_SPECS} of {len(trials):,}." if len(trials) > _MOST_SPECS else ""
    note = f"Means over folds and seeds on validation images. The first spec was used for the final head.{rest}"
    data = (names, [[row[name] for name in names] for row in trials])
    return [Table(f"{run_view.slug}-sweep", f"Heads by validation {name_of(select)}", header, rows, note, data=data)]


def _spec_cell(text: str, is_head: bool) -> Cell:
    try:
        value = float(text)
    except ValueError:
        return Cell(printable(text) or "–", is_head=is_head)
    return Cell(text if len(text) < 7 else f"{value:.4f}", value, is_head=is_head)
