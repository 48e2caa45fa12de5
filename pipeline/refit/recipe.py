"""What the last model is trained by: an arm of a decision, or the chain of a stage run.

In: finished runs of one recipe. Out: settings that leave nothing to select. A stage of the refit
has as many epochs as were selected for that stage, the median over the runs: each image is met as
often as in the runs that were judged, so that more images make more optimizer steps. The rate
falls to zero over these epochs, and the last epoch is the result: no image is left to choose an
epoch by, and the test images must not be used for a choice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.runs.messages.words import stage_name
from pipeline.settings.run import Settings
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.history import chain_of
from pipeline.tracking.keys import SELECTED_EPOCH, STAGE


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A chain of stages that has been run before.

    Attributes:
        settings: of those runs, or of the first of them.
        last: number of the last stage.
        words: what the chain is called in a sentence.
        runs: of the last stage, on one draw or more.
    """

    settings: Settings
    last: int
    words: str
    runs: Sequence[RunView]

    def fixed(self, tracking: Tracking) -> Settings:
        """The settings with each stage's epochs, and the kind of BatchNorm statistics, fixed.

        Raises:
            LineageError: a parent of a run was deleted.
        """
        epochs: dict[int, list[int]] = defaultdict(list)
        for run in self.runs:
            for one in chain_of(tracking, run):
                epochs[one.number(STAGE)].append(int(one.metrics[SELECTED_EPOCH]))
        settings = self.settings
        for number, selected in epochs.items():
            fixed = {"epochs": max(1, round(median(selected))), "patience": 0}
            settings = settings.with_training(number, fixed)
        chosen = Counter(str(run.settings["norm_stats"]) for run in self.runs)
        return settings.model_copy(update={"norm_stats": chosen.most_common(1)[0][0]})

    @property
    def passes(self) -> str:
        """How long each stage trains, in words; of settings that are `fixed`."""
        numbers = range(1, self.last + 1)
        names = {n: stage_name(self.settings, n) for n in numbers}
        return ", ".join(f"{names[n]} {self.settings.training(n).epochs}" for n in numbers)
