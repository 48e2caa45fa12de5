"""Pictures of finished numbers: histories and plain sequences in, matplotlib figures out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.errors import PipelineError, first_line
from pipeline.tracking.history import History
from pipeline.tracking.keys import RISKS, TRAIN_ACC, TRAIN_LOSS, VAL_ACC, VAL_LOSS

TRAIN_COLOUR, VAL_COLOUR = "#5b8db8", "#c8553d"
BLOCK_COLOURS = ("#4c4c4c", "#c8553d", "#5b8db8", "#7aa974", "#b08cc0", "#d9a441")
"""Of blocks by their position from the head; deeper ones begin again with the second."""
PANELS = (
    ("cross-entropy (nats)", 1, TRAIN_LOSS, VAL_LOSS),
    ("accuracy (%)", 100, TRAIN_ACC, VAL_ACC),
)
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 3,
}
"""What every picture has, in matplotlib's own words."""
SIDE_BY_SIDE: dict[Any, Any] = STYLE | {
    "figure.constrained_layout.use": False,
    "figure.subplot.left": 0.08,
    "figure.subplot.right": 0.99,
    "figure.subplot.bottom": 0.15,
    "figure.subplot.top": 0.9,
    "figure.subplot.wspace": 0.24,
}
"""Of panels whose margins are known: to have matplotlib find them costs as much as to draw."""
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
"""Where a legend covers nothing that is drawn."""
MAX_LABELLED_CLASSES = 30
MAX_NUMBERED_CLASSES = 15


@contextmanager
def best_effort(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Pictures of a finished training: a picture that cannot be drawn becomes a note.

    Faults of the store are raised; letters that a font lacks are drawn as boxes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except PipelineError:
        raise
    except Exception as err:  # noqa: BLE001 - whatever matplotlib raises, the result stands
        say(f"note: {what} could not be drawn ({first_line(err)}): nothing else is missing")


@rc_context(SIDE_BY_SIDE)
def learning_curves(title: str, history: History) -> Figure:
    """Loss and accuracy by epoch, side by side; the selected epoch is marked."""
    figure = Figure(figsize=(9, 3.6))
    figure.suptitle(title)
    for axes, panel in zip(figure.subplots(1, 2), PANELS, strict=True):
        _plot_curves(axes, panel, history)
        selected = history.selected
        axes.axvline(selected, color="0.6", lw=1, ls="--", label=f"selected epoch {selected}")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].legend()
    return figure


@rc_context(SIDE_BY_SIDE | {"figure.subplot.top": 0.88})
def chain_curves(parts: Sequence[tuple[int, History]]) -> Figure:
    """Loss and accuracy of consecutive stages on one axis of epochs, stage boundaries marked.

    `parts`: each stage's number and history.
    """
    figure = Figure(figsize=(10, 3.8))
    figure.suptitle("from stage to stage")
    for axes, panel in zip(figure.subplots(1, 2), PANELS, strict=True):
        start = 0
        for number, history in parts:
            val = _plot_curves(axes, panel, history, start)[history.selected - 1]
            axes.plot(start + history.selected, val, "o", ms=9, mfc="none", color=VAL_COLOUR)
            if start:
                axes.axvline(start + 0.5, color="0.6", lw=1, ls="--")
            middle, above = start + len(history) / 2 + 0.5, axes.get_xaxis_transform()
            axes.text(
                middle, 1, f"stage {number}", transform=above, ha="center", va="bottom", fontsize=9
            )
            start += len(history)
        axes.set_xlabel("epoch of the chain")
    figure.axes[0].legend()
    return figure


def _plot_curves(
    axes: Axes, panel: tuple[str, int, str, str], history: History, start: int = 0
) -> NDArray[np.float64]:
    """Training and validation from the epoch after `start`; returns the validation's values."""
    label, scale, *names = panel
    for name, metric, colour in zip(
        ("training", "validation"), names, (TRAIN_COLOUR, VAL_COLOUR), strict=True
    ):
        values = scale * np.array(history[metric])
        axes.plot(
            start + _count(values), values, "o-", color=colour, label=None if start else name
        )
    axes.set_ylabel(label)
    return values


def _count(values: Sequence[object] | NDArray[np.float64]) -> NDArray[np.int64]:
    return np.arange(1, len(values) + 1)


@rc_context(SIDE_BY_SIDE | {"figure.subplot.wspace": 0.34})
def by_block(title: str, risks: Sequence[Mapping[str, float]]) -> Figure:
    """Drift, CKA and relative gradient of each block, by epoch, from `RiskMeter.read`."""
    figure = Figure(figsize=(11, 3.4))
    figure.suptitle(title)
    panels = {
        "drift": "relative weight drift",
        "cka": "CKA with the start",
        "grad_relative": "gradient norm / weight norm",
    }
    of_blocks = [name.removeprefix(RISKS) for name in risks[0] if name.startswith(RISKS)]
    blocks = [name.partition("/")[2] for name in of_blocks if name.startswith("drift/")]
    first, *others = BLOCK_COLOURS
    colours = dict(zip(reversed(blocks), chain([first], cycle(others)), strict=False))
    for axes, (kind, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in of_blocks:
            measure, _, block = name.partition("/")
            if measure == kind:
                values = [risk[f"{RISKS}{name}"] for risk in risks]
                axes.plot(_count(values), values, "o-", label=block, color=colours[block])
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_yscale("log")
    figure.axes[0].legend()
    return figure


@rc_context(STYLE | {"axes.spines.top": True, "axes.spines.right": True})
def confusion_matrix(title: str, matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Counts of true class (rows) against predicted class (columns), shaded by row share."""
    count = len(class_names)
    side = min(12.0, max(4.0, 1.8 + 0.42 * count))
    figure = Figure(figsize=(side + 0.8, side))
    axes = figure.subplots()
    # rows of classes without images stay 0
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if count <= MAX_LABELLED_CLASSES:
        # names are text, not TeX: `$10_$20`
        plain: dict[str, Any] = {"fontsize": 8, "parse_math": False}
        axes.set_xticks(range(count), class_names, rotation=45, ha="right", **plain)
        axes.set_yticks(range(count), class_names, **plain)
    if count <= MAX_NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            number = str(matrix[row, column])
            centred: dict[str, Any] = {"ha": "center", "va": "center", "in_layout": False}
            axes.text(column, row, number, fontsize=7, color=colour, **centred)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    return figure


@rc_context(STYLE)
def gains_picture(
    title: str,
    gains_pp: Sequence[float],
    mean_pp: float,
    interval_pp: tuple[float, float],
    rope_pp: float,
    path: Sequence[tuple[int, float, float, float]],
) -> Figure:
    """Every pair's gain with mean, interval and ROPE; beside it the looks.

    `path`: pairs, P(gain > ROPE), P(inside), P(gain < -ROPE) of each look.
    """
    figure = Figure(figsize=(9, 3.8))
    figure.suptitle(title)
    gains, looks = figure.subplots(1, 2, width_ratios=[3, 2])
    gains.axhspan(-rope_pp, rope_pp, color="0.9", label=f"not worth it (±{rope_pp:g} pp)")
    gains.axhspan(*interval_pp, color=TRAIN_COLOUR, alpha=0.25, label="95% interval of the mean")
    gains.axhline(mean_pp, color=TRAIN_COLOUR, lw=1.5, label=f"mean {mean_pp:+.2f} pp")
    gains.axhline(0, color="0.3", lw=0.8)
    gains.plot(_count(gains_pp), gains_pp, "o", ms=5, color=VAL_COLOUR, label="a pair")
    gains.set_xlabel("pair")
    gains.set_ylabel("gain on test images (pp)")
    gains.xaxis.get_major_locator().set_params(integer=True)
    gains.legend(ncols=2, **ABOVE)
    left = np.zeros(len(path))
    labels = [str(pairs) for pairs, *_ in path]
    parts = [
        ("harm", VAL_COLOUR, [below for *_, below in path]),
        ("equivalent", "0.8", [inside for _, _, inside, _ in path]),
        ("gain", TRAIN_COLOUR, [above for _, above, _, _ in path]),
    ]
    for name, colour, shares in parts:
        looks.barh(labels, shares, left=left, color=colour, label=name)
        left += np.asarray(shares)
    looks.set_xlim(0, 1)
    looks.set_xlabel("posterior probability")
    looks.set_ylabel("pairs at the look")
    looks.legend(ncols=3, **ABOVE)
    return figure


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm of a comparison, in per cent: its values by draw, (mean, low, high), difference.

    `difference`: to the baseline, (mean, low, high) in percentage points; None for the baseline.
    """

    name: str
    values: Sequence[float]
    mean: tuple[float, float, float]
    difference: tuple[float, float, float] | None


@rc_context(STYLE)
def comparison_picture(
    metric: str, rows: Sequence[ArmRow], baseline: str, rope_pp: float
) -> Figure:
    """Every arm's draws and interval by the metric; beside them differences to the baseline."""
    figure = Figure(figsize=(10, 1.2 + 0.4 * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    right.axvspan(-rope_pp, rope_pp, color="0.9", label=f"does not count (±{rope_pp:g} pp)")
    right.axvline(0, color="0.3", lw=0.8)
    for place, row in enumerate(rows):
        left.plot(row.values, [place] * len(row.values), "o", color="0.7")
        _interval(left, place, row.mean, VAL_COLOUR)
        if row.difference:
            _interval(right, place, row.difference, TRAIN_COLOUR)
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    left.invert_yaxis()
    left.set_xlabel(f"{metric} on test images (%), draws and 95% interval")
    right.set_xlabel(f"difference to {baseline} (pp), 95% interval")
    right.legend(**ABOVE)
    return figure


def _interval(axes: Axes, place: int, value: tuple[float, float, float], colour: str) -> None:
    mean, low, high = value
    axes.plot([low, high], [place, place], "-", lw=2, color=colour)
    axes.plot([mean], [place], "o", ms=6, color=colour)
