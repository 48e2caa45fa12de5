"""Entry point gate: has stage 3 been earned? The gate reads finished runs and trains nothing.

In: a stage-2 run (its siblings are found), or the result lines of stages 1 and 2. Out: tags
`gate.…` and a report of one page on the stage-2 runs, and the report on a run of its own. With
`data` the images of the run are compared with the images there, and a run of an earlier version
becomes a sibling of newer runs of the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from pipeline.errors import DataError, GateError, PipelineError
from pipeline.runs.command import Command
from pipeline.runs.find_or_run import join_data_set
from pipeline.runs.lineage import other_than, settings_of
from pipeline.runs.messages.command_line import command_line
from pipeline.runs.messages.next_step import as_asked, options_of, options_of_sibling
from pipeline.runs.session import Session
from pipeline.runs.sources import check_draws, options_for_a_test, source_of
from pipeline.settings.entry import GateSettings
from pipeline.settings.fields import AUTO
from pipeline.settings.run import PLACE_KEYS, Settings
from pipeline.signals.gate import (
    REPORT,
    Gate,
    GateDraw,
    gate_of_run,
    parse_best_lines,
    read_gate,
    report_markdown,
)
from pipeline.system.disk.files import typed_path
from pipeline.tracking import Tracking
from pipeline.tracking.keys import GATE_GAINS, KIND, NAME, NORM_STATS_REASON, NOTE
from pipeline.training.device import PRECISIONS, pick_device, pick_precision

MANY_DRAWS = ("cifar10", "cifar100")
"""Data that holds many draws of the usual sizes."""


def gate_entry(command: Command, plan: GateSettings) -> Gate:
    """Read the gate from runs or lines, print its report and log it.

    Raises:
        GateError: not a finished stage-2 run of `three_stage`, or a file without result lines.
        LineageError: the images that were given are not those of the run.
    """
    request, say = command.request, command.say
    if plan.lines:
        draws = _draws_in(plan.lines)
        gate = read_gate(draws, request.settings())
        say(report_markdown(gate, draws, plan.lines))
        return gate
    tracking = Tracking.connect("gate")
    with tracking.explained():
        run = tracking.get(plan.run_id)
        tracking.follow(run)
        if other := other_than(run, 2, "three_stage"):
            raise GateError(
                f"gate needs a finished stage-2 run of schedule three_stage, run {run.run_id} is "
                f"{other}: copy the id of one from the MLflow UI"
            )
        settings = request.settings(settings_of(run), run.run_id)
        if request.options.keys() & set(PLACE_KEYS):
            session = Session.open(settings, tracking, lambda _: None)
            session.say = say
            session.check_images(run)
            join_data_set(session, run, 2)
            run = tracking.get(run.run_id)
        with tracking.run(f"gate · {run.name}", {KIND: "gate"}, target=True) as log:
            gate, draws = gate_of_run(tracking, run, settings, say)
            report = report_markdown(gate, draws, run.name)
            title = report.partition("\n")[0]
            log.tags(
                {
                    NAME: f"{gate.prior} · gate · {run.name}",
                    **gate.tags,
                    "stage2_run_id": run.run_id,
                    NOTE: report.replace(title, f"**{title.removeprefix('# ')}.**", 1),
                }
            )
            log.text(report, REPORT)
    say(report)
    asked = as_asked(settings, run.tags.get(NORM_STATS_REASON, ""))
    say(f"next: {_next(gate, draws, asked)}")
    say(tracking.how_to_browse)
    return gate


def _next(gate: Gate, draws: Sequence[GateDraw], settings: Settings) -> str:
    """What to type after the gate's advice: the decision, or stage 2 on another draw."""
    options = options_of(settings, known=2) | _for_a_test(settings)
    decide = command_line("decide", _typed(options, settings))
    if gate.prior != "not_yet" or gate.tags[GATE_GAINS] != "unknown":
        return decide
    free = next(n for n in count() if str(n) not in {draw.draw for draw in draws})
    if not _is_held(settings, free):  # `decide` deals pairs that share images
        return decide
    return command_line(
        "stage2", {**_typed(options_of_sibling(settings, 2), settings), "draw": free}
    )


def _typed(options: dict[str, object], settings: Settings) -> dict[str, object]:
    """Options without the precision that `auto` comes to here."""
    here = pick_precision("auto", pick_device(settings.device))
    is_usual = PRECISIONS.get(settings.precision) == here
    return {k: v for k, v in options.items() if not (is_usual and k == "precision")}


def _for_a_test(settings: Settings) -> dict[str, object]:
    try:
        here = settings.data not in MANY_DRAWS  # not to be downloaded for this
        return options_for_a_test(source_of(settings), settings) if here else {}
    except PipelineError:  # the data is not here, and it is not known
        return {}


def _is_held(settings: Settings, draw: int) -> bool:
    """Whether the images give this draw, too; with train_per_class=auto they give one."""
    if settings.data in MANY_DRAWS:  # not to be downloaded for this
        return settings.train_per_class != AUTO
    try:
        check_draws(source_of(settings), settings, [draw])
    except DataError:
        return False
    except PipelineError:  # it is not known
        return True
    return True


def _draws_in(path: str) -> list[GateDraw]:
    try:
        return parse_best_lines(typed_path(path, "lines").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise GateError(
            f"lines={path}: cannot be read ({err}): pass a text file that holds the lines "
            "`Stage-1 Best results: …` and `Stage-2 Best results: …`"
        ) from None
