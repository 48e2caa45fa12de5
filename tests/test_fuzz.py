"""Damaged bytes are read or refused in one line, whatever reads them; nothing else happens."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing import DAMAGES, Damage, survives, targets

EXAMPLES = {"image": 2000, "parquet": 500, "labels": 1200, "weights": 400, "yaml": 2000}
"""Some ten seconds of each; `benchmarks/fuzz.py` goes on for as long as it is told."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_damaged_bytes_are_read_or_refused(name: str, tmp_path: Path) -> None:
    target = targets(tmp_path)[name]
    survived = {"read": 0, "refused": 0}

    @settings(
        max_examples=EXAMPLES[name],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(target.whole)), DAMAGES)
    def tried(part: str, damages: list[Damage]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            survived[survives(target, part, damages)] += 1

    tried()
    assert survived["read"] > 0
    assert survived["refused"] > 0
