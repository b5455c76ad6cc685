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
    "names": 1, "charts": 1.1,
    "containers": 1, "dicom": 1, "tables": 1, "calibration": 1, "duplicates": 1, "intervals": 1.1,
    "manifest": 2, "images": 2, "heads": 2, "augment": 2.1, "headers": 2.1, "sources": 2.1,
    "store.schema": 2.1, "store.validation": 2.2, "store.opening": 2.25, "store.reading": 2.3, "store.parts": 2.4,
    "store.known": 2.5, "store.publishing": 2.5, "store.verifying": 2.5, "store.describing": 2.5,
    "store.selecting": 2.55, "store": 2.6, "export": 2.7,
    "fusion.spec": 1, "fusion.reading": 2.7, "fusion.datasets": 2.8, "fusion.studies": 2.8, "fusion.unseen": 3.3,
    "fusion.writing": 3.4, "fusion": 3.5,
    "probe": 3, "seen": 3, "request": 3.1, "workers": 3.1,
    "task": 3, "vectors": 3, "scoring": 3, "stacks": 3, "objective": 3, "pace": 3, "modules": 3.1,
    "wide": 3.1, "fits": 3.15,
    "protocol": 3.1, "runs": 3.2,
    "fitting": 3.2, "solvers": 3.3,
    "selection": 3.4, "baselines": 3.5, "summary": 3.5, "training": 3.6,
    "suspects": 3.1, "checking": 3.2, "confounds": 3.4, "audited": 3.5, "audit": 3.6,
    "graph": 3, "networks": 3,
    "blocks": 3.1, "weights": 3.1, "backbones": 4, "origin": 4.1, "cut": 4.1, "plan": 4, "forward": 4.5,
    "recipe": 1, "pixels": 3.2, "telling": 3.2, "world": 1, "checkpoints": 3,
    "boundaries": 4.6, "learning": 4.6, "inputs": 4.7, "tuning": 4.7,
    "start": 4.8, "outcome": 4.85, "course": 4.9, "finetune": 5,
    "predictions": 4.2, "portable": 4.3, "bundle": 4.4,
    "network": 5, "precision": 5.1, "filling": 5.1, "output": 5.2,
    "embed": 6, "forecast": 6.1, "predictor": 6.2, "predict": 6.3,
    "report.blocks": 6.4, "report.subject": 6.4, "report.evidence": 6.4, "report.pictures": 6.4, "report.sources": 6.5,
    "report.tables": 6.5, "report.page": 6.5, "report.deciding": 6.6, "report.drawing": 6.6, "report.gallery": 6.6,
    "report.mapping": 6.6, "report.comparison": 6.6, "report": 6.7,
    "demo": 7,
    "cli.options": 8, "cli.showing": 8, "cli.results": 8.1, "cli.waiting": 8.1,
    "cli.embedding": 8.2, "cli.heads": 8.2, "cli.pixels": 8.2, "cli.looking": 8.2, "cli.exporting": 8.2,
    "cli.sources": 8.2, "cli.auditing": 8.2, "cli.predicting": 8.2, "cli.reporting": 8.2,
    "cli": 8.3,
    "__main__": 9,
}  # fmt: skip
ONLY_USERS = {
    "h5py": {
        "store.schema", "store.validation", "store.opening", "store.reading", "store.publishing", "store.selecting",
    },
    "timm": {"backbones", "blocks", "weights"}, "pydicom": {"dicom"},
    "matplotlib": {"figures", "charts"}, "jinja2": {"report.page"},
    "typer": {"cli", "cli.options", "cli.embedding", "cli.heads", "cli.looking", "cli.pixels", "cli.exporting",
             "cli.sources", "cli.auditing", "cli.predicting", "cli.reporting"},
    "onnx": {"portable"}, "onnxruntime": {"portable"},
    "rich": {"cli.showing", "cli.results", "cli.waiting", "cli.looking", "cli.sources", "cli.auditing",
             "cli.predicting"},
}  # fmt: skip


def source(module: str) -> str:
    path = PACKAGE.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")


def imports(module: str) -> set[str]:
    """Full names of everything a module imports, also inside its functions."""
    tree = ast.parse(source(module))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_floor() -> None:
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix("/__init__").replace("/", ".") for name in files}
    assert modules - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("module", sorted(FLOORS))
def test_module_imports_only_from_lower_floors(module: str) -> None:
    for name in imports(module):
        parts = name.removeprefix("featcache.").split(".") if name.startswith("featcache.") else []
        if imported := next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in FLOORS), None):
            assert FLOORS[imported] < FLOORS[module], f"{module} imports {imported}"


@pytest.mark.parametrize("library", sorted(ONLY_USERS))
def test_library_has_one_user(library: str) -> None:
    users = {module for module in FLOORS if any(name.split(".")[0] == library for name in imports(module))}
    assert users == ONLY_USERS[library]


def test_only_the_command_line_prints() -> None:
    for module in (module for module in FLOORS if module.split(".")[0] != "cli"):
        calls = [node for node in ast.walk(ast.parse(source(module))) if isinstance(node, ast.Call)]
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
