"""Who is alive: whether a run that says RUNNING has an owner, and the beat by which owners tell.

In: a run as it is stored. Out: whether its owner is dead. A process of this machine, boot and PID
namespace is looked up and gives the answer at once. Any other owner renews the tag `owner.beat`
every 15 s, and is dead where the tag stays the same for 60 s by the clock of whoever watches.
Runs of earlier versions have no beat: where their process cannot be looked up they are dead once
they have been open for a day and log no metric during a lease. What no command of ours has started
is never dead.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from pipeline.system.leases import Watch, beat_s, renewing
from pipeline.system.network.addresses import is_server
from pipeline.system.processes import (
    BEAT,
    KILLED_REASON,
    MACHINE,
    PROCESS,
    is_alive,
    new_beat,
    owner_tags,
)
from pipeline.tracking.connection.faults import translated
from pipeline.tracking.keys import TICKET, stored_tag
from pipeline.tracking.ownership.turns import State
from pipeline.tracking.run import RunLog, to_tags
from pipeline.tracking.view import RunView

if TYPE_CHECKING:
    from mlflow import MlflowClient

OLD_S = 24 * 3600.0
"""How long a run of an earlier version has been open before it may count as dead."""
_SET_TAG = "/api/2.0/mlflow/runs/set-tag"
_open: Counter[str] = Counter()
"""Runs that this process has begun; it is at work on those that are not at 0."""


class Find(Protocol):
    """How runs with these tags and this status are found."""

    def __call__(self, tags: Mapping[str, str], *, status: str | None) -> list[RunView]:
        """The runs."""


class Owners:
    """The owners of a store's runs, as far as they have been watched."""

    def __init__(self, client: MlflowClient, uri: str, find: Find) -> None:
        self._client = client
        self._uri = uri
        self._find = find
        self._watch = Watch()

    @contextmanager
    def owning(self, run_id: str | None) -> Iterator[None]:
        """Be the owner of a run that `mlflow run` has started, if there is one."""
        with ExitStack() as owned:
            if run_id:
                with translated("set tags", self._uri):
                    self._client.log_batch(run_id, tags=to_tags(owner_tags()))
                owned.enter_context(self.renewing(run_id))
            yield

    @contextmanager
    def renewing(self, run_id: str) -> Iterator[None]:
        """Tell others that this run's owner lives, while this lasts."""
        _open[run_id] += 1
        try:
            with renewing(lambda: self._renew(run_id)):
                yield
        finally:
            _open[run_id] -= 1

    def _renew(self, run_id: str) -> None:
        uri = self._client.tracking_uri
        if not is_server(uri):
            self._client.set_tag(run_id, stored_tag(BEAT), new_beat())
            return
        # MLflow's client would go on trying for minutes, and be late when the server is back
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            _SET_TAG,
            "POST",
            max_retries=0,
            timeout=beat_s(),
            json={"run_id": run_id, "key": stored_tag(BEAT), "value": new_beat()},
        )

    def is_dead(self, run: RunView) -> bool:
        """Whether the owner of a run that says RUNNING is known to be dead.

        An owner that cannot be looked up is known to be dead a lease after the first such call.
        """
        alive = is_alive(run.tags)
        if alive and TICKET in run.tags and run.tags[PROCESS] == str(os.getpid()):
            # the store was away when this process gave the run up
            return run.run_id in _open and not _open[run.run_id]
        if alive is not None:
            return not alive
        if BEAT in run.tags:
            return self._watch.is_silent(run.run_id, run.tags[BEAT])
        is_old = time.time() - run.started_ms / 1000 > OLD_S
        if MACHINE not in run.tags or not is_old:
            return False
        return self._watch.is_silent(run.run_id, str(sorted(run.metrics.items())))

    def at_work(self, tags: Mapping[str, str]) -> list[RunView]:
        """Runs with these tags that say RUNNING; those with a dead owner are ended here."""
        return self._alive(self._find(tags, status="RUNNING"))

    def state_of(self, tags: Mapping[str, str]) -> State:
        """Runs with these tags as one search finds them; those with a dead owner are ended."""
        found = self._find(tags, status=None)
        running = [run for run in found if run.status == "RUNNING"]
        at_work = self._alive(running)
        if len(at_work) < len(running):  # one may have finished before its process was gone
            found = self._find(tags, status="FINISHED")
        finished = {run.run_id for run in found if run.status == "FINISHED"}
        return State(at_work=at_work, finished=finished)

    def _alive(self, running: Iterable[RunView]) -> list[RunView]:
        return [run for run in running if not (self.is_dead(run) and self._end(run))]

    def end_abandoned(self, *, at_once: bool) -> None:
        """End the runs whose owners are dead; those that cannot be told yet are watched.

        `at_once`: look now; else only where a lease is over since somebody was looked at.
        """
        if at_once or self._watch.is_due:
            self._watch.keep([run.run_id for run in self.at_work({})])

    def _end(self, run: RunView) -> bool:
        """Mark a run as killed; False if it is at work again."""
        with translated("read a run", self._uri):
            stored = self._client.get_run(run.run_id)
        if stored.info.lifecycle_stage == "deleted":
            return True
        now = RunView.of(stored)
        if now.status == "RUNNING" and now.tags.get(BEAT) != run.tags.get(BEAT):
            return False
        if now.status == "RUNNING":
            RunLog(self._client, self._uri, run.run_id).set_status("FAILED", KILLED_REASON)
        return True
