"""What `featcache` promises to Python users."""

import importlib
import inspect

import pytest

import featcache


@pytest.mark.parametrize("name", featcache.__all__)
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    thing = getattr(featcache, name)
    assert name == "__version__" or inspect.getdoc(thing)


def test_public_names_are_exactly_these() -> None:
    assert sorted(featcache.__all__) == sorted(
        ["BackboneSpec", "FeatcacheError", "HeadSpec", "Manifest", "Run", "Store", "TransformSpec", "__version__"]
    )


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        featcache.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "verb",
    [
        "embed.embed",
        "training.train_head",
        "demo.demo",
        "backbones.load",
        "store.publish",
        "splits.hold_out",
        "splits.k_folds",
        "protocol.divide",
        "task.Task.of",
    ],
)
def test_every_verb_documents_what_it_raises(verb: str) -> None:
    module, *names = verb.split(".")
    thing = importlib.import_module(f"featcache.{module}")
    for name in names:
        thing = getattr(thing, name)
    assert "Raises:" in (inspect.getdoc(thing) or "")


def test_every_exception_is_drawn_with_its_exit_code() -> None:
    from featcache import errors

    for name, thing in vars(errors).items():
        if inspect.isclass(thing) and issubclass(thing, errors.FeatcacheError) and thing is not errors.ImageError:
            line = next(line for line in (errors.__doc__ or "").splitlines() if f" {name} " in line)
            assert f" {thing.exit_code} " in line
