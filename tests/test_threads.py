"""Small mathematics takes one thread, and what comes after it as many as before."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_info

from pipeline.system.threads import one_thread


def test_one_thread_computes_within_and_as_many_as_before_afterwards() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info()]

    before, of_torch = threads(), torch.get_num_threads()
    with one_thread():
        assert set(threads()) == {1}
    assert threads() == before
    assert torch.get_num_threads() == of_torch
