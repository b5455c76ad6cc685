"""Conditions on rows: the text of a column is this one, or is not. What is exported, and what is learnt from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from featcache.errors import UsageError
from featcache.specs import Where
from featcache.store.schema import Array

_MAX_VALUES = 5


class Rows(Protocol):
    """n rows with names and columns: a `Store`, or anything like one."""

    @property
    def path(self) -> Path: ...

    @property
    def image_ids(self) -> list[str]: ...

    @property
    def columns(self) -> dict[str, list[str]]: ...


def matching(rows: Rows, where: Sequence[Where]) -> Array:
    """(n,) whether the conditions hold. Those that ask for a value of one column are alternatives; otherwise all must
    hold.

    Raises:
        UsageError: a column that is not there, no row left.
    """
    columns = {"image_id": rows.image_ids, **rows.columns}
    for condition in where:
        if condition.column not in columns:
            raise UsageError(f"{rows.path} has no column {condition.column!r}; it has {', '.join(columns)}.")
    kept = np.ones(len(rows.image_ids), dtype=bool)
    for column in dict.fromkeys(condition.column for condition in where):
        accepted = {condition.value for condition in where if condition.column == column and condition.equal}
        refused = {condition.value for condition in where if condition.column == column and not condition.equal}
        kept &= [(not accepted or value in accepted) and value not in refused for value in columns[column]]
    if not kept.any():
        raise UsageError(f"no row of {rows.path} has {' and '.join(map(str, where))}{_there_is(columns, where)}.")
    return kept


def _there_is(columns: dict[str, list[str]], where: Sequence[Where]) -> str:
    """Values of the first column that was asked for; of an empty store there are none."""
    if not where:
        return "any row"
    values = sorted(set(columns[where[0].column]))
    values_text = ", ".join(map(repr, values[:_MAX_VALUES])) + (" …" if len(values) > _MAX_VALUES else "")
    return f"; {where[0].column} is {values_text}" if values else "; it has no rows"
