"""Checks of a spec's values: numbers are finite and within bounds that have a reason, texts are one of the choices.

A value that is finite and absurd costs as much as one that is none: a learning rate of 1e30 or a mean of 1e30 gives
numbers without meaning and no error. So every number of every spec has both bounds.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from featcache.errors import InvalidParameter

MOST_EPOCHS = 100_000  # beyond it a training of one second an epoch takes longer than a day
MOST_ROWS = 1 << 20  # of a batch: more than any set that was embedded so far
MOST_SECONDS = 86_400
_SEEDS = 2**32  # numpy's and torch's generators take no more


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float,
    *,
    above: bool = False,
    below: bool = False,
    whole: bool = False,
    why: str = "",
) -> None:
    """Raises InvalidParameter unless the value is a number from `low` to `high`.

    Args:
        name: name of the field.
        value: its value.
        low, high: the bounds, both included.
        above, below: exclude `low`, or `high`.
        whole: the value must be an integer.
        why: the reason for the bounds, which the message gives in brackets.

    Raises:
        InvalidParameter: "`lr` must be > 0 and at most 1000, got -1.0."
    """
    kind = Integral if whole else Real
    is_number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and (low < value if above else low <= value) and (value < high if below else value <= high):
        return
    least = f"> {_plain(low)}" if above else f"at least {_plain(low)}"
    most = f"below {_plain(high)}" if below else f"at most {_plain(high)}"
    words = f"{least} and {most}" if above or below else f"from {_plain(low)} to {_plain(high)}"
    kind_of = "a whole number " if whole and isinstance(value, Real) and not isinstance(value, Integral) else ""
    raise InvalidParameter(f"`{name}` must be {kind_of}{words}{f' ({why})' if why else ''}, got {value!r}.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises InvalidParameter for a value that is none of the choices."""
    if value not in choices:
        raise InvalidParameter(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")


def check_seed(name: str, value: Any) -> None:
    """Raises InvalidParameter for a value that is not a seed of numpy and torch."""
    is_seed = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_seed or not 0 <= int(value) < _SEEDS:
        raise InvalidParameter(f"`{name}` must be from 0 to 2^32 - 1, got {value!r}.")


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
