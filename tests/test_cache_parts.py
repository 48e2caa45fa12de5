"""Half-written files of the cache: those of dead writers go, wherever these were at work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipeline.system.disk.cache_parts import ABANDONED_AFTER_S, is_left_behind, touch
from pipeline.system.processes import owner_mark
from pipeline.system.variables import LEASE
from tests.test_leases import until

ELSEWHERE = f"{'0' * 16}-1-1"


@pytest.mark.parametrize("ending", ["tmp", "about"])
def test_a_part_from_elsewhere_is_left_behind_once_it_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setenv(LEASE, "0.1")
    part, own = (tmp_path / f"key.{mark}.{ending}" for mark in (ELSEWHERE, owner_mark()))
    part.touch()
    own.touch()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        touch([part])
        assert not is_left_behind(part)
        time.sleep(0.005)
    until(lambda: is_left_behind(part))
    assert not is_left_behind(own)  # its writer lives, however slow
    long_ago = time.time() - 2 * ABANDONED_AFTER_S
    os.utime(own, (long_ago, long_ago))
    assert not is_left_behind(own)
    part.unlink()
    assert not is_left_behind(part)
