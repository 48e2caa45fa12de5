"""Pictures of images: a grid with captions, pairs, and how sure predictions are against how right.

In: pixels and texts, or `Bins`. Out: matplotlib figures, small when stored as JPEG.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.reporting.figures import STYLE, TRAIN_COLOUR, VAL_COLOUR
from pipeline.stats.calibration import Bins

SIDE = 96
"""Pixels of a small picture."""
COLUMNS = 6
PAIRS_A_ROW, PAIR_SIDE = 4, 136
_LETTERS, _LINES = 22, 4
"""What fits below a small picture: letters of a line, and lines that a long name may take."""
TITLE = 30
"""Pixels of a canvas's scale that a title takes."""
PLACED: dict[Any, Any] = STYLE | {"figure.constrained_layout.use": False}
"""Of figures that say themselves where everything stands."""


@dataclass(frozen=True)
class Row:
    """Images under one heading: pixels uint8, (N, 3, S, S), and a caption for each."""

    heading: str
    pixels: Tensor
    captions: Sequence[str]


def small(pixels: Tensor, side: int = SIDE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (N, 3, S, S) as small pictures, uint8 (N, side, side, 3); pixels stay squares."""
    grown = pixels.shape[-1] <= side
    mode = {"mode": "nearest"} if grown else {"mode": "bilinear", "antialias": True}
    resized = torch.nn.functional.interpolate(pixels.float(), size=(side, side), **mode)
    found: np.ndarray[Any, np.dtype[np.uint8]] = (
        resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    )
    return found


def caption(text: str) -> str:
    """The text in lines that fit below a small picture; what needs too many lines ends in `…`."""
    found = []
    for line in text.split("\n"):
        found += textwrap.wrap(line, _LETTERS, max_lines=_LINES, placeholder="…") or [""]
    return "\n".join(found)


def _sheet(height: int, width: int) -> tuple[Figure, Axes]:
    """An empty figure for a canvas of so many pixels, which its axes fill below a title.

    One set of axes holds all pictures: a set for each picture takes seconds.
    """
    figure = Figure(figsize=(width / 80, (height + TITLE) / 80), dpi=100)
    axes = figure.add_axes((0, 0, 1, height / (height + TITLE)))
    axes.axis("off")
    return figure, axes


@rc_context(PLACED)
def image_grid(title: str, rows: Sequence[Row]) -> Figure:
    """Small pictures with captions below, headings above; every row is as wide as it needs."""
    lines = [math.ceil(len(row.pixels) / COLUMNS) for row in rows]
    captions = [[caption(text) for text in row.captions] for row in rows]
    text = 1 + max((c.count("\n") for row in captions for c in row), default=0)
    cell, head = SIDE + 13 * text + 8, 24
    height = sum(
        n * cell + (head if row.heading else 0) for n, row in zip(lines, rows, strict=True)
    )
    width = COLUMNS * (SIDE + 12)
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    figure, axes = _sheet(height, width)
    axes.set_title(title, parse_math=False)
    plain: dict[str, Any] = {"fontsize": 7, "va": "top", "ha": "center", "parse_math": False}
    top = 0
    for row, count, below in zip(rows, lines, captions, strict=True):
        if row.heading:
            axes.text(2, top + 4, row.heading, **{**plain, "fontsize": 9, "ha": "left"})
            top += head
        for number, picture in enumerate(small(row.pixels)):
            y = top + number // COLUMNS * cell
            x = number % COLUMNS * (SIDE + 12) + 6
            canvas[y : y + SIDE, x : x + SIDE] = picture
            axes.text(x + SIDE / 2, y + SIDE + 2, below[number], **plain)
        top += count * cell
    axes.imshow(canvas, interpolation="nearest")
    return figure


@rc_context(PLACED)
def pairs_of_pictures(title: str, pairs: Sequence[tuple[str, Tensor, Tensor]]) -> Figure:
    """Pairs side by side, `PAIRS_A_ROW` in a row.

    `pairs`: words, and two pictures of one size, uint8, (3, S, S).
    """
    columns = min(PAIRS_A_ROW, max(2, len(pairs)))  # one alone is too narrow for the title
    gap, head = 8, 30
    wide, high = 2 * (PAIR_SIDE + gap), PAIR_SIDE + head
    canvas = np.full((-(-len(pairs) // columns) * high, columns * wide, 3), 255, dtype=np.uint8)
    figure, axes = _sheet(*canvas.shape[:2])
    figure.suptitle(title)
    for number, (words, *both) in enumerate(pairs):
        top, left = number // columns * high + head, number % columns * wide + gap // 2
        for place, picture in enumerate(small(torch.stack(both), PAIR_SIDE)):
            x = left + place * (PAIR_SIDE + gap)
            canvas[top : top + PAIR_SIDE, x : x + PAIR_SIDE] = picture
        centred: dict[str, Any] = {"fontsize": 8, "va": "bottom", "ha": "center"}
        centred |= {"parse_math": False}
        axes.text(left + PAIR_SIDE + gap / 2, top - 3, words, **centred)
    axes.imshow(canvas, interpolation="nearest")
    return figure


@rc_context(PLACED)
def reliability_diagram(title: str, bins: Bins) -> Figure:
    """How often predictions are right, by how sure they are; below, how many there are."""
    figure = Figure(figsize=(4.8, 5.2))
    figure.suptitle(f"{title}: calibration error {bins.error:.1%}")
    where = {"left": 0.12, "right": 0.98, "bottom": 0.09, "top": 0.94, "hspace": 0.08}
    upper, lower = figure.subplots(
        2, 1, sharex=True, height_ratios=[4, 1], gridspec_kw=dict[str, Any](where)
    )
    upper.plot([0, 1], [0, 1], "--", color="0.6", lw=1, label="as sure as right")
    upper.vlines(bins.confidence, bins.confidence, bins.accuracy, color=VAL_COLOUR, lw=1)
    upper.plot(bins.confidence, bins.accuracy, "o-", ms=5, color=TRAIN_COLOUR, label="predictions")
    upper.set_ylabel("share that is right")
    upper.set_ylim(0, 1.02)
    upper.legend(loc="upper left")
    lower.bar(bins.confidence, bins.counts, width=0.04, color=TRAIN_COLOUR)
    lower.set_ylabel("images")
    lower.set_xlabel("probability of the predicted class")
    lower.set_xlim(0, 1.02)
    return figure
