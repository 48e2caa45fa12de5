"""Pictures of finished numbers: plain sequences in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

TRAIN_COLOUR, VAL_COLOUR = "#5b8db8", "#c8553d"
MAX_LABELLED_CLASSES = 30
MAX_NUMBERED_CLASSES = 15


def learning_curves(
    title: str,
    train_loss: Sequence[float],
    val_loss: Sequence[float],
    train_acc: Sequence[float],
    val_acc: Sequence[float],
    selected: int,
) -> Figure:
    """Loss and accuracy (0 to 1) by epoch, side by side; `selected` (from 1) is marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    loss_axes, acc_axes = figure.subplots(1, 2)
    epochs = np.arange(1, len(train_loss) + 1)
    panels = [
        (loss_axes, "cross-entropy (nats)", np.asarray(train_loss), np.asarray(val_loss)),
        (acc_axes, "accuracy (%)", np.asarray(train_acc) * 100, np.asarray(val_acc) * 100),
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
        axes.set_xticks(range(count), class_names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(count), class_names, fontsize=8)
    if count <= MAX_NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            number = str(matrix[row, column])
            axes.text(column, row, number, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=11)
    return figure
