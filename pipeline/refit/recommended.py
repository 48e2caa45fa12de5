"""Which runs a refit repeats: those of a decision's recommended arm, or a stage run.

In: a finished stage run or decision. Out: a `Recommended`. A decision keeps the list as
`recommended.json` on its run, where the entry point `refit` reads the list.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import LineageError
from pipeline.runs.lineage import other_than
from pipeline.settings.schedules import SCHEDULES
from pipeline.tracking import RunLog, RunView, Tracking, keys

FILE = "recommended.json"


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """Runs of one recipe, and the decision that recommends the recipe.

    Attributes:
        words: the recipe in a sentence.
        run_ids: of the last stage, on one draw or more; runs that diverged left out.
        compared_run_id: a stage run whose chain shows what the verdict is about.
        sentence: the verdict; empty where no decision was asked, as are those below.
        decision_run_id: of the decision.
        images: training images a class in the runs.
        why: the recipe is recommended, as a clause.
    """

    words: str
    run_ids: tuple[str, ...]
    compared_run_id: str
    sentence: str = ""
    decision_run_id: str = ""
    images: int = 0
    why: str = ""

    @property
    def tags(self) -> Mapping[str, str]:
        """What the refit's run and the registered version carry."""
        tags = {keys.COMPARED_RUN_ID: self.compared_run_id}
        if self.decision_run_id:
            tags[keys.DECISION_RUN_ID] = self.decision_run_id
        return tags

    def keep(self, log: RunLog) -> None:
        """Put the list on the decision's run."""
        log.text(json.dumps(asdict(self), indent=2) + "\n", FILE)


def recommended_by(tracking: Tracking, run_id: str) -> Recommended:
    """What the run of that id stands for.

    Raises:
        LineageError: neither a finished stage run nor a decision that names its runs.
    """
    run = tracking.get(run_id)
    if run.tags.get(keys.KIND) == "decision":
        return _of_decision(tracking, run)
    run = tracking.get(run.stage_run_id)
    if other := other_than(run):
        raise LineageError(
            f"refit needs a finished stage run or a decision, run {run_id} is {other}: copy the "
            "id of one from the MLflow UI"
        )
    return Recommended(
        words=chain_in_words(run), run_ids=(run.run_id,), compared_run_id=run.run_id
    )


def chain_in_words(run: RunView) -> str:
    """What a stage run and those before it are called."""
    name, number = run.tags[keys.SCHEDULE], run.number(keys.STAGE)
    if name == "three_stage":
        return f"stage {number}"
    schedule = SCHEDULES.get(name)
    is_whole = schedule is not None and schedule.count == number
    return schedule.words if schedule and is_whole else f"stage {number} of {name}"


def _of_decision(tracking: Tracking, run: RunView) -> Recommended:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = tracking.fetch(run, FILE, Path(folder))
        except LineageError:
            raise LineageError(
                f"decision {run.run_id} does not say which runs it recommends (it was stopped, or "
                "is of an earlier version): make the same decision again, which finds its pairs, "
                "or pass -P run_id=<a finished stage run>"
            ) from None
        content = json.loads(path.read_text(encoding="utf-8"))
    found = Recommended(**content | {"run_ids": tuple(content["run_ids"])})
    if not found.run_ids:
        raise LineageError(
            f"every run of {found.words} diverged in decision {run.run_id}: ask again with a "
            "lower lr"
        )
    return found
