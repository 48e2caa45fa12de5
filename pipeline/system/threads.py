"""How many threads scikit-learn's mathematics takes."""

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
