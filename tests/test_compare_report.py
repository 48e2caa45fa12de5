"""What a comparison's page says, from numbers alone: nothing is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from pipeline.comparing.compared import Compared
from pipeline.comparing.grid import compare_plan
from pipeline.comparing.pages.comparison import page_of
from pipeline.comparing.pairs.draws import Pool, pool_of
from pipeline.comparing.pairs.results import pair_keys
from pipeline.data.inspection.overlap import Counts
from pipeline.reporting.page import to_html
from pipeline.runs.floor import Floor
from pipeline.training.stage0 import KNN, LOGREG
from tests.helpers import request_of
from tests.reports import Html, tables_of_markdown
from tests.test_decision import result


def compared(*, resampled: bool, **options: str) -> Compared:
    """Two schedules on three draws."""
    own = {"preset": "cifar10_small", "schedules": "full,lp_ft", "draws": "3"}
    grid = compare_plan(request_of("compare", {**own, **options}))
    (arms,) = grid.arms.values()
    pool = Pool(
        resampled=resampled, correction=0.5 if resampled else 0.0, looks=(3,), sentence="pairs"
    )
    keys = pair_keys(pool, arms[0].settings)
    row = (result(0.7), result(0.8))
    results = {arms[0].settings.backbone: [row] * 3}
    return Compared(
        grid=grid,
        pool=pool,
        keys=keys,
        results=results,
        studies={},
        test=Counts(images=100, copies=0, seen=0),
        worth_pp=1.0,
        steps=[60, 60],
        wall_s=60.0,
    )


@pytest.mark.parametrize(
    ("resampled", "shown", "settings"),
    [
        (False, "Draws 0 to 2 of the shuffle data_seed 0, seeds 0 to 2.", {"data_seed": "0"}),
        (True, "First draws of the shuffles data_seed 1 to 3, seeds 0 to 2.", {}),
    ],
)
def test_the_page_names_the_images_that_were_used(
    resampled: bool, shown: str, settings: dict[str, str]
) -> None:
    page = page_of(compared(resampled=resampled))
    assert shown in page
    (table,) = (rows for rows in tables_of_markdown(page) if rows[0] == ["setting", "value"])
    found = {row[0]: row[1] for row in table if row[0] in ("draw", "data_seed", "seed")}
    assert found == settings


def test_the_page_shows_every_schedule_and_the_command() -> None:
    """Accuracies are known to one of 100 test images: s.d. 1 / 12^0.5, times 4.303 / 3^0.5.

    The difference is of 10 images, always the same, and holds for other images: with one added for
    each schedule (12 - 10^2 / 102) / 101 / 102 = 0.00107, its root 3.27 pp, times 1.960 is 6.41;
    with a Student-t of 2 degrees and the scale 1 / 12^0.5 / 3^0.5 = 0.17 pp beside it 6.47.
    """
    found = compared(resampled=False)
    page = page_of(replace(found, studies={("resnet18", "full"): ("one", "two")}))
    tables = tables_of_markdown(page)
    assert [row[:4] for row in tables[0][1:]] == [
        ["resnet18", "full", "70.00% (69.28 to 70.72)", ""],
        ["resnet18", "lp_ft", "80.00% (79.28 to 80.72)", "+10.00 (+3.53 to +16.47)"],
    ]
    assert tables[1][0] == ["", "full", "lp_ft"]
    assert [row[0] for row in tables[1][1:]] == ["full", "lp_ft"]
    assert tables[1][1][1] == tables[1][2][2] == ""
    assert tables[1][2][1].startswith("+10.00 (+3.53 to +16.47), P 0.999")
    assert tables[-1][1] == ["resnet18", "full", "one, two"]
    assert "\nmlflow run . -e compare --env-manager local " in page
    assert "\n\n\n" not in page


@pytest.mark.parametrize(
    ("metric", "words"),
    [("acc", "accuracy"), ("macro_f1", "macro F1"), ("balanced_acc", "balanced accuracy")],
)
def test_the_page_names_what_schedules_are_compared_by(metric: str, words: str) -> None:
    page = page_of(compared(resampled=False, metric=metric, baseline="lp_ft"))
    assert f"\n{words[:1].upper()}{words[1:]} on 100 test images" in page
    header = tables_of_markdown(page)[0][0]
    assert header[2:4] == [f"{words} (95%)", "minus lp_ft, pp (95%)"]


def test_stage_0_ahead_of_every_schedule_is_told_by_backbone() -> None:
    floor = Floor(chosen={KNN: 1, LOGREG: 0.1}, val={}, test={KNN: 0.7, LOGREG: 0.85})
    found = replace(compared(resampled=False), floors={"resnet18": floor})
    line = "! resnet18: logistic regression (C 0.1) on the frozen features, nothing trained, "
    assert line in (page := page_of(found))
    assert "full 70.00% and lp_ft 80.00%: " in page
    assert "\n\n\n" not in page
    level = replace(floor, test={KNN: 0.7, LOGREG: 0.8})
    assert "! resnet18" not in page_of(replace(found, floors={"resnet18": level}))


def test_a_picture_is_described_by_what_it_shows() -> None:
    page = page_of(compared(resampled=False))
    described = "comparison: full, lp_ft on resnet18"
    assert f"![{described}](figures/comparison.png)" in page
    shown = Html(to_html(page, {"figures/comparison.png": Figure()}))
    assert shown.text["title"] == shown.text["h1"] == "full, lp_ft on resnet18"
    ((_, source),) = shown.references
    assert source.startswith("data:image/png;base64,")
    assert shown.tables == tables_of_markdown(page)


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
