"""The gate over finished runs: which are read together, what it writes on them.

In: a stage-2 run (its siblings are found), or several. Out: tags `gate.…` on the stage-2 runs and
a one-page report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import LineageError
from pipeline.reporting.page import to_markdown
from pipeline.settings.run import Thresholds
from pipeline.signals.evidence import as_far_as_allowed, siblings_of_run, thresholds_of
from pipeline.signals.gate import Gate, Pair, read_gate
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.history import metrics_at_best, read_history
from pipeline.tracking.keys import PARENT_VAL_ACC, VAL_ACC, VAL_LOSS

REPORT = "gate/report.md"


def gate_of_run(
    tracking: Tracking, run: RunView, thresholds: Thresholds, say: Callable[[str], None]
) -> tuple[Gate, list[Pair]]:
    """The gate over a stage-2 run and one sibling of each other draw; tags all of them."""
    found = [
        sibling
        for sibling in siblings_of_run(tracking, run).values()
        if sibling.run_id != run.run_id
    ]
    found.sort(key=lambda sibling: _seed_order(run, sibling), reverse=True)
    by_draw = {sibling.tags["draw"]: sibling for sibling in (*found, run)}
    runs = [by_draw[draw] for draw in sorted(by_draw, key=int)]
    return gate_over(tracking, runs, thresholds, run.name, say)


def _seed_order(run: RunView, sibling: RunView) -> tuple[bool, bool, int]:
    """Of a draw's runs the one with this run's seed comes first, then as `decide` deals seeds."""
    seed = int(sibling.tags["seed"])
    moved = seed - int(run.tags["seed"])
    return moved != 0, moved != int(sibling.tags["draw"]) - int(run.tags["draw"]), seed


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


def _pair(tracking: Tracking, run: RunView) -> Pair:
    history = read_history(tracking, run, [VAL_LOSS])
    try:
        first = metrics_at_best(tracking.get(run.tags["parent_run_id"]))
    except (
        LineageError
    ):  # deleted since: its accuracy stands in the child, and is all that is read
        first = {VAL_ACC: run.metrics[PARENT_VAL_ACC]}
    losses = history[VAL_LOSS] if history else []
    return Pair(run.tags["draw"], first, metrics_at_best(run), losses)


def report_markdown(gate: Gate, pairs: Sequence[Pair], title: str) -> str:
    """One page: the prior, the four readings, the numbers by draw."""
    return to_markdown("gate", gate=gate, pairs=pairs, title=title)
