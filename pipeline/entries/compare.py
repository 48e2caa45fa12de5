"""Entry point compare: which schedule, on which backbone? Paired draws, equal optimizer steps.

In: a `Grid`. Out: a `Compared`, its report on an MLflow run of its own, and the runs nested in
that run. Finished runs are found by content: an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

from pipeline.comparing.arms import Arm, differences
from pipeline.comparing.compared import Compared
from pipeline.comparing.cost import equal_steps
from pipeline.comparing.estimate import estimate
from pipeline.comparing.grid import Grid, explicit_keys_of_arm
from pipeline.comparing.pages.comparison import log_comparison
from pipeline.comparing.pairs.results import Results
from pipeline.comparing.pairs.tasks import run_all
from pipeline.data.inspection.overlap import Overlap
from pipeline.entries.pairs.setup import PairSetup
from pipeline.runs.command import Command
from pipeline.runs.floor import Floor
from pipeline.runs.messages.words import minutes
from pipeline.settings.describe import without_thresholds
from pipeline.settings.run import plain_values
from pipeline.signals.evidence import refresh_siblings
from pipeline.system.progress import doing
from pipeline.system.text import count_of

OF_AN_ARM = ("schedule", "backbone", "weights", "draw", "seed")
"""Settings in which arms, or their draws, differ."""
ENOUGH_DRAWS = 5
"""Where this many disjoint draws are left, they are taken instead of more that are resampled."""


def compare_entry(command: Command, grid: Grid) -> Compared:
    """Entry point compare."""
    started, draws = time.perf_counter(), grid.compare.draws
    with PairSetup.open(
        command,
        [arms[0].settings for arms in grid.arms.values()],
        tuple(sorted({min(draws, ENOUGH_DRAWS), draws})),
        reserved=grid.tune.draws if command.tuned else 0,
        asked="draws",
        tasks=grid.tune,
    ) as setup:
        setup.check(setup.keys)
        _forecast(grid, setup)
        name = f"comparison · {setup.source.name} · {', '.join(grid.arms)}"
        values = plain_values(setup.settings, ()).items()
        params = {k: v for k, v in without_thresholds(dict(values)).items() if k not in OF_AN_ARM}
        params |= {**grid.compare.model_dump(), "backbones": ",".join(grid.arms)}
        steps = equal_steps(_all_arms(grid), setup.images)
        with setup.run("comparison", name, params) as log:
            grid, studies = _tuned(grid, setup)
            results, overlap, floors = _run_draws(grid, setup, log.run_id)
            compared = Compared(
                grid=grid,
                pool=setup.pool,
                keys=setup.keys,
                results=results,
                studies=studies,
                test=overlap.counts,
                worth_pp=setup.worth_pp(grid.compare.metric),
                steps=steps,
                wall_s=time.perf_counter() - started,
                floors=floors,
            )
            refresh_siblings(setup.tracking, command.say)
            with doing("writing the report"):
                log_comparison(compared, log, command.say)
    return compared


def _all_arms(grid: Grid) -> list[Arm]:
    return [arm for arms in grid.arms.values() for arm in arms]


def _forecast(grid: Grid, setup: PairSetup) -> None:
    """Tell what is compared and what it costs, before anything is spent."""
    say, draws, images = setup.command.say, len(setup.keys), len(setup.overlap.test)
    names = [arm.name for arm in next(iter(grid.arms.values()))]
    compared = f"{', '.join(names)} on {', '.join(grid.arms)}:"
    setup.announce(compared, _all_arms(grid), grid.compare.metric, f", {count_of(draws, 'draw')}")
    for line, backbones in _apart(grid).items():
        own = "" if len(backbones) == len(grid.arms) else f" ({', '.join(backbones)})"
        say(f"note: {line}{own}")
    for line in grid.unheeded:
        say(line)
    total = 0.0
    for backbone, arms in grid.arms.items():
        cost = estimate(arms, images, setup.tracking, setup.cluster)
        total += cost.seconds(draws)
        say(f"{backbone}: a draw takes about {cost.mean_s:.0f} s here{cost.beside}")
    tuning = ", tuning not counted" if setup.command.tuned else ""
    say(
        f"all of it takes about {minutes(total)}{tuning}; what has been run before costs nothing\n"
    )


def _apart(grid: Grid) -> dict[str, list[str]]:
    """How last stages differ from those of the first schedule, and with which backbones."""
    found: dict[str, list[str]] = {}
    for backbone, (baseline, *others) in grid.arms.items():
        for arm in others:
            if apart := differences(arm, baseline):
                line = f"the last stages of {arm.name} and {baseline.name}: {', '.join(apart)}"
                found.setdefault(line, []).append(backbone)
    return found


def _tuned(grid: Grid, setup: PairSetup) -> tuple[Grid, Mapping[tuple[str, str], tuple[str, ...]]]:
    """The grid with tuned settings, and the studies of each arm, where tuning is asked for.

    Every arm has the same number of trials, shared out over its stages and rounded up. No study
    tunes epochs or batch size, so that steps stay equal.
    """
    if not setup.command.tuned:
        return grid, {}
    from pipeline.tuning.tune_arm import tune_arm

    studies: dict[tuple[str, str], tuple[str, ...]] = {}
    tuned: dict[str, list[Arm]] = {}
    for backbone, arms in grid.arms.items():
        for arm in arms:
            trials = math.ceil(grid.tune.n_trials / arm.last)
            tune = grid.tune.model_copy(update={"n_trials": trials})
            stages = range(1, arm.last + 1)
            kept = {
                n: {"epochs", "batch_size", *explicit_keys_of_arm(grid, arm, n)} for n in stages
            }
            done = tune_arm(setup.command, setup.tracking, tune, arm, kept, setup.cluster)
            tuned.setdefault(backbone, []).append(done.arm)
            studies[backbone, arm.name] = tuple(done.studies.values())
    return replace(grid, arms={name: tuple(arms) for name, arms in tuned.items()}), studies


def _run_draws(
    grid: Grid, setup: PairSetup, run_id: str
) -> tuple[dict[str, list[Results]], Overlap, dict[str, Floor]]:
    """By backbone results and stage 0; how images of all draws overlap with the test images."""
    found, overlap = {}, setup.overlap
    floors: dict[str, Floor] = {}
    for backbone, arms in grid.arms.items():

        def tell(_: int, pair: str, results: Results, name: str = backbone) -> str:
            both = zip(grid.arms[name], results, strict=True)
            shown = ", ".join(f"{arm.name} {result.test:.2%}" for arm, result in both)
            return f"{name}, {pair}: {shown}"

        runner = setup.runner(arms, overlap, grid.compare.metric, run_id, tell, "draw")
        found[backbone] = run_all(runner, setup.keys, setup.cluster)
        overlap = runner.overlap
        floor = runner.floor(setup.keys[0], arms[0])
        floors |= {backbone: floor} if floor else {}
    return found, overlap, floors
