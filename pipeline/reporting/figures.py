"""Pictures of finished numbers: histories and plain sequences in, matplotlib figures out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.errors import PipelineError, first_line
from pipeline.tracking.history import History
from pipeline.tracking.keys import TRAIN_ACC, TRAIN_LOSS, VAL_ACC, VAL_LOSS

TRAIN_COLOUR, VAL_COLOUR = "#5b8db8", "#c8553d"
BLOCK_COLOURS = {
    "head": "#4c4c4c",
    "block4": "#c8553d",
    "block3": "#5b8db8",
    "block2": "#7aa974",
    "block1": "#b08cc0",
    "stem": "#d9a441",
}
MAX_LABELLED_CLASSES = 30
MAX_NUMBERED_CLASSES = 15


@contextmanager
def best_effort(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Pictures of a training that is over: one that cannot be drawn is a note, and no more.

    Faults of the store are raised as ever; letters that a font lacks are drawn as boxes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except PipelineError:
        raise
    except Exception as err:  # noqa: BLE001 - whatever matplotlib raises, the result stands
        say(f"note: {what} could not be drawn ({first_line(err)}): nothing else is missing")


def learning_curves(title: str, history: History) -> Figure:
    """Loss and accuracy by epoch, side by side; the selected epoch is marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    loss_axes, acc_axes = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    selected = history.selected
    panels = [
        (loss_axes, "cross-entropy (nats)", *_losses(history)),
        (acc_axes, "accuracy (%)", *_accuracies(history)),
    ]
    for axes, label, train, val in panels:
        axes.plot(epochs, train, "o-", ms=3, color=TRAIN_COLOUR, label="training")
        axes.plot(epochs, val, "o-", ms=3, color=VAL_COLOUR, label="validation")
        axes.axvline(selected, color="0.6", lw=1, ls="--", label=f"selected epoch {selected}")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    loss_axes.legend(frameon=False, fontsize=8)
    return figure


def _losses(history: History) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array(history[TRAIN_LOSS]), np.array(history[VAL_LOSS])


def _accuracies(history: History) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return 100 * np.array(history[TRAIN_ACC]), 100 * np.array(history[VAL_ACC])


def chain_curves(parts: Sequence[tuple[int, History]]) -> Figure:
    """Loss and accuracy of consecutive stages on one axis of epochs, stage boundaries marked.

    `parts`: each stage's number and history.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    figure.suptitle("from stage to stage", fontsize=11)
    loss_axes, acc_axes = figure.subplots(1, 2)
    for axes, label in ((loss_axes, "cross-entropy (nats)"), (acc_axes, "accuracy (%)")):
        axes.set_xlabel("epoch of the chain")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    start = 0
    for number, history in parts:
        epochs = start + np.arange(1, len(history) + 1)
        panels = [(loss_axes, *_losses(history)), (acc_axes, *_accuracies(history))]
        for axes, train, val in panels:
            named = {"training": train, "validation": val}
            for (name, values), colour in zip(
                named.items(), (TRAIN_COLOUR, VAL_COLOUR), strict=True
            ):
                axes.plot(epochs, values, "o-", ms=3, color=colour)
                if not start:
                    axes.lines[-1].set_label(name)
            marked = val[history.selected - 1]
            axes.plot(start + history.selected, marked, "o", ms=9, mfc="none", color=VAL_COLOUR)
            if start:
                axes.axvline(start + 0.5, color="0.6", lw=1, ls="--")
            axes.text(
                start + len(epochs) / 2 + 0.5,
                1.0,
                f"stage {number}",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=9,
            )
        start += len(epochs)
    loss_axes.legend(frameon=False, fontsize=8)
    return figure


def by_block(title: str, risks: Sequence[Mapping[str, float]]) -> Figure:
    """Drift, CKA and relative gradient of each block, by epoch, from `RiskMeter.read`."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = {
        "drift": "relative weight drift",
        "cka": "CKA with the start",
        "grad_relative": "gradient norm / weight norm",
    }
    epochs = np.arange(1, len(risks) + 1)
    for axes, (kind, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in risks[0]:
            measure, _, block = name.partition("/")
            if measure == kind:
                values = [risk[name] for risk in risks]
                axes.plot(
                    epochs, values, "o-", ms=3, label=block, color=BLOCK_COLOURS.get(block, "0.4")
                )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        if kind == "grad_relative":
            axes.set_yscale("log")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def confusion_matrix(title: str, matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Counts of true class (rows) against predicted class (columns), shaded by row share."""
    count = len(class_names)
    side = min(12.0, max(4.0, 1.8 + 0.42 * count))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
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
            axes.text(column, row, number, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=11)
    return figure


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
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    gains, looks = figure.subplots(1, 2, width_ratios=[3, 2])
    numbers = np.arange(1, len(gains_pp) + 1)
    gains.axhspan(-rope_pp, rope_pp, color="0.9", label=f"not worth it (±{rope_pp:g} pp)")
    gains.axhspan(*interval_pp, color=TRAIN_COLOUR, alpha=0.25, label="95% interval of the mean")
    gains.axhline(mean_pp, color=TRAIN_COLOUR, lw=1.5, label=f"mean {mean_pp:+.2f} pp")
    gains.axhline(0, color="0.3", lw=0.8)
    gains.plot(numbers, gains_pp, "o", ms=5, color=VAL_COLOUR, label="a pair")
    gains.set_xlabel("pair")
    gains.set_ylabel("gain on test images (pp)")
    gains.xaxis.get_major_locator().set_params(integer=True)
    gains.legend(frameon=False, fontsize=8)
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
    looks.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for axes in (gains, looks):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@dataclass(frozen=True)
class ArmRow:
    """One arm of a comparison, in per cent: its values by draw, (mean, low, high), difference.

    `difference`: to the baseline, (mean, low, high) in percentage points; None for the baseline.
    """

    name: str
    values: Sequence[float]
    mean: tuple[float, float, float]
    difference: tuple[float, float, float] | None


def comparison_picture(
    metric: str, rows: Sequence[ArmRow], baseline: str, rope_pp: float
) -> Figure:
    """Every arm's draws and interval by the metric; beside them differences to the baseline."""
    figure = Figure(figsize=(10, 1.2 + 0.4 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    right.axvspan(-rope_pp, rope_pp, color="0.9", label=f"does not count (±{rope_pp:g} pp)")
    right.axvline(0, color="0.3", lw=0.8)
    for place, row in enumerate(rows):
        left.plot(row.values, [place] * len(row.values), "o", ms=3, color="0.7")
        _interval(left, place, row.mean, VAL_COLOUR)
        if row.difference:
            _interval(right, place, row.difference, TRAIN_COLOUR)
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    left.invert_yaxis()
    left.set_xlabel(f"{metric} on test images (%), draws and 95% interval")
    right.set_xlabel(f"difference to {baseline} (pp), 95% interval")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _interval(axes: Axes, place: int, value: tuple[float, float, float], colour: str) -> None:
    mean, low, high = value
    axes.plot([low, high], [place, place], "-", lw=2, color=colour)
    axes.plot([mean], [place], "o", ms=6, color=colour)
