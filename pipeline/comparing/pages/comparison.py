"""A comparison as people read it: one page, as HTML that needs no other file, and as Markdown.

In: a `Compared`. Out: the page (`comparison.md.j2`), a picture, a CSV of every run, and numbers,
on the comparison's MLflow run.
"""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from pipeline.comparing.compared import Compared
from pipeline.comparing.cost import shown_steps
from pipeline.comparing.pairs.results import stage0_ahead_of
from pipeline.reporting.figures import ArmRow, comparison_picture
from pipeline.reporting.page import to_html, to_markdown
from pipeline.runs.messages.command_line import command_line
from pipeline.runs.messages.origins import (
    Origins,
    made_with,
    note_on_origins,
    of_all,
    origins_in_words,
)
from pipeline.runs.messages.words import minutes, stage_in_words
from pipeline.runs.stage_log import picture_line
from pipeline.settings.run import RUN_KEYS
from pipeline.stats.metrics import METRICS
from pipeline.system.text import count_of
from pipeline.tracking import RunLog
from pipeline.tracking.keys import NOTE, TEST, flat
from pipeline.training.device import pick_device

PICTURE = "figures/comparison.png"


def log_comparison(compared: Compared, log: RunLog, say: Callable[[str], None]) -> None:
    """The report and the numbers; prints the summary."""
    page, figure = page_of(compared), picture_of(compared)
    log.figure(figure, PICTURE)
    log.text(page, "report.md")
    log.text(to_html(page, {PICTURE: figure}), "report.html")
    log.text(compared.frame().to_csv(index=False), "results.csv")
    name = flat(TEST[compared.grid.compare.metric])
    for backbone in compared.grid.arms:
        first, *others = compared.cells_of(backbone)
        for cell in (first, *others):
            log.metrics({f"{name}/{backbone}/{cell.arm.name}": cell.test_pp.mean() / 100})
        for cell in others:
            known = compared.difference(cell, first)
            log.metrics(
                {
                    f"difference_pp/{backbone}/{cell.arm.name}": known.mean_pp,
                    f"p_better/{backbone}/{cell.arm.name}": known.p_above,
                    f"p_worse/{backbone}/{cell.arm.name}": known.p_below,
                }
            )
    log.metrics(compared.test.metrics)
    for backbone, floor in compared.floors.items():
        log.metrics({f"{key}/{backbone}": value for key, value in floor.metrics.items()})
    if compared.test.note:
        say(compared.test.note)
    for note in _notes_on_origins(compared):
        say(note)
    lines = compared.summary()
    told = [*(f"**{line}.**" for line in lines), picture_line(log.run_id, PICTURE)]
    log.tags({NOTE: "\n\n".join(told)})
    for line in (*lines, *_stage0_ahead(compared).values()):
        say(line)
    for backbone, floor in compared.floors.items():
        say(f"{backbone}, first draw: {floor.sentence}")
    say(f"report: report.html and report.md of run {log.run_id}")


def _stage0_ahead(compared: Compared) -> dict[str, str]:
    """By backbone a line where stage 0 is ahead of every schedule."""
    found = {}
    for backbone, floor in compared.floors.items():
        arms = {cell.arm.name: cell.results[0] for cell in compared.cells_of(backbone)}
        if line := stage0_ahead_of(floor, arms, compared.grid.compare.metric, "-P tuned=on"):
            found[backbone] = line.replace("! ", f"! {backbone}: ", 1)
    return found


def _origins(compared: Compared) -> list[list[Origins]]:
    """What computed the runs of all arms, by backbone and draw."""
    return [draw for backbone in compared.results for draw in _origins_on(compared, backbone)]


def _origins_on(compared: Compared, backbone: str) -> list[list[Origins]]:
    return [[result.origins for result in draw] for draw in compared.results[backbone]]


def _notes_on_origins(compared: Compared) -> list[str]:
    """Lines about runs that were not made with what is here: backbones of timm have their own."""
    device = pick_device(compared.cells[0].arm.settings.device)
    by_here: dict[str, list[list[Origins]]] = {}
    for backbone in compared.results:
        here = made_with(device, backbone)
        by_here.setdefault(here, []).extend(_origins_on(compared, backbone))
    notes = (note_on_origins(pairs, here) for here, pairs in by_here.items())
    return [note for note in notes if note]


def picture_of(compared: Compared) -> Figure:
    """Scores and differences, with intervals."""
    rows = []
    for backbone in compared.grid.arms:
        first = compared.cells_of(backbone)[0]
        for cell in compared.cells_of(backbone):
            mean = compared.mean(cell)
            difference = None
            if cell.arm.name != first.arm.name:
                known = compared.difference(cell, first)
                difference = (known.mean_pp, *known.shown_interval_pp)
            rows.append(
                ArmRow(
                    name=f"{backbone} · {cell.arm.name}",
                    values=cell.test_pp.tolist(),
                    mean=(mean.mean_pp, *mean.shown_interval_pp),
                    difference=difference,
                )
            )
    compare = compared.grid.compare
    return comparison_picture(
        METRICS[compare.metric].words, rows, compared.grid.baseline, compare.rope_pp
    )


def page_of(compared: Compared) -> str:
    """The page as Markdown."""
    arms = next(iter(compared.grid.arms.values()))
    settings, resampled = arms[0].settings, compared.pool.resampled
    differing = {"schedule", "backbone", "weights", "draw", "seed", "enforce_gate"}
    differing |= {"data_seed"} if resampled else set()
    keys = [key for key in RUN_KEYS if not key.startswith(("gate_", "signal_"))]
    first, last = compared.keys[0], compared.keys[-1]
    drawn = f"Draws {first.draw} to {last.draw} of the shuffle data_seed {first.data_seed}"
    if resampled:
        drawn = f"First draws of the shuffles data_seed {first.data_seed} to {last.data_seed}"
    typed = {**compared.grid.options, **({"tuned": "on"} if compared.studies else {})}
    return to_markdown(
        "comparison",
        compared=compared,
        ahead=_stage0_ahead(compared),
        words=METRICS[compared.grid.compare.metric].words,
        schedules=[arm.name for arm in arms],
        steps=shown_steps(compared.steps),
        stage_in_words=stage_in_words,
        values={key: getattr(settings, key) for key in keys if key not in differing},
        drawn=f"{drawn}, seeds {first.seed} to {last.seed}",
        wall=minutes(compared.wall_s),
        made_with=origins_in_words(of_all(_origins(compared))),
        diverged=[
            f"{cell.backbone} {cell.arm.name} ({count} of {count_of(len(cell.results), 'draw')})"
            for cell in compared.cells
            if (count := sum(result.diverged for result in cell.results))
        ],
        command=command_line("compare", typed),
        picture=PICTURE,
    )
