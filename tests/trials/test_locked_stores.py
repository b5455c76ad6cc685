"""An `embed` on a store that another process was writing loaded torch and a network, and then refused.

It refuses at once, says who writes, and has neither imported torch nor read an image.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featcache.embedding import embed_all
from featcache.errors import StoreLocked
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec
from featcache.store import PartFolder
from tests.conftest import SMALL

CODE = (
    "import sys\n"
    "from featcache.cli.main import main\n"
    "sys.argv[0] = 'featcache'\n"
    "try:\n"
    "    main()\n"
    "finally:\n"
    "    print('loaded', sorted({'torch', 'timm'} & set(sys.modules)))\n"
)


def test_a_locked_store_is_refused_before_torch_is_loaded(class_folder: Path, tmp_path: Path) -> None:
    arguments = ("embed", class_folder, "-o", tmp_path / "s.h5", "--backbone", SMALL, "--weights", "random:0")
    with PartFolder(tmp_path / "s.h5", {"identity": {}}).locked():
        command = [sys.executable, "-c", CODE, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 11, done.stderr
    assert f"s.h5 is being written by pid {os.getpid()} on " in done.stderr.replace("\n", "")
    assert "loaded []" in done.stdout


def test_one_locked_store_of_several_is_enough(class_folder: Path, tmp_path: Path) -> None:
    """Nothing is read and nothing is written, of the others neither."""
    specs = {tmp_path / f"{name}.h5": BackboneSpec(SMALL, "random:0", input_size=32) for name in "ab"}
    with PartFolder(tmp_path / "b.h5", {"identity": {}}).locked(), pytest.raises(StoreLocked, match=r"b\.h5 is being"):
        embed_all(Manifest.read(class_folder), specs)
    assert not (tmp_path / "a.h5.partial").exists()


def test_the_lock_of_a_writer_that_is_gone_holds_nobody_up(class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "s.h5.partial").mkdir()
    (tmp_path / "s.h5.partial" / "lock").write_text("pid 1 on elsewhere since 10:03")
    spec = BackboneSpec(SMALL, "random:0", input_size=32)
    (done,) = embed_all(Manifest.read(class_folder), {tmp_path / "s.h5": spec})
    assert done.counts.embedded == 12
