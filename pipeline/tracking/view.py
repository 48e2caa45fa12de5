"""A run as it is stored: what other modules may know of it.

Tags can be edited and deleted in the MLflow UI, whole runs restored in part: what a run lacks is
a fault that names the run, not a bug.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pipeline.errors import LineageError
from pipeline.tracking.keys import KIND, SETTINGS, as_logged, current, tags_as_named

Value = TypeVar("Value")


class RunValues(dict[str, Value]):
    """What a run holds of one kind: tags, parameters, metrics or settings."""

    def __init__(self, values: Mapping[str, Value], kind: str, run: str) -> None:
        super().__init__(values)
        self._kind, self._run = kind, run

    def __missing__(self, key: str) -> NoReturn:
        raise LineageError(f"{self._run} lacks the {self._kind} {key}: use another run")


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as it is stored; times are those of whoever wrote it, 0 where there is none.

    Attributes:
        files: where its artifacts are, as MLflow has it.
    """

    run_id: str
    experiment_id: str = ""
    started_ms: int = 0
    ended_ms: int = 0
    files: str = ""
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, run: Any) -> RunView:  # noqa: ANN401 - MLflow's own type
        """MLflow's run as ours."""
        info, data, name = run.info, run.data, run.info.run_name or ""
        shown = f"run {info.run_id} ({name})"
        return cls(
            run_id=info.run_id,
            experiment_id=info.experiment_id,
            started_ms=info.start_time or 0,
            ended_ms=info.end_time or 0,
            files=info.artifact_uri or "",
            name=name,
            status=info.status,
            tags=RunValues(tags_as_named(data.tags), "tag", shown),
            params=RunValues(data.params, "parameter", shown),
            metrics=RunValues(
                {current(k): as_logged(v) for k, v in data.metrics.items()}, "metric", shown
            ),
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """A stage run's resolved settings.

        Raises:
            LineageError: the tag is gone or damaged.
        """
        try:
            values = json.loads(self.tags[SETTINGS])
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise self._damaged(SETTINGS)
        return RunValues(values, "setting", f"run {self.run_id} ({self.name})")

    def number(self, tag: str) -> int:
        """A tag that is a whole number.

        Raises:
            LineageError: the tag is gone or damaged.
        """
        try:
            return int(self.tags[tag])
        except ValueError:
            raise self._damaged(tag) from None

    @property
    def stage_run_id(self) -> str:
        """The run's own id; of a run of `main` that of its last stage."""
        stages = [f"stage{number}_run_id" for number in range(99, 0, -1)]
        last = (self.tags[tag] for tag in stages if tag in self.tags)
        return next(last, self.run_id) if self.tags.get(KIND) == "chain" else self.run_id

    def _damaged(self, tag: str) -> LineageError:
        return LineageError(
            f"run {self.run_id} ({self.name}): its tag {tag} is damaged: use another run"
        )
