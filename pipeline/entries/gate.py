"""Entry point gate: has stage 3 been earned? Reads finished runs, trains nothing.

In: a stage-2 run (its siblings are found), or the result lines of stages 1 and 2. Out: tags
`gate.…` on the stage-2 runs and a one-page report, there and on a run of its own. With `data` the
run's images are compared with these, and a run of an earlier version is given its place among
others of the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import GateError
from pipeline.runs.command import Command
from pipeline.runs.lineage import settings_of
from pipeline.runs.run_stage import adopt
from pipeline.runs.session import Session
from pipeline.settings.entry import GateSettings
from pipeline.settings.request import Request
from pipeline.settings.run import PLACE_KEYS, Settings
from pipeline.signals.gate import (
    REPORT,
    Gate,
    gate_of_run,
    parse_best_lines,
    read_gate,
    report_markdown,
)
from pipeline.tracking import RunView, Tracking


def gate_entry(command: Command, plan: GateSettings) -> Gate:
    """Read the gate from runs or lines, print its report and log it.

    Raises:
        GateError: not a finished stage-2 run of `three_stage`, or a file without result lines.
        LineageError: the images that were given are not those of the run.
    """
    request, say, run_id = command.request, command.say, plan.run_id
    if plan.lines:
        return _gate_of_lines(Path(plan.lines), request, say)
    tracking = Tracking.connect()
    with tracking.explained():
        run = tracking.get(run_id)
        _check(run)
        settings = request.settings(settings_of(run))
        if request.options.keys() & set(PLACE_KEYS):
            run = _of_these_images(run, settings, tracking, say)
        with tracking.run(f"gate · {run.name}", {"kind": "gate"}, target=True) as log:
            gate, pairs = gate_of_run(tracking, run, settings, say)
            log.tags({**gate.tags, "stage2_run_id": run_id})
            report = report_markdown(gate, pairs, run.name)
            log.text(report, REPORT)
            log.tags({"mlflow.note.content": report})
    say(report)
    say(f"browse the runs: {tracking.ui_command}")
    return gate


def _gate_of_lines(path: Path, request: Request, say: Callable[[str], None]) -> Gate:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise GateError(
            f"lines={path}: cannot be read ({err}): pass a text file that holds the lines "
            "`Stage-1 Best results: …` and `Stage-2 Best results: …`"
        ) from None
    pairs = parse_best_lines(text)
    gate = read_gate(pairs, request.settings())
    say(report_markdown(gate, pairs, str(path)))
    return gate


def _check(run: RunView) -> None:
    if run.tags.get("kind") != "stage" or run.status != "FINISHED":
        what = f"{run.tags.get('kind', 'no stage run')}, {run.status}"
    elif (run.tags["schedule"], run.tags["stage"]) != ("three_stage", "2"):
        what = f"stage {run.tags['stage']} of {run.tags['schedule']}"
    else:
        return
    raise GateError(
        f"gate needs a finished stage-2 run of schedule three_stage, run {run.run_id} is {what}: "
        "copy the id of one from the MLflow UI"
    )


def _of_these_images(
    run: RunView, settings: Settings, tracking: Tracking, say: Callable[[str], None]
) -> RunView:
    """The run, if it was trained on the images that the settings name."""
    session = Session.open(settings, tracking, lambda _: None)
    session.say = say
    session.check_images(run)
    adopt(session, run, int(run.tags["stage"]))
    return tracking.get(run.run_id)
