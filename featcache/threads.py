"""How many threads linear algebra may use: one, for problems as small as those of heads and tables.

Threads of BLAS wait for each other after every product, and for a core where another process has it. On 5,840 × 1,280
vectors and two busy cores, one thread against two took a fifth of the time for logistic regression (0.5 s and 2.8 s), a
sixth for the eigenvectors of ridge (2.7 s and 18 s), a quarter for principal components, and as long for the nearest
neighbours. Nothing depends on OMP_NUM_THREADS.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for BLAS and OpenMP in a block, or in a function that it decorates; as before when that ends."""
    from threadpoolctl import threadpool_limits  # which looks through the loaded libraries

    with threadpool_limits(1):
        yield
