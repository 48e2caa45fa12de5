"""Entry point compare: which schedule, on which backbone? Paired draws, equal optimizer steps.

In: what was typed. Out: a `Compared`, its report on an MLflow run of its own, the runs nested in
it. What was run before is found by content: an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from pipeline.comparing.arms import Arm
from pipeline.comparing.comparison_page import log_comparison
from pipeline.comparing.cost import equal_steps, seconds_a_draw, shown_steps
from pipeline.comparing.grid import Grid, explicit_keys_of_arm
from pipeline.comparing.pairs import Results
from pipeline.comparing.results import Compared
from pipeline.data.overlap import Overlap
from pipeline.entries.desk import Desk
from pipeline.runs.command import Command
from pipeline.runs.summary import minutes
from pipeline.settings.run import plain_values
from pipeline.signals.evidence import refresh_siblings
from pipeline.stats.metrics import METRICS
from pipeline.tracking import Tracking
from pipeline.tracking.keys import KIND

OF_AN_ARM = ("schedule", "backbone", "weights", "draw", "seed")
"""Settings in which arms, or their draws, differ."""
ENOUGH_DRAWS = 5
"""With so many disjoint draws left, fewer than asked for are better than resampled ones."""


def compare_entry(command: Command, grid: Grid) -> Compared | None:
    """Entry point compare; None where this process only took part in another's comparison."""
    started = time.perf_counter()
    tracking, draws = Tracking.connect(), grid.compare.draws
    with tracking.explained():
        desk = Desk.open(
            command,
            tracking,
            [arms[0].settings for arms in grid.arms.values()],
            tuple(sorted({min(draws, ENOUGH_DRAWS), draws})),
            reserved=grid.tune.draws if command.tuned else 0,
            asked="draws",
        )
        if command.joins:
            grid, _ = _tuned(grid, desk)
            _walk(grid, desk, command.joins)
            return None
        desk.check(desk.keys)
        steps = _tell_beforehand(grid, desk)
        name = f"comparison · {desk.source.name} · {', '.join(grid.arms)}"
        with tracking.run(name, {KIND: "comparison"}, target=True) as log:
            values = plain_values(desk.settings, ()).items()
            params = {key: value for key, value in values if key not in OF_AN_ARM}
            params |= {**grid.compare.model_dump(), "backbones": ",".join(grid.arms)}
            desk.begin(log, "compare", params, grid.tune.workers)
            grid, studies = _tuned(grid, desk)
            results, overlap = _walk(grid, desk, log.run_id)
            compared = Compared(
                grid=grid,
                pool=desk.pool,
                keys=desk.keys,
                results=results,
                studies=studies,
                test=overlap.counts,
                steps=steps,
                wall_s=time.perf_counter() - started,
            )
            refresh_siblings(tracking, command.say)
            log_comparison(compared, log, command.say)
    command.say(f"browse the runs: {tracking.ui_command}")
    return compared


def _tell_beforehand(grid: Grid, desk: Desk) -> list[int]:
    """What is compared and what it costs, before anything is spent; returns steps an arm."""
    say, draws, images = desk.command.say, len(desk.keys), len(desk.overlap.test)
    steps = equal_steps([arm for arms in grid.arms.values() for arm in arms], desk.images)
    names = [arm.name for arm in next(iter(grid.arms.values()))]
    say(
        f"{', '.join(names)} on {', '.join(grid.arms)}: {shown_steps(steps)} optimizer steps, "
        f"{draws} draws; {desk.pool.sentence}; {METRICS[grid.compare.metric].words} on "
        f"{images} test images"
    )
    if note := desk.overlap.counts.note:
        say(note)
    total = 0.0
    for backbone, arms in grid.arms.items():
        draw_s = seconds_a_draw(arms, images, desk.tracking)
        total += draw_s * draws
        say(f"{backbone}: a draw takes about {draw_s:.0f} s here")
    tuning = ", tuning not counted" if desk.command.tuned else ""
    say(
        f"all of it takes about {minutes(total)}{tuning}; what has been run before costs nothing\n"
    )
    return steps


def _tuned(grid: Grid, desk: Desk) -> tuple[Grid, Mapping[tuple[str, str], tuple[str, ...]]]:
    """The grid with each arm's tuned settings, and its studies, where tuning is asked for.

    Every arm has as many trials, shared out over its stages; epochs and batch size stay, so that
    steps stay equal.
    """
    if not desk.command.tuned:
        return grid, {}
    from pipeline.tuning.tune_arm import tune_arm

    studies: dict[tuple[str, str], tuple[str, ...]] = {}
    tuned: dict[str, list[Arm]] = {}
    for backbone, arms in grid.arms.items():
        for arm in arms:
            trials = max(1, grid.tune.n_trials // arm.last)
            tune = grid.tune.model_copy(update={"n_trials": trials})
            stages = range(1, arm.last + 1)
            kept = {
                n: {"epochs", "batch_size", *explicit_keys_of_arm(grid, arm, n)} for n in stages
            }
            done = tune_arm(desk.command, desk.tracking, tune, arm, kept)
            tuned.setdefault(backbone, []).append(done.arm)
            studies[backbone, arm.name] = tuple(done.studies.values())
    return replace(grid, arms={name: tuple(arms) for name, arms in tuned.items()}), studies


def _walk(grid: Grid, desk: Desk, run_id: str) -> tuple[dict[str, list[Results]], Overlap]:
    """Every draw of every backbone, and what these draws had of the test images."""
    found, overlap = {}, desk.overlap
    for backbone, arms in grid.arms.items():

        def tell(_: int, pair: str, results: Results, name: str = backbone) -> str:
            both = zip(grid.arms[name], results, strict=True)
            shown = ", ".join(f"{arm.name} {result.test:.2%}" for arm, result in both)
            return f"{name}, {pair}: {shown}"

        runner = desk.runner(arms, overlap, grid.compare.metric, run_id, tell)
        found[backbone] = runner.run_all(desk.keys)
        overlap = runner.overlap
    return found, overlap
