"""The commands and Python blocks of the README and of the documentation run, in their order, as they stand."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import Done, featcache

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
INDEX = (ROOT / "docs" / "index.md").read_text("utf-8")
PAGES = [
    f"docs/{name}.md" for name in re.findall(r"^((?:how-to|tutorials|explanation|reference)/[\w-]+)$", INDEX, re.M)
]
GUIDES = [*[page for page in PAGES if "how-to" in page], *[page for page in PAGES if "tutorials" in page]]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(block: str) -> list[str]:
    """The commands of a console block; a comment starts with a `#` after two spaces."""
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]


def run_python(code: str, name: str) -> None:
    """A code block as `python FILE` runs it, in this process."""
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


def run_page(name: str, folder: Path, demo: Done) -> int:
    """Runs the blocks of a page; returns the number of commands. `make demo` is `featcache demo`, which has run in the
    folder already, and `make test` is this test."""
    n_commands = 0
    text = (ROOT / name).read_text("utf-8")
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```", text, re.M | re.S):
        if language == "python":
            run_python(block, name)
            continue
        for command in commands(block):
            words = {"make demo": ["featcache", "demo"], "make test": []}.get(command, shlex.split(command))
            if "from-csv.h5" in words:
                shutil.copy("chest.h5", "from-csv.h5")  # which holds the vectors that are asked for
            if words:
                done = demo if words == ["featcache", "demo"] else featcache(*words[1:], cwd=folder)
                assert done.returncode == 0, f"{name}: {command}\n{done.stderr}"
                n_commands += 1
    return n_commands


def test_every_command_is_in_the_readme() -> None:
    from featcache.cli.main import app

    for command in app.registered_commands:
        assert f"featcache {command.name}" in README


def test_the_readme_is_two_screens() -> None:
    assert len(README.split()) <= 1300


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"\bmake (\w+)", "\n".join(blocks("console", README))))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.long
@pytest.mark.usefixtures("empty_hub")
def test_everything_in_the_readme_and_the_guides_runs_in_its_order(
    demonstrated: tuple[Path, Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, demo = demonstrated
    monkeypatch.chdir(folder)
    assert sum(run_page(name, folder, demo) for name in ("README.md", *GUIDES)) >= 50
    shutil.copy("featcache-demo/phantoms.h5", "phantoms.h5")  # which holds the vectors that are asked for
    for block in blocks("python", (ROOT / "pipelines" / "README.md").read_text("utf-8")):
        run_python(block, "pipelines/README.md")


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8")):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_every_page_is_in_the_index() -> None:
    written = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*/*.md") if path.parent.name[0] != "_"
    }
    assert written == set(PAGES)


@pytest.mark.long
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("furo", reason="the documentation's libraries are those of the extra dev")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "train_head" in (tmp_path / "reference" / "python.html").read_text("utf-8")
