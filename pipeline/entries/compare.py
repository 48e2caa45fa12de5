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
from pipeline.comparing.draws import Pool, pool_in
from pipeline.comparing.grid import Grid, explicit_keys_of_arm
from pipeline.comparing.pairs import PairKey, PairRunner, Results, lock_folder, pair_keys
from pipeline.comparing.results import Compared
from pipeline.data.draws import check_readable
from pipeline.data.overlap import Overlap, tuning_draws
from pipeline.entries.chain import check_storage
from pipeline.runs.command import Command
from pipeline.runs.scoring import read_test_split, test_split
from pipeline.runs.session import check_draws, source_and_weights
from pipeline.runs.stage_log import log_unreadable
from pipeline.runs.summary import minutes
from pipeline.runs.workers import run_workers
from pipeline.settings.run import plain_values
from pipeline.signals.evidence import refresh_siblings
from pipeline.stats.metrics import METRICS
from pipeline.tracking import Tracking

OF_AN_ARM = ("schedule", "backbone", "weights", "draw", "seed")
"""Settings in which arms, or their draws, differ."""
ENOUGH_DRAWS = 5
"""With so many disjoint draws left, fewer than asked for are better than resampled ones."""


def compare_entry(command: Command, grid: Grid) -> Compared | None:
    """Entry point compare; None where this process only took part in another's comparison."""
    started = time.perf_counter()
    settings = next(iter(grid.arms.values()))[0].settings
    tracking = Tracking.connect()
    with tracking.explained():
        if command.tuned:
            check_storage(command, tracking)
        lock_folder(settings)
        for arms in grid.arms.values():
            source, _ = source_and_weights(arms[0].settings)
        test_split(source, settings)
        draws, reserved = grid.compare.draws, grid.tune.draws if command.tuned else 0
        check_draws(source, settings, range(settings.draw, settings.draw + max(1, reserved)))
        pool = pool_in(
            source,
            settings,
            tuple(sorted({min(draws, ENOUGH_DRAWS), draws})),
            reserved=reserved,
            asked="draws",
        )
        test = read_test_split(source, settings, command.say)
        overlap = Overlap.of(test, source).after(tuning_draws(source, settings, reserved))
        keys = pair_keys(pool, settings)
        if command.joins:
            grid, _ = _tuned(grid, command, tracking)
            _walk(grid, keys, overlap, command, tracking, command.joins)
            return None
        images = settings.train_per_class * len(source.class_names)
        check_readable(source, [key.apply(settings) for key in keys])
        for note in source.notes:
            command.say(f"note: {note}")
        steps = _tell_beforehand(grid, keys, pool, overlap, images, command, tracking)
        name = f"comparison · {source.name} · {', '.join(grid.arms)}"
        with tracking.run(name, {"kind": "comparison"}, target=True) as log:
            common = {k: v for k, v in plain_values(settings, ()).items() if k not in OF_AN_ARM}
            log.params({**common, **grid.compare.model_dump(), "backbones": ",".join(grid.arms)})
            log_unreadable(log, test.unreadable)
            if grid.tune.workers > 1:
                run_workers(
                    grid.tune.workers,
                    "compare",
                    command,
                    tracking.experiment_id,
                    log.run_id,
                )
            grid, studies = _tuned(grid, command, tracking)
            results, overlap = _walk(grid, keys, overlap, command, tracking, log.run_id)
            compared = Compared(
                grid=grid,
                pool=pool,
                keys=keys,
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


def _tell_beforehand(
    grid: Grid,
    keys: list[PairKey],
    pool: Pool,
    overlap: Overlap,
    images: int,
    command: Command,
    tracking: Tracking,
) -> list[int]:
    """What is compared and what it costs, before anything is spent; returns steps an arm."""
    steps = equal_steps([arm for arms in grid.arms.values() for arm in arms], images)
    names = [arm.name for arm in next(iter(grid.arms.values()))]
    test = overlap.test
    command.say(
        f"{', '.join(names)} on {', '.join(grid.arms)}: {shown_steps(steps)} optimizer steps, "
        f"{len(keys)} draws; {pool.sentence}; {METRICS[grid.compare.metric].words} on "
        f"{len(test)} test images"
    )
    if note := overlap.counts.note:
        command.say(note)
    total = 0.0
    for backbone, arms in grid.arms.items():
        draw_s = seconds_a_draw(arms, len(test), tracking)
        total += draw_s * len(keys)
        command.say(f"{backbone}: a draw takes about {draw_s:.0f} s here")
    tuning = ", tuning not counted" if command.tuned else ""
    command.say(
        f"all of it takes about {minutes(total)}{tuning}; what has been run before costs nothing\n"
    )
    return steps


def _tuned(
    grid: Grid, command: Command, tracking: Tracking
) -> tuple[Grid, Mapping[tuple[str, str], tuple[str, ...]]]:
    """The grid with each arm's tuned settings, where that is asked for.

    Every arm has as many trials, shared out over its stages; epochs and batch size stay, so that
    steps stay equal.
    """
    if not command.tuned:
        return grid, {}
    from pipeline.tuning.tune_arm import tune_arm

    studies: dict[tuple[str, str], tuple[str, ...]] = {}
    arms: dict[str, tuple[Arm, ...]] = {}
    for backbone, theirs in grid.arms.items():
        tuned = []
        for arm in theirs:
            trials = max(1, grid.tune.n_trials // arm.last)
            tune = grid.tune.model_copy(update={"n_trials": trials})
            stages = range(1, arm.last + 1)
            kept = {
                n: {"epochs", "batch_size", *explicit_keys_of_arm(grid, arm, n)} for n in stages
            }
            done = tune_arm(command, tracking, tune, arm, stages, kept)
            tuned.append(done.arm)
            studies[backbone, arm.name] = tuple(done.studies.values())
        arms[backbone] = tuple(tuned)
    return replace(grid, arms=arms), studies


def _walk(
    grid: Grid,
    keys: list[PairKey],
    overlap: Overlap,
    command: Command,
    tracking: Tracking,
    run_id: str,
) -> tuple[dict[str, list[Results]], Overlap]:
    """Every draw of every backbone, and what these draws had of the test images."""
    resampled = len({key.data_seed for key in keys}) > 1
    found = {}
    for backbone, arms in grid.arms.items():

        def tell(key: PairKey, results: Results, name: str = backbone) -> str:
            shown = ", ".join(
                f"{arm.name} {result.test:.2%}"
                for arm, result in zip(grid.arms[name], results, strict=True)
            )
            images = f"data_seed {key.data_seed}" if resampled else f"draw {key.draw}"
            return f"{name}, {images}, seed {key.seed}: {shown}"

        runner = PairRunner(
            arms=arms,
            overlap=overlap,
            tracking=tracking,
            nested_under=run_id,
            say=command.say,
            tell=tell,
            metric=grid.compare.metric,
            only_new=bool(command.joins),
        )
        found[backbone] = runner.run_all(keys)
        overlap = runner.overlap
    return found, overlap
