"""The floors of the package: who may import whom, and who alone may use a heavy library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import featcache

PACKAGE = Path(featcache.__file__).parent
FLOORS = {
    "errors": 0,
    "provenance": 1, "durable": 1, "metrics": 1, "splits": 1, "figures": 1, "phantoms": 1, "devices": 1,
    "manifest": 2, "images": 2, "store": 2, "heads": 2,
    "backbones": 3, "training": 3,
    "embed": 4,
    "demo": 5,
    "cli": 6,
    "__main__": 7,
}  # fmt: skip
ONLY_USERS = {"h5py": {"store"}, "timm": {"backbones"}, "matplotlib": {"figures"}, "typer": {"cli"}, "rich": {"cli"}}


def imports(module: str) -> set[str]:
    """Full names of everything a module imports, also inside its functions."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_floor() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("module", sorted(FLOORS))
def test_module_imports_only_from_lower_floors(module: str) -> None:
    for name in imports(module):
        parts = name.split(".")
        if parts[0] == "featcache" and len(parts) > 1 and parts[1] in FLOORS:
            assert FLOORS[parts[1]] < FLOORS[module], f"{module} imports {parts[1]}"


@pytest.mark.parametrize("library", sorted(ONLY_USERS))
def test_library_has_one_user(library: str) -> None:
    users = {module for module in FLOORS if any(name.split(".")[0] == library for name in imports(module))}
    assert users == ONLY_USERS[library]


def test_only_the_command_line_prints() -> None:
    for module in set(FLOORS) - {"cli"}:
        calls = [
            node for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())) if isinstance(node, ast.Call)
        ]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], module


def test_reading_a_store_imports_neither_torch_nor_timm(embedded: Path) -> None:
    code = (
        "import sys, featcache, featcache.store\n"
        "with featcache.Store.open(sys.argv[1]) as store: store.features()\n"
        "import featcache.cli\n"
        "heavy = {'torch', 'timm', 'torchvision', 'sklearn', 'pandas', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, str(embedded)], check=True)
