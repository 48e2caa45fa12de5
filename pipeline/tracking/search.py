"""Runs by their tags, whichever version has stored them.

Tags that no person looks for were stored under other names by earlier versions. MLflow's filters
know no "or", so that the former names take a search of their own; a store that holds no tag of
such a name when a command first asks is spared it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.tracking.connection.faults import translated
from pipeline.tracking.keys import stored_tag
from pipeline.tracking.view import RunView

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


class Search:
    """Finds runs in the experiments `places` of a store, to which others may be added."""

    def __init__(self, client: MlflowClient, uri: str, places: list[str]) -> None:
        self._client = client
        self._uri = uri
        self.places = places
        self._former: dict[tuple[str, ...], bool] = {}

    def find(self, tags: Mapping[str, str], *, status: str | None = "FINISHED") -> list[RunView]:
        """Runs of a status (None: any) with all these tags, of any version, oldest first."""
        of_today = {stored_tag(key): value for key, value in tags.items()}
        found = self._with(of_today, status)
        moved = tags.keys() - of_today.keys()
        if moved and all(self._holds(key) for key in moved):
            found = sorted([*found, *self._with(tags, status)], key=lambda r: r.info.start_time)
        return [run for run in map(RunView.of, found) if tags.items() <= run.tags.items()]

    def _holds(self, former: str) -> bool:
        """Whether some run has a tag of a former name; asked once for the same experiments."""
        asked = former, *self.places
        if asked not in self._former:
            with translated("search runs", self._uri):
                some = self._client.search_runs(
                    self.places, f"tags.`{former}` LIKE '%'", max_results=1
                )
            self._former[asked] = bool(some)
        return self._former[asked]

    def _with(self, tags: Mapping[str, str], status: str | None) -> list[Run]:
        from mlflow.utils import get_results_from_paginated_fn

        wanted = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        if status:
            wanted.append(f"attributes.status = '{status}'")
        with translated("search runs", self._uri):
            found: list[Run] = get_results_from_paginated_fn(  # type: ignore[no-untyped-call]
                lambda count, token: self._client.search_runs(
                    self.places,
                    " and ".join(wanted),
                    order_by=["attributes.start_time ASC"],
                    max_results=count,
                    page_token=token,
                ),
                1000,
            )
        return found
