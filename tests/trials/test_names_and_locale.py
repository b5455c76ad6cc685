"""Under `LC_ALL=en_US.ISO-8859-1` the same files had other image ids, and a name beyond ASCII ended in a traceback.

Names are UTF-8 whatever the locale: the same ids, the same CSV, no traceback.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import draw
from tests.test_cli import RANDOM

PACKAGE = Path(__file__).parents[2]
NAMES = ["größe/Röntgen 1.png", "größe/e\u0301.png", "正常/日本.png", "正常/plain.png"]
LOCALES = {
    "ascii": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "posix": {"LC_ALL": "POSIX"},
    "unknown": {"LC_ALL": "xx_YY.nothing", "PYTHONUTF8": "0"},
    "utf-8": {"LC_ALL": "C.UTF-8"},
    "latin-1": {"LC_ALL": "en_US.ISO-8859-1"},
}


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the locale en_US.ISO-8859-1, where it can be made."""
    folder = tmp_path_factory.mktemp("locales")
    if maker := shutil.which("localedef"):
        name = os.fspath(folder / LOCALES["latin-1"]["LC_ALL"])
        subprocess.run([maker, "-i", "en_US", "-f", "ISO-8859-1", name], check=False, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names") / "bilder-ä"
    for i, name in enumerate(NAMES):
        draw(root / name, i)
    (root / "bilder.csv").write_text("path,label\n" + "".join(f"{name},ä{name[0]}\n" for name in NAMES), "utf-8")
    return root


def run(locale: str, locales: Path, cwd: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """A process of its own in this locale, whose Python decodes names by it."""
    if locale == "latin-1" and not (locales / LOCALES[locale]["LC_ALL"]).exists():
        pytest.skip("no localedef, or no definition of the locale, to make en_US.ISO-8859-1 of")
    clean = {k: v for k, v in os.environ.items() if k not in ("LC_ALL", "LANG", "LC_CTYPE", "PYTHONUTF8")}
    env = {**clean, "PYTHONPATH": os.fspath(PACKAGE), "LOCPATH": os.fspath(locales), **LOCALES[locale]}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", errors="replace")


@pytest.mark.parametrize("locale", ["ascii", "latin-1"])
def test_ids_and_failures_are_the_same_in_every_locale(
    locale: str, locales: Path, images: Path, tmp_path: Path
) -> None:
    """Of the command line, where a label goes through it and errors are printed."""
    command = ("-m", "featcache", "check", "--json")
    done = run(locale, locales, tmp_path, *command, images)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["unreadable"]) == (0, []), done.stderr
    assert [each["label"] for each in answer["classes"]] == ["größe", "正常"]
    done = run(locale, locales, tmp_path, *command, images / "nicht-da-ß")
    assert done.returncode == 2
    assert json.loads(done.stdout)["message"].endswith("is expected.")
    assert "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("locale", ["ascii", "latin-1"])
def test_a_store_of_another_locale_is_the_same(locale: str, locales: Path, images: Path, tmp_path: Path) -> None:
    """Ids, labels and vectors: the second pass, in UTF-8, finds everything there."""
    command = ("-m", "featcache", "embed", images, "-o", tmp_path / "störe.h5", *RANDOM, "--json")
    assert json.loads(run(locale, locales, tmp_path, *command).stdout)["embedded"] == 4
    again = json.loads(run("utf-8", locales, tmp_path, *command).stdout)
    assert (again["embedded"], again["reused"], again["dropped"]) == (0, 4, 0)


@pytest.mark.parametrize("locale", LOCALES)
def test_a_manifest_in_python_has_the_same_ids_in_every_locale(
    locale: str, locales: Path, images: Path, tmp_path: Path
) -> None:
    """Without the command line, which starts Python again: paths stay those that the system opens."""
    code = (
        "import json, os, sys\nfrom featcache.manifest import Manifest\n"
        "for source in sys.argv[1:]:\n"
        "    manifest = Manifest.read(source)\n"
        "    print(json.dumps([manifest.image_ids, manifest.columns.get('label')]))\n"
        "    assert all(path.stat().st_size for path in manifest.paths)\n"
    )
    done = run(locale, locales, tmp_path, "-c", code, images, images / "bilder.csv", images / NAMES[0])
    assert done.returncode == 0, done.stderr
    folder, table, single = map(json.loads, done.stdout.splitlines())
    assert folder == [sorted(NAMES), [name.split("/")[0] for name in sorted(NAMES)]]
    assert table == [NAMES, [f"ä{name[0]}" for name in NAMES]]
    assert single == [["Röntgen 1.png"], None]
