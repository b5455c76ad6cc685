"""The tables of a Run: what was trained on what, the numbers by side, the sweep, the gain.

Computes nothing: every number is the record's.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from featcache.errors import in_our_words
from featcache.heads import busy
from featcache.identity import Json, flatten
from featcache.names import printable
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
from featcache.reporting.run_view import CALLED, SIDES, RunView
from featcache.runs.backbone import identity_of, said_by
from featcache.training.results import OUTER, TEST, TRAIN, VAL

Array = np.ndarray[Any, Any]

SCORES = (
    "auroc", "auprc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "loss", "brier",
    "ece",
)  # fmt: skip
MOVED = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1")  # by the operating point
_MOST_SPECS = 20


# --- what was trained on what -----------------------------------------------------------------------------------------


def identity(run_view: RunView) -> list[Block]:
    """Where the vectors come from, and how the head was trained."""
    with said_by(run_view.run):
        return _identity(run_view, identity_of(run_view.run))


def _backbone(record: Json) -> str:
    """Where the weights come from, as far as the Run knows."""
    source = str(record["store"].get("weights"))
    if record.get("n_trainable"):
        return "the Run's own, in backbone.safetensors"
    if has_random_weights(record):
        return f"random, of seed {printable(source.removeprefix('random:'))}: it has learnt from no image"
    return _SOURCES.get(source, "not recorded")


_SOURCES = {
    "hub": "pretrained, from the Hugging Face hub",
    "file": "from a file",
    "run": "of an earlier Run, which has learnt from images",
}


def has_random_weights(record: Json) -> bool:
    """Whether the vectors of a Run are those of a network that has learnt nothing."""
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
        ("Images seen at", f"{resized}; {pixels}"),
        ("Arithmetic", f"{identity['precision']}, stored as {identity['stored_dtype']}"),
        ("Vectors (identity)", f"`{record['identity_sha256']}"),
        ("Store", printable(record["store"]["name"]) or "none: the network is the Run's own"),
        *_training(run_view),
        ("Computed with", _environment(record["environment"])),
        ("Written", _date(run_view)),
    ]
    rules = [(name.replace("_", " "), printable(str(value))) for name, value in flatten(identity["decode"])]
    return [Facts(rows), Facts(rules, "How files became pixels")]


def _training(run_view: RunView) -> Iterator[tuple[str, str]]:
    record = run_view.record
    used = {name: value for name, value in busy(record["head"]).items() if name != "kind"}
    yield "Head", "; ".join(part for part in (record["head"]["kind"], _settings(used)) if part)
    if recipe := record.get("recipe"):
        lengths = [(stage["unfreeze"], stage["epochs"]) for stage in recipe["stages"]]
        stages = ", ".join(f"{name} for {n} epoch{'s' * (n != 1)}" for name, n in lengths)
        rest = {name: value for name, value in busy(recipe).items() if name not in ("stages", "augment")}
        yield "What learnt", f"{stages}; {_settings(rest)}"
        augment = recipe.get("augment")
        yield "Augmentation", _settings(augment) if augment else "none"
    trainable = record.get("n_trainable")
    parts = f": {trainable['backbone']:,} of the backbone, {trainable['head']:,} of the head" if trainable else ""
    yield "Parameters that learnt", f"{run_view.run.n_parameters:,}{parts}"
    tried = len(record["heads"])
    yield "Took", f"{record['seconds']:.1f} s" + (f", {tried:,} heads tried" if tried > 1 else "")


def settings(run_view: RunView) -> dict[str, str]:
    """What was asked for, one by one: network, head, training, division, decisions."""
    record, identity = run_view.record, identity_of(run_view.run)
    recipe = busy(record.get("recipe") or {})
    stages = [f"{stage['unfreeze']} for {stage['epochs']}" for stage in recipe.pop("stages", ())]
    point, head = record["operating_point"], busy(record["head"])
    flat = {
        "backbone": identity["backbone"]["name"],
        "weights": f"{_backbone(record)} ({identity['backbone']['weights_sha256'][:12]}…)",
        "input size": " × ".join(map(str, identity["transform"]["input_size"])),
        "head": head.pop("kind"),
        **{f"head, {name}": value for name, value in head.items()},
        "learnt on pixels": ", ".join(stages) or "nothing",
        **{f"training, {name}": value for name, value in flatten(recipe)},
        **_of_training(run_view),
        "operating point": f"{point['rule']}, p ≥ {point['threshold']:.3f}" if point else "none",
        **{name: value for name, value in record["asked"].items() if name in ("tta", "refit_all", "select")},
    }
    return {printable(name.replace("_", " ")): printable(_plain(value)) for name, value in flat.items()}


def _of_training(run_view: RunView) -> dict[str, Any]:
    """How rows were divided and heads tried; of an evaluation which Run it is of."""
    if run_view.is_external:
        return {"Run that was evaluated": run_view.record["run"]["name"]}
    folds = run_view.protocol.folds
    return {
        "division": "a hold-out" if len(folds) == 1 else f"{len(folds)} folds",
        "learnt in the end from": f"{len(run_view.sides[TRAIN]):,} images",
        "heads tried": len(run_view.record["heads"]),
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
    return f"{at:%Y-%m-%d %H:%M} UTC, as the file run.json has it"


def _environment(environment: Mapping[str, str]) -> str:
    first = ("featcache", "torch", "timm", "scikit-learn", "numpy", "pillow")
    return (
        ", ".join(f"{name} {environment[name]}" for name in first if name in environment)
        + f"; {environment.get('device', '')}"
    )


def protocol(run_view: RunView) -> list[Block]:
    """How the rows were divided, in words and in numbers."""
    return [Words(in_words(run_view)), _counts(run_view)]


def in_words(run_view: RunView) -> str:
    """Which rows taught, which chose and which report."""
    record, request = run_view.record, run_view.record["asked"]
    n = {side: f"{len(subset):,}" for side, subset in run_view.sides.items()}
    folds = run_view.protocol.folds
    repeats = len({fold.repeat for fold in folds})
    parts = []
    if len(folds) == 1:
        n_training = f"{len(folds[0].train):,}"
        parts.append(f"The head learnt from {n_training} images; {n[VAL]} others were held out for validation.")
        if request.get("refit_all"):
            parts.append("In the end it learnt from these as well, after they had chosen.")
    else:
        times = f", {repeats} times anew" if repeats > 1 else ""
        divided = f"{n[VAL]} images were divided into {len(folds) // repeats} folds{times}"
        if len(folds) == repeats:
            divided = f"A part of the images was held out{times}, {n[VAL]} of them in all"
        parts.append(
            f"{divided}; the validation numbers are of predictions by heads that had not seen the image. The head that "
            f"is kept learnt from {n[TRAIN]} images."
        )
    if OUTER in n:
        parts.append(f"Folds around the folds ({n[OUTER]} images) chose nothing, and are what is reported.")
    if chose := run_view.scores(VAL).get("chose"):
        chosen = {"head": "the best of the heads tried", "operating_point": "the operating point", "epoch": "the epoch"}
        parts.append(f"Validation rows chose {listed([chosen.get(choice, choice) for choice in chose])}.")
    if TEST in n:
        parts.append(f"{n[TEST]} test images taught nothing and chose nothing; they were scored once, at the end.")
    parts.append(_groups(run_view))
    if left_out := record["left_out"]:
        parts.append("Left out: " + ", ".join(f"{m:,} with {printable(why)}" for why, m in left_out.items()) + ".")
    return " ".join(parts)


def _groups(run_view: RunView) -> str:
    groups = run_view.protocol.groups
    n = len(np.unique(groups))
    column = printable(run_view.record["asked"]["split"]["group_by"] or "group")
    if n == len(groups):
        return "No groups are known: each image counts as its own, and patients may be on two sides."
    return (
        f"The images are {n:,} groups, by the column “{column}” and by identical bytes; no group is on two sides of "
        f"anything, and intervals draw whole groups."
    )


def _counts(run_view: RunView) -> Table:
    names, rows, data = list(run_view.classes), [], []
    for side in (side for side in SIDES if side in run_view.sides):
        n = run_view.task.counts(run_view.sides[side].rows).tolist()
        total = len(run_view.sides[side])
        shares = [Cell(f"{subset:,}", subset, f"{subset / total:.1%}") for subset in n]
        rows.append([head(CALLED[side]), count(total), *shares])
        data.append([side, total, *n])
    note = "An image may have several findings, or none." if run_view.task.has_findings else ""
    name, header = f"{run_view.slug}-counts", ["", "images", *names]
    return Table(name, "Images by side and class", header, rows, note, data=(["side", "images", *names], data))


# --- numbers ----------------------------------------------------------------------------------------------------------


def scores(run_view: RunView) -> list[Block]:
    """Every number of every side, with its interval; and what they are worth."""
    columns = [(side, False) for side in SIDES if run_view.scores(side)]
    columns += [(side, True) for side in SIDES if run_view.scores(side, True)]
    header = ["", *(_column(run_view, side, at) for side, at in columns)]
    rows, data = [], []
    for name in SCORES:
        subset_scores = [run_view.scores(side, at) for side, at in columns]
        cells = [
            number(subset_score.get(name), subset_score.get("intervals", {}).get(name))
            if name in MOVED or not at
            else Cell("")
            for (_, at), subset_score in zip(columns, subset_scores, strict=True)
        ]
        rows.append([head(name_of(name)), *cells])
        for (side, at), subset_score in zip(columns, subset_scores, strict=True):
            low, high = subset_score.get("intervals", {}).get(name, ("", ""))
            value = subset_score.get(name)
            data.append([side, "operating point" if at else 0.5, name, "" if value is None else value, low, high])
    note = f"{_averages(run_view)} In brackets 95 % intervals, of rows that were not learnt from."
    csv = (["side", "called_from", "number", "value", "low", "high"], data)
    table = Table(f"{run_view.slug}-scores-by-side", "Numbers by side", header, rows, note, data=csv)
    return [table, Words(_baselines(run_view))]


def _averages(run_view: RunView) -> str:
    views = " Rows are scored by the mean over an image and its views." if run_view.record["asked"]["tta"] else ""
    if run_view.task.has_findings:
        return f"Means over the findings.{views}"
    if run_view.is_binary:
        return f"The positive class is {run_view.positive}.{views}"
    return f"Macro averages over the classes.{views}"


def _column(run_view: RunView, side: str, at_point: bool) -> str:
    chose = run_view.scores(side, at_point).get("chose", ())
    marked = f", chose {listed([choice.replace('_', ' ') for choice in chose])}" if chose else ""
    at = f", at p ≥ {run_view.record['operating_point']['threshold']:.3f}" if at_point else ""
    return f"{CALLED[side]}{at}{marked}"


def _baselines(run_view: RunView) -> str:
    baselines = run_view.record["baselines"]

    def described(scores: Mapping[str, Any]) -> str:
        names = [name for name in ("auroc", "accuracy") if scores.get(name) is not None]
        return ", ".join(
            f"{name_of(name)} {scores[name]:.3f} {interval_of(scores.get('intervals', {}).get(name))}".strip()
            for name in names
        )

    parts = [f"always saying the most frequent class: {described(baselines['majority'])}"]
    if permuted := baselines.get("permuted_labels"):
        parts.append(f"heads trained on shuffled labels ({permuted['n_permutations']} times): {described(permuted)}")
    for other in baselines.get("other_stores", ()):
        name = printable(f"{other['store']} ({other['backbone'].get('name', '')})")
        parts.append(f"the same head on {name}: {described(other)}")
    return f"What is to be beaten, on {CALLED[baselines['on']]} rows: {'; '.join(parts)}."


def gain(run_view: RunView) -> list[Block]:
    """Before, after and the difference, of a Run that went on from another; test rows first."""
    record = run_view.record
    parent = record.get("parent")
    start = f"the Run {printable(parent['run'])}" if parent else "the network before any training"
    note = f"Before is {start}, on the same rows. An interval that holds 0 says that the difference may be chance."
    blocks: list[Block] = []
    for side in (side for side in (TEST, VAL) if side in record["gain"]):
        rows, data = [], []
        for name, key, (value, low, high) in _gained(record["gain"][side]):
            before, after = record["before"][key][side], record[key][side]
            cells = [number(result[name], result.get("intervals", {}).get(name)) for result in (before, after)]
            where = "each at its operating point" if key == "operating_point" else ""
            change = Cell(with_sign(value), value, interval_of((low, high), signed=True))
            rows.append([head(name_of(name), where), *cells, change])
            data.append([side, name, key, before[name], after[name], value, low, high])
        csv = (["side", "number", "at", "before", "after", "difference", "low", "high"], data)
        chose = " (which chose the epoch)" if side == VAL else ""
        caption = f"Before and after, {CALLED[side]} rows{chose}"
        header = ["", "before", "after", "difference"]
        blocks.append(Table(f"{run_view.slug}-before-after-{side}", caption, header, rows, note, data=csv))
        note = ""
    return blocks


def _gained(gained: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[float]]]:
    """(number, where in the record, difference and interval), at 0.5 and at the operating points."""
    for name, change in gained.items():
        if name != "at_operating_point":
            yield name, "metrics", change
    for name, change in gained.get("at_operating_point", {}).items():
        if name in MOVED:
            yield name, "operating_point", change


# --- the sweep --------------------------------------------------------------------------------------------------------


def sweep(run_view: RunView) -> list[Block]:
    """The specs that were tried, best first; nothing where there was one."""
    trials = run_view.run.sweep()
    if not trials:
        return []
    names = list(trials[0])
    first = names.index("n_fits")
    select = names[first + 1].removesuffix("_mean")
    shown_names = [
        *names[: first + 1],
        *(f"{select}_{statistic}" for statistic in ("mean", "std")),
        *names[first + 5 :],
    ]
    rows = [[_spec_cell(row[name], name == "rank") for name in shown_names] for row in trials[:_MOST_SPECS]]
    header = ["rank", *(name.replace("_", " ") for name in shown_names[1:])]
    rest = f" The best {_MOST_SPECS} of {len(trials):,}." if len(trials) > _MOST_SPECS else ""
    note = f"Means on held rows, over folds and seeds; the first was trained again.{rest}"
    data = (names, [[row[name] for name in names] for row in trials])
    return [Table(f"{run_view.slug}-sweep", f"The best by {name_of(select)}", header, rows, note, data=data)]


def _spec_cell(text: str, is_head: bool) -> Cell:
    try:
        value = float(text)
    except ValueError:
        return Cell(printable(text) or "–", is_head=is_head)
    return Cell(text if len(text) < 7 else f"{value:.4f}", value, is_head=is_head)
