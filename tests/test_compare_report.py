"""What a comparison's page says, from numbers alone: nothing is trained."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from pipeline.comparing.comparison_page import page_of
from pipeline.comparing.draws import Pool, pool_of
from pipeline.comparing.grid import grid_of
from pipeline.comparing.pairs import ArmResult, ChainCost, pair_keys
from pipeline.comparing.results import Compared
from pipeline.data.overlap import Counts
from pipeline.reporting.page import Table, to_html, to_markdown
from tests.helpers import request_of


def compared(*, resampled: bool) -> Compared:
    """Two schedules on three draws."""
    grid = grid_of(
        request_of("compare", {"preset": "cifar10_small", "schedules": "full,lp_ft", "draws": "3"})
    )
    (arms,) = grid.arms.values()
    pool = Pool(0, resampled, 0.5 if resampled else 0.0, (3,), "pairs")
    keys = pair_keys(pool, arms[0].settings)
    cost = ChainCost(training_s=3.0, prefix_s=1.0, trained=1000, peak_mib=10.0)
    accs = 0.7, 0.8
    row = tuple(ArmResult("a-run", acc, acc, cost) for acc in accs)
    results = {arms[0].settings.backbone: [row] * 3}
    return Compared(grid, pool, keys, results, {}, Counts(100, 0, 0), [60, 60], 60.0)


@pytest.mark.parametrize(
    ("resampled", "shown", "settings"),
    [
        (False, "Draws 0 to 2 of the shuffle data_seed 0, seeds 0 to 2.", ["data_seed", "0"]),
        (True, "First draws of the shuffles data_seed 1 to 3, seeds 0 to 2.", None),
    ],
)
def test_the_page_names_the_images_that_were_used(
    resampled: bool, shown: str, settings: list[str] | None
) -> None:
    page = page_of(compared(resampled=resampled))
    assert shown in to_markdown(page)
    rows = [list(row) for part in page if isinstance(part, Table) for row in part.rows]
    found = [row for row in rows if row[0] in ("draw", "data_seed", "seed")]
    assert found == ([settings] if settings else [])


def test_a_picture_is_described_by_what_it_shows() -> None:
    page = page_of(compared(resampled=False))
    described = "comparison: full, lp_ft on resnet18"
    assert f"![{described}](figures/comparison.png)" in to_markdown(page)
    assert f'<img alt="{described}" src="data:image/png' in to_html(page, Figure())


@pytest.mark.parametrize(
    ("reserved", "sentence"),
    [
        (0, "the pool holds 1 disjoint draw, 2 are needed"),
        (1, "the pool holds 0 disjoint draws beyond those used for tuning, 2 are needed"),
    ],
)
def test_a_pool_holds_a_draw_or_draws(reserved: int, sentence: str) -> None:
    (arms,) = compared(resampled=False).grid.arms.values()
    pool = pool_of(arms[0].settings, (2,), reserved=reserved, held=1, share=0.5)
    assert pool.sentence.startswith(sentence)
