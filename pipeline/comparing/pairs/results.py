"""Paired runs: all arms of a comparison on the same draw, with the same seed, on the same images.

In: a pool of draws. Out: the numbers of pairs, and how their results are kept. How they are run:
`runner.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.comparing.pairs.draws import Pool
from pipeline.data.images import IntArray
from pipeline.runs.findings.predictions import Correct, Predicted
from pipeline.runs.floor import Floor
from pipeline.runs.messages.origins import Origins
from pipeline.settings.run import Settings
from pipeline.stats.metrics import BALANCED, DEFAULT_SHARE


@dataclass(frozen=True, kw_only=True)
class PairKey:
    """Where a pair's images and randomness come from."""

    number: int
    draw: int
    data_seed: int
    seed: int

    def apply(self, settings: Settings) -> Settings:
        """The same settings on this pair's images, with its seed."""
        own = {"draw": self.draw, "data_seed": self.data_seed, "seed": self.seed}
        return settings.model_copy(update=own)


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm on one pair: its last run, and what all its stages cost together.

    Attributes:
        val: the comparison's metric on the validation images, at the selected epoch; 0 to 1.
        test: the same on the test images.
        training_s: without the frozen prefix.
        prefix_s: for the frozen prefix, which the first arm to need it pays for all.
        parameters_trained: parameters of the largest stage.
        peak_mib: the largest stage's peak memory; NaN where it could not be measured.
        correct: which test images the run recognises.
        predicted: the class that it takes each of them for; None where it answers nothing.
        origins: what computed the run, and its parents after it.
        diverged: no epoch had a finite loss: the run answers nothing.
    """

    run_id: str
    val: float
    test: float
    training_s: float
    prefix_s: float
    parameters_trained: int
    peak_mib: float
    correct: Correct = field(repr=False, compare=False)
    predicted: Predicted | None = field(default=None, repr=False, compare=False)
    origins: Origins = field(default_factory=dict, repr=False, compare=False)
    diverged: bool = False


SEED_STEP = 1000
"""Between the seeds of a draw: further than draws go, whose seeds are 1 apart."""

Results = tuple[ArmResult, ...]
"""Of every arm on one draw, in the arms' order."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a pair came to, wherever it was run.

    Attributes:
        reused: no arm was trained for it.
        seen: the test images that the pair's draw has a copy of, (N,).
        left_out: images of the draw that cannot be read.
        recipes: of the runs, whose siblings are to be brought up to date.
    """

    results: Results
    reused: bool
    seen: Correct
    left_out: frozenset[str]
    recipes: frozenset[str]


@dataclass(frozen=True)
class Pair:
    """Both arms on one draw."""

    key: PairKey
    treatment: ArmResult
    control: ArmResult

    @property
    def gain_pp(self) -> float:
        """The treatment on the test images minus the control, in points; equal ones are equal."""
        return round(100 * (self.treatment.test - self.control.test), 3)  # stored to six digits


def label_of(number: int, seeds: int) -> str:
    """A pair's number as people count; with several seeds the draw's and the seed's."""
    return f"{number // seeds + 1}" + (f".{number % seeds + 1}" if seeds > 1 else "")


def resolution_pp(labels: IntArray, metric: str) -> float:
    """What one test image is worth at most; gains in accuracy are multiples of this.

    `labels`: of the test images, (N,). Other metrics count classes alike, so that an image of the
    smallest class is worth most.
    """
    sizes = np.bincount(labels)
    there = sizes[sizes > 0]
    return 100 / (len(labels) if metric == DEFAULT_SHARE else len(there) * int(there.min()))


def stage0_ahead_of(
    floor: Floor | None, arms: Mapping[str, ArmResult], metric: str, tuned: str
) -> str:
    """A line where stage 0 is ahead of every arm on the first draw; else empty.

    By balanced accuracy where the arms are held against each other by that, else by accuracy.
    `arms`: results on that draw, by the arms' words. `tuned`: the option that tunes the arms.
    """
    by_class = metric == BALANCED
    reached = {
        words: one.test if by_class else float(one.correct.mean()) for words, one in arms.items()
    }
    todo = f"see to the training first: other rates, more epochs (-P lr=, -P epochs=), or {tuned}"
    where = "the test images (first draw)"
    return floor.ahead_of(reached, where, todo, balanced=by_class) if floor else ""


def pair_keys(pool: Pool, settings: Settings, seeds: int = 1) -> list[PairKey]:
    """The pairs of a comparison, up to the pool's last look; each draw has so many seeds.

    Disjoint: draw after draw of one shuffle. Resampled: the first draw of a new shuffle for each
    pair, so that pairs share images; the shuffle by `data_seed` itself is left to tuning. The seed
    moves on with the images, and a draw has the same seed however many draws tuning has used
    before it: its runs can be reused. Further seeds of a draw are `SEED_STEP` apart.
    """
    used = 0 if pool.resampled else pool.first_draw - settings.draw
    return [
        PairKey(
            number=n * seeds + further,
            draw=0 if pool.resampled else pool.first_draw + n,
            data_seed=settings.data_seed + (1 + n if pool.resampled else 0),
            seed=settings.seed + used + n + further * SEED_STEP,
        )
        for n in range(pool.looks[-1])
        for further in range(seeds)
    ]
