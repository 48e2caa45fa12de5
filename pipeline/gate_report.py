"""Entry point gate: has stage 3 been earned? Reads finished runs, trains nothing.

In: a stage-2 run (its siblings are found), or the result lines of stages 1 and 2. Out: tags
`gate.…` on the stage-2 runs and a one-page report, there and on a run of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.config import load_settings
from pipeline.errors import GateError, LineageError
from pipeline.evidence import as_far_as_allowed, siblings_of, thresholds_of
from pipeline.gate import Gate, Outcome, Pair, parse_best_lines, read_gate
from pipeline.lineage import inherit
from pipeline.plain_text import as_markdown
from pipeline.settings import Thresholds
from pipeline.tracking import RunView, Tracking

REPORT = "gate/report.md"


def gate_entry(
    run_id: str, lines: str, options: Mapping[str, str], say: Callable[[str], None]
) -> Gate:
    """Read the gate from runs or lines, print its report and log it.

    Raises:
        GateError: neither given, or not a finished stage-2 run of `three_stage`.
    """
    load_settings(options)  # a threshold out of range is said before anything is read
    if lines and run_id:
        raise GateError(f"gate takes run_id or lines, got both ({run_id}, {lines}): leave one out")
    if lines:
        return _gate_of_lines(Path(lines), options, say)
    if not run_id:
        raise GateError(
            "gate needs -P run_id=<a finished stage-2 run> or -P lines=<a file with the result "
            "lines of stages 1 and 2>"
        )
    tracking = Tracking.connect()
    with tracking.explained():
        run = tracking.get(run_id)
        _check(run)
        thresholds = load_settings(options, inherited=inherit(run))
        with tracking.run(f"gate · {run.name}", {"kind": "gate"}, target=True) as log:
            gate, pairs = gate_of_run(tracking, run, thresholds, say)
            log.tags({**gate.tags, "stage2_run_id": run_id})
            report = report_markdown(gate, pairs, run.name)
            log.text(report, REPORT)
            log.tags({"mlflow.note.content": report})
    say(report)
    say(f"browse the runs: {tracking.ui_command}")
    return gate


def _gate_of_lines(path: Path, options: Mapping[str, str], say: Callable[[str], None]) -> Gate:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise GateError(
            f"lines={path}: cannot be read ({err}): pass a text file that holds the lines "
            "`Stage-1 Best results: …` and `Stage-2 Best results: …`"
        ) from None
    pairs = parse_best_lines(text)
    gate = read_gate(pairs, load_settings(options))
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


def gate_of_run(
    tracking: Tracking, run: RunView, thresholds: Thresholds, say: Callable[[str], None]
) -> tuple[Gate, list[Pair]]:
    """The gate over a stage-2 run and its siblings of other draws; tags all of them."""
    by_draw = {sibling.tags["draw"]: sibling for sibling in siblings_of_run(tracking, run)}
    by_draw[run.tags["draw"]] = run
    runs = [by_draw[draw] for draw in sorted(by_draw, key=int)]
    return gate_over(tracking, runs, thresholds, run.name, say)


def gate_over(
    tracking: Tracking,
    runs: Sequence[RunView],
    thresholds: Thresholds,
    title: str,
    say: Callable[[str], None],
    *,
    only_new: bool = False,
) -> tuple[Gate, list[Pair]]:
    """The gate over these stage-2 runs; tags all of them, each by its own thresholds.

    They may be other people's, who have set theirs. `only_new`: leave those that have been read.
    """
    pairs = [_pair(tracking, run) for run in runs]
    for run in runs:
        if only_new and "gate.prior" in run.tags:
            continue
        own = read_gate(pairs, thresholds_of(run))
        with as_far_as_allowed(run, say):
            tracking.add_tags(run.run_id, own.tags)
            tracking.add_text(run.run_id, report_markdown(own, pairs, title), REPORT)
    return read_gate(pairs, thresholds), pairs


def siblings_of_run(tracking: Tracking, run: RunView) -> list[RunView]:
    """Finished runs of the same recipe and seed, other draws included."""
    found = siblings_of(tracking, run.tags["recipe_key"]).values()
    return [sibling for sibling in found if sibling.tags["seed"] == run.tags["seed"]]


def _pair(tracking: Tracking, run: RunView) -> Pair:
    losses = tracking.history(run.run_id, "val/loss")
    try:
        first = _outcome(tracking.get(run.tags["parent_run_id"]))
    except (
        LineageError
    ):  # deleted since: its accuracy stands in the child, and is all that is read
        nothing = math.nan
        first = Outcome(nothing, nothing, nothing, run.metrics["signal/parent_val_acc"])
    return Pair(run.tags["draw"], first, _outcome(run), losses)


def _outcome(run: RunView) -> Outcome:
    m = run.metrics
    return Outcome(
        m["best/train_loss"], m["best/val_loss"], m["best/train_acc"], m["best/val_acc"]
    )


def report_markdown(gate: Gate, pairs: Sequence[Pair], title: str) -> str:
    """One page: the prior, the four readings, the numbers by draw."""
    verdict = {
        "promising": "Stage 3 is worth trying.",
        "confirmation_only": "Stage 3 can at best confirm: stage 2 already memorises.",
        "not_yet": "Stage 3 has not been earned yet.",
    }[gate.prior]
    rows = [
        f"| {pair.draw} | {pair.first.val_acc:.2%} | {pair.second.val_acc:.2%} "
        f"| {100 * (pair.second.val_acc - pair.first.val_acc):+.2f} | {pair.second.train_acc:.2%} "
        f"| {pair.second.train_loss:.4f} | {pair.second.val_loss:.4f} |"
        for pair in pairs
    ]
    readings = [f"- `gate.{r.name}` **{r.state}**: {r.sentence}" for r in gate.readings]
    header = (
        "| draw | stage 1 val acc | stage 2 val acc | gain, pp | stage 2 train acc | train loss "
        "| val loss |"
    )
    lines = [
        f"# Gate: {gate.prior}",
        f"{verdict} It advises from stages 1 and 2 alone ({as_markdown(title)}).",
        "\n".join(readings),
        "\n".join([header, "|---|---|---|---|---|---|---|", *rows]),
    ]
    return "\n\n".join(lines) + "\n"
