"""A logistic regression took 73 s with two threads of OpenMP and 3 s with one: threads waited for each other.

Whatever solves, searches, decomposes or projects does it with one thread, whatever the environment says, and leaves
the number of threads as it was.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_info, threadpool_limits

from featcache.auditing import confounds, suspects
from featcache.heads.jobs import Fit, Pool
from featcache.heads.optim import Targets
from featcache.heads.solvers import solve_all
from featcache.reporting import projection
from featcache.specs import HeadSpec
from featcache.splits.near_duplicates import near_pairs
from featcache.threads import one_thread
from tests.conftest import two_clouds


def n_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info()}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with threadpool_limits(2):
        yield


@pytest.fixture
def x() -> np.ndarray:
    return two_clouds(60, 12)[0].astype(np.float32)


def solve(kind: str) -> Callable[[np.ndarray], object]:
    rows = np.arange(60)
    fit = Fit(HeadSpec.of(kind), Pool(rows[:40]), rows[:40], rows[40:])
    return lambda x: solve_all([fit], torch.from_numpy(x), Targets((rows % 2)[None], 2, 1))


@pytest.mark.parametrize(
    ("work", "spied", "name"),
    [
        (solve("logreg"), LogisticRegression, "fit"),
        (solve("knn"), NearestNeighbors, "kneighbors"),
        (suspects.outliers, NearestNeighbors, "kneighbors"),
        (confounds.components, PCA, "fit"),
        (lambda x: projection.project(x, umap=False), TSNE, "fit_transform"),
    ],
)
def test_one_thread_works_and_two_are_there_again(
    x: np.ndarray, monkeypatch: pytest.MonkeyPatch, work: Callable[[np.ndarray], object], spied: type, name: str
) -> None:
    inside: list[set[int]] = []
    real = getattr(spied, name)

    def spy(*args: object, **options: object) -> object:
        inside.append(n_threads())
        return real(*args, **options)

    monkeypatch.setattr(spied, name, spy)
    before = n_threads()
    work(x)
    assert inside
    assert all(threads == {1} for threads in inside)
    assert n_threads() == before


@pytest.mark.parametrize("work", [solve("ridge"), lambda x: near_pairs(x, 0.9)])
def test_what_numpy_solves_gives_the_same_and_leaves_the_threads(
    x: np.ndarray, work: Callable[[np.ndarray], object]
) -> None:
    before = n_threads()
    work(x)
    assert n_threads() == before


def test_threads_are_there_again_after_an_error() -> None:
    @one_thread()
    def fail() -> None:
        raise ValueError(f"{n_threads()}")

    before = n_threads()
    with pytest.raises(ValueError, match=r"\{1\}"):
        fail()
    assert n_threads() == before
