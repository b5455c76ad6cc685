"""The floors of the package: who may import whom, and who alone may use a heavy library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import featcache

PACKAGE = Path(featcache.__file__).parent
FLOORS = (  # from the ground up
    ("errors", "identity", "names", "phantoms", "threads"),
    ("specs", "summary"),
    ("devices", "durable", "figures", "metrics", "tables"),
    ("images", "store"),
    ("heads", "splits"),
    ("backbones", "manifest"),
    ("auditing", "runs"),
    ("embedding", "fusion", "training"),
    ("doctor", "prediction"),
    ("evaluation", "finetune", "reporting"),
    ("demo",),
    ("cli",),
    ("__main__",),
)
PARTS = {  # of the packages, each after those it uses
    "auditing": "suspects confounds shortcuts results audit",
    "backbones": "graph networks blocks checkpoints matching weights registry",
    "cli": "streams options groups render results progress embedding training exporting predicting evaluating "
           "inspecting collections auditing reporting main",
    "durable": "regular locks files outputs folders",
    "embedding": "plan forward kernels network depth precision filling output run estimate",
    "evaluation": "vocabulary labels sets selection subgroups comparison notes evaluate",
    "figures": "plots charts",
    "finetune": "distributed unfreeze inputs start checkpoints loop results cross_validation fine_tune",
    "fusion": "reader dataset join unseen writer",
    "heads": "mlp features optim jobs training inference solvers",
    "images": "containers lean dicom files depths decoding headers augment probe cache serving workers",
    "manifest": "housekeeping listing columns companions layout manifest datasets covid survey "
                "check",
    "metrics": "calibration scores estimates intervals",
    "prediction": "run_backbone overlap predictions onnx_export bundle predictor files",
    "reporting": "checking run_view cam document charts page tables external comparison materials projection "
                 "gallery decisions report",
    "runs": "run backbone subsets evaluation",
    "specs": "bounds augmentation images backbones heads training data",
    "splits": "class_names unnamed_groups near_duplicates plan coding task protocol",
    "store": "schema conditions validation opening reader parts lookup writer select variety describing verifying "
             "export",
    "tables": "missing formats table joining",
    "training": "selection baselines results train_head",
}  # fmt: skip
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
MODULES = {
    f"{name}.{part}".removesuffix("."): (FLOOR[name], place)
    for name in FLOOR
    for place, part in enumerate([*PARTS.get(name, "").split(), ""])
}
ONLY_USERS = {
    "h5py": {"store.schema", "store.validation", "store.opening", "store.reader", "store.writer", "store.select"},
    "timm": {"backbones.registry", "backbones.blocks", "backbones.weights"}, "pydicom": {"images.dicom"},
    "threadpoolctl": {"threads"},
    "matplotlib": {"figures.plots", "figures.charts"}, "jinja2": {"reporting.page"},
    "typer": {"cli.main", "cli.options", "cli.groups", "cli.embedding", "cli.training", "cli.inspecting",
             "cli.exporting", "cli.collections", "cli.auditing", "cli.predicting", "cli.evaluating", "cli.reporting"},
    "onnx": {"prediction.onnx_export"}, "onnxruntime": {"prediction.onnx_export"},
    "rich": {"cli.render", "cli.results", "cli.progress", "cli.inspecting", "cli.collections", "cli.auditing",
             "cli.predicting", "cli.evaluating"},
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


def test_every_module_has_a_place() -> None:
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix("/__init__").replace("/", ".") for name in files}
    assert modules - {"__init__"} == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_is_below_it(module: str) -> None:
    (floor, place), home = MODULES[module], module.split(".")[0]
    for name in imports(module):
        parts = name.removeprefix("featcache.").split(".") if name.startswith("featcache.") else []
        if imported := next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in MODULES), None):
            at_home = imported.split(".")[0] == home
            below = MODULES[imported][1] < place if at_home else MODULES[imported][0] < floor
            assert below, f"{module} imports {imported}"


@pytest.mark.parametrize("package", sorted(PARTS))
def test_a_package_lists_its_parts_from_the_bottom(package: str) -> None:
    docstring = ast.get_docstring(ast.parse(source(package))) or ""
    listed = [line.split()[0] for line in docstring.splitlines() if line.startswith("    ")]
    assert listed == [part for part in PARTS[package].split() if part != "."]


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_contributing_shows_every_floor(floor: int) -> None:
    table = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8")
    for name in FLOORS[floor]:
        assert name == "__main__" or f"| {floor} | `{name}` |" in table


@pytest.mark.parametrize("library", sorted(ONLY_USERS))
def test_library_has_one_user(library: str) -> None:
    users = {module for module in MODULES if any(name.split(".")[0] == library for name in imports(module))}
    assert users == ONLY_USERS[library]


def test_only_the_command_line_prints() -> None:
    for module in (module for module in MODULES if module.split(".")[0] != "cli"):
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
