"""The README's commands run, in their order, as they stand."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.test_cli import Done, featcache

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(block: str) -> list[str]:
    """The commands of a console block; a comment starts with a `#` after two spaces."""
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]


def test_every_command_is_in_the_readme() -> None:
    from featcache.cli.main import app

    for command in app.registered_commands:
        assert f"featcache {command.name}" in README


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"\bmake (\w+)", "\n".join(blocks("console"))))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def run_python(code: str) -> None:
    """A code block as `python FILE` runs it, in this process."""
    exec(compile(code, "README", "exec"), {"__name__": "__main__"})


@pytest.mark.long
@pytest.mark.usefixtures("empty_hub")
def test_everything_in_the_readme_runs_in_its_order(
    demonstrated: tuple[Path, Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make demo` as `featcache demo`, which is all it does once the environment is there and has run already in this
    folder; `make test` is this."""
    folder, demo = demonstrated
    monkeypatch.chdir(folder)
    ran = 0
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```", README, re.M | re.S):
        if language == "python":
            run_python(block)
            continue
        for command in commands(block):
            words = {"make demo": ["featcache", "demo"], "make test": []}.get(command, shlex.split(command))
            if "from-csv.h5" in words:
                shutil.copy("chest.h5", "from-csv.h5")  # which holds the vectors that are asked for
            if words:
                done = demo if words == ["featcache", "demo"] else featcache(*words[1:], cwd=folder)
                assert done.returncode == 0, f"{command}\n{done.stderr}"
                ran += 1
    assert ran >= 8
    shutil.copy("featcache-demo/phantoms.h5", "phantoms.h5")  # so does this one
    for block in blocks("python", (ROOT / "pipelines" / "README.md").read_text("utf-8")):
        run_python(block)


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
