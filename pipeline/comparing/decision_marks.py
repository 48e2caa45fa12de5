"""What a decision leaves on the runs that it rests on, which may be other people's.

In: a `Decision` and runs. Out: tags `verdict` on treatments and studies, `gate.…` on parents.
Nothing that another decision or command has written is written over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.comparing.decision import Decision
from pipeline.signals.gate import Gate
from pipeline.signals.gate_runs import gate_over
from pipeline.tracking import RunView, Tracking


def mark(decision: Decision, decision_run_id: str, run: RunView, tracking: Tracking) -> None:
    """Tag a run with the verdict that rests on it, unless it carries that of another question.

    Runs are found by content, so they may be another person's. The same question asked again, with
    as many pairs or more, has the last word.
    """
    new = decision.tags
    same = run.tags.get("verdict.question") == new["verdict.question"]
    if "verdict" in run.tags and not (
        same and int(run.tags["verdict.pairs"]) <= int(new["verdict.pairs"])
    ):
        return
    tracking.add_tags(run.run_id, {**new, "decision_run_id": decision_run_id})


def gate_of_parents(
    decision: Decision, tracking: Tracking, runs: Sequence[RunView], say: Callable[[str], None]
) -> Gate | None:
    """The gate over the parents of stage 3, where stage 3 is what was judged."""
    if (decision.treatment.name, decision.treatment.last) != ("three_stage", 3):
        return None
    parents = [tracking.get(run.tags["parent_run_id"]) for run in runs]
    title = f"{len(parents)} pairs of a decision"
    settings = decision.treatment.settings
    return gate_over(tracking, parents, settings, title, say, only_new=True)[0]
