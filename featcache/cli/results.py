"""What is said of a Run: the scores with their intervals, beside what they are worth, as tables or for `--json`.

Reads the Run's record and computes nothing: a number that is shown here is a number that the folder keeps.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from featcache.cli.render import answer, console, escaped, plain_table, print_notes

_MAX_HISTORY_ROWS = 12
_MAX_SPECS = 10
_MAX_CLASSES = 40
_MAX_CONFUSED = 10
_PER_CLASS = ("auroc", "auprc", "precision", "recall", "specificity", "f1")
_SIDES = ("train", "val", "outer", "test")
SCORES = (
    "auroc", "auprc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "loss", "brier",
    "ece",
)  # fmt: skip


def run_answer(run: Any) -> dict[str, Any]:
    copied = ("seconds", "epoch", "operating_point", "temperature", "baselines", "notes")
    return {
        "run": str(run.path),
        "head": run.record["head"]["kind"],
        "spec": run.record["head"],
        "n_parameters": run.n_parameters,
        "tta": run.record["asked"]["tta"],
        **{name: run.record[name] for name in copied},
        **{side: run.metrics(side) for side in _SIDES},
        "sweep": run.sweep(),
    }


def _tuned_answer(run: Any) -> dict[str, Any]:
    record = run.record
    copied = ("seconds", "epoch", "gain", "before", "operating_point", "temperature", "baselines", "notes", "recipe")
    return {
        "run": str(run.path),
        "parent": record["parent"]["run"] if record["parent"] else None,
        "head": record["head"]["kind"],
        "n_trainable": run.n_parameters,
        "trainable": record["n_trainable"],
        **{name: record[name] for name in copied},
        **{side: run.metrics(side) for side in _SIDES if side != "outer"},
    }


def print_run(people: Console, run: Any) -> None:
    if sweep := run.sweep():
        people.print(_sweep_table(sweep))
        for line in _about_sweep(sweep, len(run.record["heads"])):
            people.print(line, highlight=False)
    elif history := run.history():
        people.print(history_table(history))
    people.print(_score_table(run))
    for line in _same_rows(run):
        people.print(line, highlight=False)
    _print_classes(people, run)
    for name, line in _confusions(run):
        people.print(f"{name}: {line}", highlight=False)
    for line in _baseline_lines(run.record["baselines"]):
        people.print(line, highlight=False)
    print_notes(people, run.record["notes"])
    left_out = ", ".join(f"{n:,} with {reason}" for reason, n in run.record["left_out"].items())
    tried = f"best of {len(run.record['heads']):,} heads, " if len(run.record["heads"]) > 1 else ""
    people.print(
        f"[bold]{escaped(run.path)}[/]: {tried}{run.n_parameters:,} parameters in {run.record['seconds']:.1f} s"
        + (f"; left out: {left_out}" if left_out else ""),
        highlight=False,
    )


def tell_tuned(as_json: bool, run: Any) -> None:
    """The answer of a training on pixels; of several processes that train together the first gives it."""
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        answer(_tuned_answer(run))
    people, record = console(as_json), run.record
    people.print(history_table(run.history()))
    people.print(_score_table(run))
    for line in _same_rows(run):
        people.print(line, highlight=False)
    _print_classes(people, run)
    for name, line in _confusions(run):
        people.print(f"{name}: {line}", highlight=False)
    for line in (*_baseline_lines(record["baselines"]), *_gain_lines(record)):
        people.print(line, highlight=False)
    print_notes(people, record["notes"])
    backbone, head = (record["n_trainable"][part] for part in ("backbone", "head"))
    left_out = ", ".join(f"{n:,} with {reason}" for reason, n in record["left_out"].items())
    people.print(
        f"[bold]{escaped(run.path)}[/]: {run.n_parameters:,} trainable parameters ({backbone:,} of the backbone, "
        f"{head:,} of the head) in {record['seconds']:.1f} s; the weights are those of epoch {record['epoch']}, chosen "
        f"by validation {record['recipe']['select']}" + (f"; left out: {left_out}" if left_out else ""),
        highlight=False,
    )


def _gain_lines(record: dict[str, Any]) -> Iterator[str]:
    """What the training bought: before, after and the difference, with intervals, on rows that were not learnt from."""
    for side, gained in record["gain"].items():
        parts = [_gained(side, "auroc", gained, record["before"]["metrics"], record["metrics"])]
        if "at_operating_point" in gained:
            points = record["before"]["operating_point"], record["operating_point"]
            at = _gained(side, "accuracy", gained["at_operating_point"], *points)
            parts.append(f"{at} at the operating point")
        elif "accuracy" in gained:
            parts.append(_gained(side, "accuracy", gained, record["before"]["metrics"], record["metrics"]))
        of = f"since {escaped(record['parent']['run'])}" if record["parent"] else "since the start"
        chose = " (these rows chose the epoch)" if side == "val" else ""
        yield f"{side}, {of}: {'; '.join(part for part in parts if part)}{chose}"


def _gained(side: str, name: str, gained: Any, before: Any, after: Any) -> str:
    if name not in gained:
        return ""
    difference, low, high = gained[name]
    cells = [f"{result[side][name]:.3f} {_interval(result[side], name)}".strip() for result in (before, after)]
    word = "AUROC" if name == "auroc" else name
    return f"{word} {cells[0]} → {cells[1]}, difference {difference:+.3f} \\[{low:+.3f}, {high:+.3f}]"


def _interval(scores: dict[str, Any], name: str) -> str:
    bounds = scores.get("intervals", {}).get(name)
    return f"\\[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""


def history_table(history: list[dict[str, float]]) -> Table:
    names = ("loss", "accuracy", "precision", "recall", "f1")
    sides = [side for side in ("train", "val") if f"{side}_loss" in history[0]]
    phases = [int(row.get("phase", 1)) for row in history]
    counted = ["phase", "epoch"] if len(set(phases)) > 1 else ["epoch"]
    table = plain_table(
        *(f"\n{name}" for name in counted), *(f"{side}\n{name}" for side in sides for name in names), left=0
    )
    step = -(-len(history) // _MAX_HISTORY_ROWS)
    ends = [i for i, pair in enumerate(itertools.pairwise(phases)) if pair[0] != pair[1]]  # of phases, but the last
    epochs = {0, len(history) - 1, *ends, *(i + 1 for i in ends)}
    for i, row in enumerate(history):
        if (i + 1) % step == 0 or i in epochs:
            values = (row[f"{side}_{name}"] for side in sides for name in names)
            table.add_row(*(str(int(row[name])) for name in counted), *(f"{value:.3f}" for value in values))
    if step > 1:
        table.caption = f"1 epoch in {step}; all are in history.csv"
    return table


def _sweep_table(sweep: list[dict[str, str]]) -> Table:
    """The best specs: what differs between them, and how they did on held rows (± over folds and seeds)."""
    names = list(sweep[0])
    first = names.index("n_fits")
    select = names[first + 1].removesuffix("_mean")
    metric_names = names[first + 5 :]
    table = plain_table(
        *(escaped(name.replace("_", " ")) for name in (*names[: first + 1], select, *metric_names)), left=0
    )
    for row in sweep[:_MAX_SPECS]:
        spread = f" ± {float(row[f'{select}_std'] or 'nan'):.4f}" if int(row["n_fits"]) > 1 else ""
        cells = [_short(row[name]) for name in names[: first + 1]]
        means = [_short(row[f"{select}_mean"]) + spread, *(_short(row[name]) for name in metric_names)]
        table.add_row(*(escaped(value) for value in (*cells, *means)))
    if len(sweep) > _MAX_SPECS:
        table.caption = f"the best {_MAX_SPECS} of {len(sweep):,}; all are in sweep.csv"
    return table


def _about_sweep(sweep: list[dict[str, str]], n_heads: int) -> Iterator[str]:
    """What a reader would take for a contradiction."""
    if len(sweep) < n_heads:
        yield f"{n_heads:,} heads have {len(sweep):,} ranks: those that differ in nothing but the seed share one"
    if int(sweep[0]["n_fits"]) > 1:
        yield "ranks are by the mean over folds and seeds; val, below, is of the rows of all folds at once"


def _same_rows(run: Any) -> Iterator[str]:
    """What of the columns of the scores are the same rows, or the same numbers."""
    train, val, outer = (run.metrics(side) for side in ("train", "val", "outer"))
    if train["n"] == val["n"] and not run.protocol().is_hold_out:
        yield "train and val are the same rows: val is out of fold, train is by the final head"
    if outer and all(outer[name] == val[name] for name in SCORES):
        why = "there was one head, and nothing to choose" if len(run.record["heads"]) == 1 else "it won in all folds"
        yield f"outer is val: {why}"


def _short(text: str) -> str:
    """A number of a table with as many digits as a person reads."""
    try:
        value = float(text)
    except ValueError:
        return text or "–"
    return text if len(text) < 7 else f"{value:.4f}"


def _score_table(run: Any) -> Table:
    """A line per number, a column per side, with intervals where the rows were not learnt from."""
    columns = [(_side_title(side, run.metrics(side)), run.metrics(side)) for side in _SIDES if run.metrics(side)]
    if point := run.record["operating_point"]:
        at = f"at p ≥ {point['threshold']:.3f}"
        columns += [(f"{_side_title(side, point[side])}\n{at}", point[side]) for side in _SIDES if side in point]
    table = plain_table("", *(title for title, _ in columns))
    for name in SCORES:
        table.add_row(name.replace("_", " "), *(score(scores, name) for _, scores in columns))
    record = run.record
    two = len(record["classes"]) == 2 and record["task"] == "classes"
    means = "macro averages" if record["task"] == "classes" else "averages over findings"
    table.caption = f"positive class: {escaped(record['positive'])}" if two else f"{means}; each is below"
    if record["asked"]["tta"]:
        table.caption += "; of the mean over each image and its views"
    return table


def _side_title(side: str, scores: Any) -> str:
    chose = " and ".join(scores.get("chose", ())).replace("_", " ")
    return f"{side} ({scores['n']:,})" + (f"\nchose {chose}" if chose else "")


def score(scores: dict[str, Any], name: str) -> str:
    value, interval = scores.get(name), scores.get("intervals", {}).get(name)
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def class_table(record: dict[str, Any], scores: dict[str, Any]) -> Table:
    """A line per class or finding, each against the rest: support, and numbers with intervals where there are."""
    is_multi_label = record["task"] == "findings"
    counts = {"n": "known", "support": "present"} if is_multi_label else {"support": "n"}
    numbers = (name.replace("_", " ") for name in _PER_CLASS)
    table = plain_table("finding" if is_multi_label else "class", *counts.values(), *numbers)
    for name, of_class in list(zip(record["classes"], scores["per_class"], strict=True))[:_MAX_CLASSES]:
        cells = [f"{of_class[count]:,}" for count in counts]
        table.add_row(escaped(name), *cells, *(score(of_class, number) for number in _PER_CLASS))
    if (n_more := len(scores["per_class"]) - _MAX_CLASSES) > 0:
        table.caption = f"and {n_more:,} more, in --json"
    return table


def _print_classes(people: Console, run: Any) -> None:
    """The numbers of each class, of the rows that are the most like new ones; none of two classes."""
    subset = next((side for side in ("test", "outer", "val") if run.metrics(side)), "val")
    scores = run.metrics(subset)
    if "per_class" in scores:
        people.print(f"each {'finding' if run.record['task'] == 'findings' else 'class'} on {subset}:", highlight=False)
        people.print(class_table(run.record, scores))


def _confusions(run: Any) -> Iterator[tuple[str, str]]:
    """Of the rows that were not learnt from, at 0.5 and at the operating point; not for findings."""
    point = run.record["operating_point"] or {}
    for side in ("val", "outer", "test"):
        if (scores := run.metrics(side)) and "confusion" in scores:
            yield side, confusion_line(run.record["classes"], scores["confusion"])
        if side in point:
            yield (
                f"{side} at p ≥ {point['threshold']:.3f}",
                confusion_line(run.record["classes"], point[side]["confusion"]),
            )


def _baseline_lines(baselines: dict[str, Any]) -> Iterator[str]:
    def described(scores: dict[str, Any]) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {score(scores, name)}" for name in ("auroc", "accuracy") if scores.get(name)
        )

    yield f"baseline on {baselines['on']}, the most frequent class: {described(baselines['majority'])}"
    if permuted := baselines.get("permuted_labels"):
        yield f"  {permuted['n_permutations']} times shuffled training labels: {described(permuted)}"
    for other in baselines.get("other_stores", ()):
        yield f"  {escaped(other['store'])} ({escaped(str(other['backbone'].get('name', '')))}): {described(other)}"


def confusion_line(classes: list[str], matrix: list[list[int]]) -> str:
    """What became of each class; of many classes the most frequent confusions."""
    names = list(map(escaped, classes))
    if len(names) > _MAX_CONFUSED:
        wrong = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
        most = sorted(wrong, key=lambda pair: (-pair[0], pair[1:]))[:_MAX_CONFUSED]
        n_wrong = sum(n for n, *_ in wrong)
        counts_text = ", ".join(f"{n:,} {names[i]} predicted as {names[j]}" for n, i, j in most)
        return f"{n_wrong:,} of {sum(map(sum, matrix)):,} are predicted as another class" + (
            f": {counts_text}" if counts_text else ""
        )
    return "; ".join(
        f"of {sum(row):,} {name}, " + ", ".join(f"{n:,} predicted as {c}" for n, c in zip(row, names, strict=True))
        for name, row in zip(names, matrix, strict=True)
    )
