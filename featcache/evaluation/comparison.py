"""How a Run does on a set from elsewhere beside how it did on its own rows.

The two have no image in common, so differences have unpaired intervals, which follow from those of the numbers: a
bundle, which names none of its images, is compared as well. The own rows are those of the Run's test subset; of a Run
without one those that outer folds held out, or those of validation.
"""

from collections.abc import Iterator
from typing import Any

from featcache.identity import Json
from featcache.metrics import intervals
from featcache.training.results import OUTER, TEST, VAL

SUBSETS = {TEST: "test rows", OUTER: "rows held out by outer folds", VAL: "validation rows"}
SHARED = "Some of the images are the Run's own, so the two are not of different images."
_MAIN = {
    "auroc": "AUROC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "recall": "sensitivity",
    "specificity": "specificity",
}  # fmt: skip
_DECIDED = frozenset(_MAIN) - {"auroc"}  # by a threshold, where there is one


def compared(run: Json, external: Json, point: Json | None, is_shared: bool) -> Json:
    """By how much the numbers of a set are above those of the Run's own rows.

    Args:
        run: the record of the Run.
        external: the numbers of the set.
        point: those at the operating point; None without one.
        is_shared: whether some images are of both.

    Returns:
        subset and n of the own rows, `own` numbers and those `at_operating_point`; differences as [difference, low,
        high] by number, at 0.5 and at the operating point; none, and the reason, where images are shared.
    """
    subset = next(name for name in SUBSETS if run["metrics"].get(name))
    own = run["metrics"][subset]
    own_point = (run["operating_point"] or {}).get(subset)
    has_point = bool(own_point and point) and not is_shared
    return {
        "subset": subset,
        "n": own["n"],
        "chose": list(own.get("chose") or ()),
        "own": _numbers(own),
        "own_at_operating_point": _numbers(own_point) if own_point else None,
        "differences": {} if is_shared else _differences(own, external),
        "differences_at_operating_point": _differences(own_point, point) if has_point else None,
        "reason": SHARED if is_shared else None,
    }


def _numbers(scores: Json) -> Json:
    names = ("n", *_MAIN, "intervals")
    return {name: scores.get(name) for name in names}


def _differences(own: Json, external: Json) -> dict[str, list[float]]:
    return {name: list(differences) for name, differences in intervals.unpaired(own, external).items()}


def about_difference(comparison: Json, external: Json, point: Json | None) -> Iterator[str]:
    """A sentence for each main number that differs by more than its interval, and one where the own rows flatter."""
    if comparison["subset"] == VAL:
        chose = " and ".join(comparison["chose"]).replace("_", " ")
        yield (
            f"The Run has no test rows: what this set is compared with are its {comparison['n']:,} validation rows"
            + (f", which chose the {chose} and so flatter." if chose else ".")
        )
    for name, called in _MAIN.items():
        at_point = name in _DECIDED and comparison["differences_at_operating_point"] is not None
        differences = comparison["differences_at_operating_point" if at_point else "differences"]
        difference, low, high = differences.get(name, (0.0, 0.0, 0.0))
        if low > 0 or high < 0:
            own = comparison["own_at_operating_point" if at_point else "own"]
            of, at = SUBSETS[comparison["subset"]], " at the operating point" if at_point else ""
            here = (point if at_point else external) or {}
            yield (
                f"{called[0].upper()}{called[1:]}{at} is {_value(here, name)} on this set and {_value(own, name)} on "
                f"the Run's own {of}: {'higher' if low > 0 else 'lower'} by {abs(difference):.3f} "
                f"[{min(abs(low), abs(high)):.3f}, {max(abs(low), abs(high)):.3f}], more than chance explains."
            )


def _value(scores: Any, name: str) -> str:
    low, high = scores["intervals"][name]
    return f"{scores[name]:.3f} [{low:.3f}, {high:.3f}]"
