"""A comparison as people read it: one page, as HTML that needs no other file, and as Markdown.

In: a `Compared`. Out: the page, a picture, a CSV of every run, and numbers, on its MLflow run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from matplotlib.figure import Figure

from pipeline.comparing.cost import shown_steps
from pipeline.comparing.results import Cell, Compared
from pipeline.reporting.figures import ArmRow, comparison_picture
from pipeline.reporting.page import Page, Part, Table, to_html, to_markdown
from pipeline.runs.command_line import command_line
from pipeline.runs.summary import minutes, training_in_words
from pipeline.settings.run import RUN_KEYS
from pipeline.stats.metrics import METRICS
from pipeline.tracking import RunLog
from pipeline.tracking.keys import TEST, flat

PICTURE = "figures/comparison.png"


def log_comparison(compared: Compared, log: RunLog, say: Callable[[str], None]) -> None:
    """The report and the numbers; says the summary."""
    figure = picture_of(compared)
    page = page_of(compared)
    log.figure(figure, PICTURE)
    log.text(to_markdown(page), "report.md")
    log.text(to_html(page, figure), "report.html")
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
    if compared.test.note:
        say(compared.test.note)
    lines = compared.summary()
    log.tags({"mlflow.note.content": "\n".join(f"- {line}" for line in lines)})
    for line in lines:
        say(line)
    say(f"report: report.html and report.md of run {log.run_id}")


def picture_of(compared: Compared) -> Figure:
    """Accuracies and differences, with intervals."""
    rows = []
    for backbone in compared.grid.arms:
        first = compared.cells_of(backbone)[0]
        for cell in compared.cells_of(backbone):
            mean = compared.mean(cell)
            difference = None
            if cell.arm.name != first.arm.name:
                known = compared.difference(cell, first)
                difference = (known.mean_pp, *known.interval_pp)
            rows.append(
                ArmRow(
                    f"{backbone} · {cell.arm.name}",
                    cell.test_pp.tolist(),
                    (mean.mean_pp, *mean.interval_pp),
                    difference,
                )
            )
    compare = compared.grid.compare
    return comparison_picture(
        METRICS[compare.metric].words, rows, compared.grid.baseline, compare.rope_pp
    )


def page_of(compared: Compared) -> Page:
    """The page, whatever it is written as."""
    compare = compared.grid.compare
    rope, words = f"{compare.rope_pp:g} pp", METRICS[compare.metric].words
    page: Page = [
        Part("title", f"{', '.join(_schedules(compared))} on {', '.join(compared.grid.arms)}"),
        *(Part("lead", f"{line}.") for line in compared.summary()),
        Part(
            "text",
            f"{words[:1].upper()}{words[1:]} on {compared.test.words}, over {len(compared.keys)} "
            f"draws; every arm has {shown_steps(compared.steps)} optimizer steps on the same "
            f"images with the same seeds. Of the images: {compared.pool.sentence}. All draws "
            "share the test images: intervals hold for these; scores count as known to one test "
            "image at best.",
        ),
        Part("picture", PICTURE),
        Part("heading", "Every schedule"),
        Table(
            (
                *(
                    *("backbone", "schedule", f"{words} (95%)"),
                    f"minus {compared.grid.baseline}, pp (95%)",
                ),
                *(f"P(better by {rope})", f"P(within {rope})", f"P(worse by {rope})"),
                *("parameters trained", "time, s", "peak memory, MiB"),
            ),
            [_row(compared, cell) for cell in compared.cells],
        ),
        Part(
            "text",
            "Time: training and validation of all stages, mean over draws; the frozen prefix, "
            "which is computed once and shared, is left out (results.csv has it). Parameters: "
            "of the largest stage.",
        ),
    ]
    for backbone in compared.grid.arms:
        page += [
            Part("heading", f"Row minus column, pp (95%): {backbone}"),
            _matrix(compared, compared.cells_of(backbone)),
        ]
    page.append(
        Part(
            "text",
            "P is the posterior probability that the row is better at all (by more than 0 pp). "
            f"{_count_of_pairs(compared)} differences are shown: that the largest of them is "
            "large is no surprise.",
        )
    )
    return [*page, *_rests_on(compared)]


def _schedules(compared: Compared) -> list[str]:
    return [arm.name for arm in next(iter(compared.grid.arms.values()))]


def _count_of_pairs(compared: Compared) -> int:
    schedules = len(_schedules(compared))
    return len(compared.grid.arms) * schedules * (schedules - 1) // 2


def _row(compared: Compared, cell: Cell) -> tuple[str, ...]:
    mean = compared.mean(cell)
    first = compared.cells_of(cell.backbone)[0]
    low, high = mean.interval_pp
    shown = [cell.backbone, cell.arm.name, f"{mean.mean_pp:.2f}% ({low:.2f} to {high:.2f})"]
    if cell.arm.name == first.arm.name:
        shown += ["", "", "", ""]
    else:
        known = compared.difference(cell, first)
        low, high = known.interval_pp
        shown += [
            f"{known.mean_pp:+.2f} ({low:+.2f} to {high:+.2f})",
            f"{known.p_above:.3f}",
            f"{known.p_inside:.3f}",
            f"{known.p_below:.3f}",
        ]
    memory = "" if math.isnan(cell.peak_mib) else f"{cell.peak_mib:,.0f}"
    trained = f"{cell.results[0].chain.trained:,}"
    return (*shown, trained, f"{cell.training_s:.1f}", memory)


def _matrix(compared: Compared, cells: list[Cell]) -> Table:
    def entry(row: Cell, column: Cell) -> str:
        if row.arm.name == column.arm.name:
            return ""
        known = compared.difference(row, column)
        low, high = known.interval_pp
        return f"{known.mean_pp:+.2f} ({low:+.2f} to {high:+.2f}), P {known.p_positive:.3f}"

    names = [cell.arm.name for cell in cells]
    rows = [(row.arm.name, *(entry(row, column) for column in cells)) for row in cells]
    return Table(("", *names), rows)


def _rests_on(compared: Compared) -> Page:
    arms = [arm for arms in compared.grid.arms.values() for arm in arms]
    values = arms[0].settings
    keys = [
        key
        for key in RUN_KEYS
        if not key.startswith(("gate_", "signal_"))
        and key not in ("schedule", "backbone", "weights", "draw", "seed", "enforce_gate")
        and not (key == "data_seed" and compared.pool.resampled)
    ]
    first, last = compared.keys[0], compared.keys[-1]
    drawn = f"Draws {first.draw} to {last.draw} of the shuffle data_seed {first.data_seed}"
    if compared.pool.resampled:
        drawn = f"First draws of the shuffles data_seed {first.data_seed} to {last.data_seed}"
    drawn += f", seeds {first.seed} to {last.seed}"
    stages = [
        (
            arm.settings.backbone,
            arm.name,
            str(number),
            " + ".join(arm.settings.stage(number).trainable),
            training_in_words(arm.settings.training(number)),
        )
        for arm in arms
        for number in range(1, arm.last + 1)
    ]
    page: Page = [
        Part("heading", "What it rests on"),
        Table(("backbone", "schedule", "stage", "trains", "settings"), stages),
        Table(
            ("backbone", "weights"),
            [(name, arms[0].settings.weights) for name, arms in compared.grid.arms.items()],
        ),
        Table(("setting", "value"), [(key, str(getattr(values, key))) for key in keys]),
        Part(
            "text",
            f"{drawn}. This command took {minutes(compared.wall_s)}, without the runs that it "
            "found.",
        ),
    ]
    typed = {**compared.grid.options, **({"tuned": "on"} if compared.studies else {})}
    page.append(Part("code", command_line("compare", typed)))
    if compared.studies:
        page.append(
            Table(
                ("backbone", "schedule", "tuned by the studies"),
                [(b, s, ", ".join(names)) for (b, s), names in compared.studies.items()],
            )
        )
    return page
