"""The picture of a run's signals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from pipeline.reporting.figures import TRAIN_COLOUR, VAL_COLOUR
from pipeline.signals.readings import Signal


def signal_table(signals: Sequence[Signal]) -> Figure:
    """Each signal's name, state and sentence; good news blue, bad news red, unknown grey."""
    figure = Figure(figsize=(11, 0.2 + 0.5 * len(signals)), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set_ylim(len(signals), 0)
    axes.set_xlim(0, 1)
    for row, signal in enumerate(signals):
        wanted = "true" if signal.name.startswith("positive") else "false"
        good = TRAIN_COLOUR if signal.state == wanted else VAL_COLOUR
        colour = "0.5" if signal.state == "unknown" else good
        middle = row + 0.5
        axes.text(0.0, middle, signal.name, va="center", fontsize=9)
        axes.text(0.27, middle, signal.state, va="center", fontsize=9, color=colour, weight="bold")
        sentence = textwrap.fill(signal.sentence, 88)
        axes.text(0.36, middle, sentence, va="center", fontsize=8, linespacing=1.2)
        axes.axhline(row, color="0.85", lw=0.8)
    return figure
