"""What `featcache` promises to Python users."""

import inspect
import pkgutil
import subprocess
import sys

import pytest

import featcache


@pytest.mark.parametrize("name", featcache.__all__)
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    thing = getattr(featcache, name)
    assert name == "__version__" or inspect.getdoc(thing)


def test_public_names_are_exactly_these() -> None:
    assert featcache.__all__ == [
        "AugmentationSpec",
        "AugmentedCopies",
        "BackboneSpec",
        "ColumnSpec",
        "DecodeSpec",
        "FeatcacheError",
        "FusionSpec",
        "HeadSpec",
        "Manifest",
        "Recipe",
        "Run",
        "SelectionSpec",
        "SplitSpec",
        "Stage",
        "Store",
        "TargetSpec",
        "TransformSpec",
        "Where",
        "__version__",
        "audit",
        "embed",
        "evaluate",
        "export",
        "export_onnx",
        "export_studies",
        "fine_tune",
        "load_run",
        "predict",
        "report",
        "train",
        "train_head",
    ]


def test_verbs_are_found_from_the_package() -> None:
    """In a process of its own: here they may have been imported already."""
    code = "import featcache; print(callable(featcache.embed), callable(featcache.train_head))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        featcache.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "verb",
    [
        "embed",
        "train_head",
        "manifest.datasets.iu_xray",
        "manifest.datasets.kermany",
        "manifest.covid.covid",
        "manifest.Manifest.write",
        "manifest.check.check",
        "audit",
        "load_run",
        "predict",
        "evaluate",
        "prediction.bundle.bundle",
        "prediction.onnx_export.export_onnx",
        "demo.demo",
        "doctor.doctor",
        "report",
        "backbones.load",
        "store.publish",
        "splits.hold_out",
        "splits.k_folds",
        "splits.protocol.divide",
        "splits.task.Task.of",
        "export",
        "fusion.open_studies",
        "fusion.writer.export_studies",
    ],
)
def test_every_verb_documents_what_it_raises(verb: str) -> None:
    assert "Raises:" in (inspect.getdoc(pkgutil.resolve_name(f"featcache.{verb}")) or "")


def test_every_exception_is_drawn_with_its_exit_code() -> None:
    from featcache import errors

    for name, thing in vars(errors).items():
        if inspect.isclass(thing) and issubclass(thing, errors.FeatcacheError) and thing is not errors.ImageError:
            line = next(line for line in (errors.__doc__ or "").splitlines() if f" {name} " in line)
            assert f" {thing.exit_code} " in line
