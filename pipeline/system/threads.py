"""How many threads compute: scikit-learn's mathematics, and torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute what is small by one thread.

    A classifier of a thousand images is thousands of small products: threads that share each of
    them mostly wait for one another, and with other work beside them ten times as long.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


@contextmanager
def computing_by(threads: int) -> Iterator[None]:
    """Have torch compute by so many threads; 0: by as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
