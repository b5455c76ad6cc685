"""Parts, plans and `.seen` of other shapes, types, NaN or an unknown precision: ten of 23 gave a traceback, and one
replaced a good store by a damaged one. What does not hold together is computed again or refused in one line, and never
published."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featcache.embedding import embed
from featcache.errors import FeatcacheError
from featcache.identity import digest_bytes
from featcache.manifest import Manifest
from featcache.store import Part, read_part, status, verify
from featcache.store.parts import _part_bytes
from tests.conftest import draw
from tests.trials.outputs import SPEC

N, STEP = 8, 4


class Stop(FeatcacheError):
    """Ends a pass."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pass that was stopped after the first of two parts, and `good.h5`, as it ends. To be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    for i in range(N):
        draw(folder / "in" / f"{i}.png", i)
    manifest = Manifest.read(folder / "in")
    embed(manifest, folder / "good.h5", SPEC, n_workers=1, part_rows=STEP)

    def stop(done: int, total: int) -> None:
        if done >= STEP:
            raise Stop("enough")

    with pytest.raises(Stop):
        embed(manifest, folder / "s.h5", SPEC, n_workers=1, part_rows=STEP, on_progress=stop)
    return folder


@pytest.fixture
def here(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped / "s.h5.partial", tmp_path / "s.h5.partial")
    for name in ("good.h5", ".good.h5.seen"):
        shutil.copy(stopped / name, tmp_path / name)
    return tmp_path


def goes_on(stopped: Path, here: Path, name: str = "s.h5") -> None:
    """The pass ends with the store that it would have made, or in one line with the store that was there."""
    before = (here / name).read_bytes() if (here / name).exists() else None
    try:
        embed(Manifest.read(stopped / "in"), here / name, SPEC, n_workers=1, part_rows=STEP)
    except FeatcacheError as error:
        assert "Traceback" not in str(error)  # noqa: PT017  # it may be refused or computed again
        assert ((here / name).read_bytes() if (here / name).exists() else None) == before
        return
    verify(here / name)
    assert (here / name).read_bytes() == (stopped / "good.h5").read_bytes()


def put_part(here: Path, part: Part, start: int) -> None:
    data = bytes(_part_bytes(part))
    for old in (here / "s.h5.partial").glob(f"part-{start:010d}-*"):
        old.unlink()
    (here / "s.h5.partial" / f"part-{start:010d}-{digest_bytes(data)[:16]}.h5").write_bytes(data)


def other(part: Part, **arrays: Any) -> Part:
    return replace(part, features={**part.features, **arrays})


def with_nan(part: Part) -> Part:
    values = part.features["pooled"].copy()
    values[1, 2] = np.nan
    return other(part, pooled=values)


PARTS: dict[str, Callable[[Part], Part]] = {
    "NaN": with_nan,
    "infinity": lambda part: other(part, pooled=np.full_like(part.features["pooled"], np.inf)),
    "fewer features": lambda part: other(part, pooled=part.features["pooled"][:, :5]),
    "more axes": lambda part: other(part, pooled=part.features["pooled"][..., None]),
    "half precision": lambda part: other(part, pooled=part.features["pooled"].astype(np.float16)),
    "another array": lambda part: other(part, grid=np.zeros((STEP, 2, 2), dtype=np.float32)),
    "fewer rows": lambda part: other(part, pooled=part.features["pooled"][:2]),
    "more rows": lambda part: replace(
        part, features={"pooled": np.tile(part.features["pooled"], (2, 1))}, origin=np.tile(part.origin, 2),
        content_sha256=part.content_sha256 * 2,
    ),
    "no rows": lambda part: replace(
        part, features={"pooled": part.features["pooled"][:0]}, origin=part.origin[:0], content_sha256=[]
    ),
    "another start": lambda part: replace(part, start=1),
    "start below zero": lambda part: replace(part, start=-4),
    "an unknown origin": lambda part: replace(part, origin=part.origin + 7),
    "no sha256": lambda part: replace(part, content_sha256=["covid"] * STEP),
    "empty sha256": lambda part: replace(part, content_sha256=[""] * STEP),
    "a failure of a good row": lambda part: replace(part, failures={0: ("missing", "the file is gone")}),
    "a failure of no row": lambda part: replace(part, failures={99: ("missing", "the file is gone")}),
    "an environment that is none": lambda part: replace(part, environment=[1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("what", PARTS)
def test_a_part_that_does_not_fit_is_computed_again(stopped: Path, here: Path, what: str) -> None:
    """The digest in its name is that of its bytes: somebody else has written it."""
    (path,) = (here / "s.h5.partial").glob("part-*.h5")
    put_part(here, PARTS[what](read_part(path)), 0)
    goes_on(stopped, here)
    assert (here / "s.h5").exists()


def without(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [without("origin"), without("features"), without("failures"), without("content_sha256"),
     attribute("start", "x"), attribute("start", np.nan), attribute("start", [1, 2]), attribute("environment", "{")],
)  # fmt: skip
def test_a_part_without_something_is_computed_again(
    stopped: Path, here: Path, change: Callable[[h5py.File], None]
) -> None:
    (path,) = (here / "s.h5.partial").glob("part-*.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    path.rename(path.with_name(f"part-0000000000-{digest_bytes(path.read_bytes())[:16]}.h5"))
    goes_on(stopped, here)
    assert (here / "s.h5").exists()


JUNK = [None, 0, -1, 1.5, True, "x", "", [], {}, [1], {"a": 1}, float("nan"), 10**30, "0" * 64, [[]], {"pooled": [0]}]


def changed(value: Any, dice: random.Random) -> Any:
    """JSON in which something, at some depth, is something else, or is missing."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(sorted(value))
        if dice.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: changed(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        place = dice.randrange(len(value))
        return [*value[:place], changed(value[place], dice), *value[place + 1 :]]
    return dice.choice(JUNK)


@pytest.mark.parametrize("seed", range(25))
def test_a_plan_with_something_else_in_it_is_not_followed(stopped: Path, here: Path, seed: int) -> None:
    path = here / "s.h5.partial" / "plan.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), random.Random(seed))))
    try:
        status(here / "s.h5")
    except FeatcacheError as error:
        assert "\n" not in str(error)  # noqa: PT017  # it may be refused or read
    goes_on(stopped, here)


@pytest.mark.parametrize("seed", range(40))
def test_a_memory_with_something_else_in_it_is_not_believed(stopped: Path, here: Path, seed: int) -> None:
    """Where it says of an image that it has other content, that is believed: who can write there can write the store.
    Nothing of it gets into a store, and none is lost."""
    path = here / ".good.h5.seen"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), random.Random(seed))))
    goes_on(stopped, here, "good.h5")


@pytest.mark.parametrize("precision", ["int3", "auto", None, 16, ["float32"]])
def test_an_unknown_precision_in_a_plan_is_another_identity(stopped: Path, here: Path, precision: Any) -> None:
    path = here / "s.h5.partial" / "plan.json"
    plan = json.loads(path.read_text())
    plan["identity"]["precision"] = precision
    path.write_text(json.dumps(plan))
    with pytest.raises(FeatcacheError, match="precision"):
        embed(Manifest.read(stopped / "in"), here / "s.h5", replace(SPEC, precision="auto"), n_workers=1)
    assert not (here / "s.h5").exists()


def test_what_is_at_the_memorys_place_and_is_none_stays(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / ".s.h5.seen").write_text("my notes")
    embed(Manifest.read(stopped / "in"), tmp_path / "s.h5", SPEC, n_workers=1, part_rows=STEP)
    assert (tmp_path / ".s.h5.seen").read_text() == "my notes"
