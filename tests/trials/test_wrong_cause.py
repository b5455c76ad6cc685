"""A folder without permission was "damaged … embed into another file", and a folder as `--split` or as an `.onnx`
output was an input/output error. Permission is exit code 21; a wrong kind of path is 2, and says what was found."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache import errors
from featcache.durable import write_bytes
from featcache.errors import AccessDenied, CorruptStore, InputOutputError, NoSpace, UsageError, from_os_error
from featcache.prediction.onnx_export import export_onnx
from featcache.runs import Run
from featcache.specs import SplitSpec
from featcache.splits.protocol import divide
from featcache.splits.task import Task
from featcache.store import Store
from featcache.store.validation import reading
from tests.conftest import make_store, two_clouds
from tests.trials.outputs import Material, in_a_process


def as_nobody(work: Callable[[], object]) -> tuple[int, str]:
    """Some work by a user whom permissions bind."""

    def run() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        work()

    return in_a_process(run)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed", ["the folder", "the file", "the folder for writing"])
def test_what_one_may_not_read_or_write_is_said_to_be_that(closed: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "inner"
        folder.mkdir()
        Path(made).chmod(0o755)
        make_store(folder / "s.h5", np.ones((3, 2)), {})
        folder.chmod({"the folder": 0o000, "the folder for writing": 0o555}.get(closed, 0o777))
        (folder / "s.h5").chmod(0o000 if closed == "the file" else 0o644)
        if closed != "the folder for writing":
            code, message = as_nobody(lambda: Store.open(folder / "s.h5"))
            assert (code, "permission denied" in message) == (AccessDenied.exit_code, True), message
            code, message = as_nobody(lambda: Run.open(folder / "run") if closed == "the folder" else _denied())
            assert code == AccessDenied.exit_code, message
        if closed != "the file":
            code, message = as_nobody(lambda: write_bytes(folder / "new", b""))
            assert (code, "permission denied" in message) == (AccessDenied.exit_code, True), message


def _denied() -> None:
    raise AccessDenied("as expected")


def test_what_the_system_refuses_while_a_store_is_read_is_no_damage(tmp_path: Path) -> None:
    for number, kind in ((errno.EACCES, AccessDenied), (errno.EPERM, AccessDenied), (errno.EIO, InputOutputError)):
        with pytest.raises(kind), reading(tmp_path / "s.h5", "a row"):
            raise OSError(number, os.strerror(number))
        with pytest.raises(kind), reading(tmp_path / "s.h5", "a row"):
            raise OSError(f"Unable to open file (errno = {number}, error message = 'x')")
    with pytest.raises(CorruptStore), reading(tmp_path / "s.h5", "a row"):
        raise OSError("bad checksum")


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [(errno.EISDIR, UsageError, "it is a folder"), (errno.ENOTDIR, UsageError, "a file stands where a folder"),
     (errno.ELOOP, UsageError, "links lead to one another"), (errno.ENAMETOOLONG, UsageError, "name is too long"),
     (errno.ENOSPC, NoSpace, "no space"), (errno.EROFS, AccessDenied, "read-only"),
     (errno.EIO, InputOutputError, "input")],
)  # fmt: skip
def test_each_refusal_of_the_system_has_its_cause(number: int, kind: type[errors.FeatcacheError], words: str) -> None:
    error = from_os_error(OSError(number, os.strerror(number)), "writing", Path("x"))
    assert type(error) is kind
    assert words in str(error)


def test_a_folder_where_a_file_is_expected_is_named(material: Material, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match=r"folder\.onnx is a folder"):
        export_onnx(material.run, tmp_path / "folder.onnx")
    x, labels = two_clouds(12, 3)
    with Store.open(make_store(tmp_path / "s.h5", x, {"label": labels})) as store:
        task = Task.of(store)
        for name, make in (("split.json", os.mkdir), ("pipe.json", os.mkfifo)):
            make(tmp_path / name)
            with pytest.raises(UsageError, match=rf"{name} is a (folder|pipe); a file is expected"):
                divide(task, SplitSpec(file=tmp_path / name), store.features)
    with pytest.raises(UsageError, match="is a folder"):
        Store.open(tmp_path)
