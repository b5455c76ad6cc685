"""Material of the tests of outputs, made once."""

import pytest

from tests.trials.outputs import Material, make_material


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A store, images and Runs to make outputs of. Never to be changed."""
    return make_material(tmp_path_factory.mktemp("material"))
