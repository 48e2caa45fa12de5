"""Legends stand beside what is drawn, never on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.reporting.figures import ArmRow, comparison_picture, gains_picture
from pipeline.reporting.image_grids import pairs_of_pictures


def gains() -> Figure:
    values = list(np.random.default_rng(0).normal(1, 1, 40))
    looks = [(5, 0.6, 0.3, 0.1), (10, 0.9, 0.1, 0.0)]
    return gains_picture("a against b", values, 1.0, (0.2, 1.8), 0.5, looks)


def comparison() -> Figure:
    low, high = ([mean - 1.0, mean, mean + 1.0] for mean in (80.0, 82.0))
    rows = [
        ArmRow(name="full", values=low, mean=(80, 79, 81), difference=None),
        ArmRow(name="two_stage", values=high, mean=(82, 81, 83), difference=(2, 1, 3)),
    ]
    return comparison_picture("accuracy", rows, "full", 0.5)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_title_fits_above_few_pairs_as_above_many(count: int) -> None:
    picture = torch.zeros((3, 16, 16), dtype=torch.uint8)
    more = ", the nearest 12" if count == 12 else ""
    title = f"near duplicates: {count} pairs of images that are nearly the same and stand in two"
    figure = pairs_of_pictures(f"{title} parts{more}", [("a | b", picture, picture)] * count)
    FigureCanvasAgg(figure).draw()
    (shown,) = figure.texts
    assert figure.bbox.x0 <= shown.get_window_extent().x0
    assert shown.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("draw", [gains, comparison])
def test_a_legend_covers_nothing_that_is_drawn(draw: object) -> None:
    figure = draw()  # type: ignore[operator]
    FigureCanvasAgg(figure).draw()
    legends = 0
    for axes in figure.axes:
        if legend := axes.get_legend():
            legends += 1
            assert legend.get_window_extent().y0 >= axes.get_window_extent().y1
            assert legend.get_window_extent().y1 <= figure.bbox.y1
    assert legends
