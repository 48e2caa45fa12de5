"""Pairs, draws and trials as tasks of Ray: on this machine, or on a cluster that runs.

In: work that another process can do, and its items. Out: what each item came to, in the order in
which they end. Ray places the tasks, gives each its cores and GPUs, and runs a task again whose
process or machine was lost. The work finds by content what is finished, so that nothing is done
twice. A task knows the stores by its environment alone, which it is given as bytes: neither
command lines nor Ray's logs have a password.
"""

from __future__ import annotations

import math
import pickle
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.cluster.engine import LOCAL, connected
from pipeline.cluster.task import Around, Outcome, Say, Work, not_shared, perform, variables_of
from pipeline.errors import ClusterError, first_line
from pipeline.settings.cluster import ClusterSettings
from pipeline.system.interrupts import at_once
from pipeline.system.network.addresses import file_of, without_password
from pipeline.system.text import count_of

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 5
"""How often Ray runs a task again whose process was lost."""
GRACE_S = 60.0
"""Seconds that tasks have to mark their runs and keep what they have trained."""
LOOK_S = 1.0
MOST_CPUS = 4
"""Cores of a task where nobody says otherwise: more are of little use to small images."""


@dataclass(kw_only=True)
class Cluster:
    """Where tasks run.

    Attributes:
        most: tasks at once; 0: as many as there is room for.
        cpus: cores of a task.
        gpus: GPUs of a task, or the share of one.
        own_store: a store in a file of this machine; empty: none.
    """

    engine: Any
    address: str
    most: int
    cpus: int
    gpus: float
    say: Say
    own_store: str = ""

    def room(self) -> int:
        """Tasks that the nodes carry at once."""
        return sum(self._room_on(node["Resources"]) for node in self._nodes())

    @property
    def at_once(self) -> int:
        """Tasks that run side by side; 1 where a cluster has no room yet."""
        room = self.room()
        return min(self.most or room, room) or 1

    def _room_on(self, has: Mapping[str, float]) -> int:
        by_cpu = int(has.get("CPU", 0) / self.cpus)
        return min(by_cpu, int(has.get("GPU", 0) / self.gpus)) if self.gpus else by_cpu

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.engine.nodes() if node["Alive"]]

    def check_stores(self, *urls: str) -> None:
        """Refuse a store in a file of this machine for tasks on others, now and later.

        Raises:
            ClusterError: tasks would not find it, or make one of their own.
        """
        others = {node["NodeManagerHostname"] for node in self._nodes()} - {socket.gethostname()}
        for url in urls:
            if file_of(url) and not url.startswith("journal:"):
                self.own_store = without_password(url)
                if others:
                    raise ClusterError(not_shared(sorted(others)[0], self.own_store))

    @contextmanager
    def dispatcher(
        self,
        work: Work[Item, Result],
        variables: Mapping[str, str],
    ) -> Iterator[Dispatcher[Item, Result]]:
        """A dispatcher of one piece of work; tasks still running at its end, or at a fault, stop.

        `variables`: for the environment of tasks, stronger than those that this process has: where
        they record.
        """
        dispatcher: Dispatcher[Item, Result] = Dispatcher(
            cluster=self, work=pickle.dumps(work), variables=variables
        )
        try:
            yield dispatcher
        finally:
            dispatcher.stop()

    def announce(self) -> None:
        """Tell how many tasks run at once, on what.

        Raises:
            ClusterError: this machine never has room for one; a cluster may grow.
        """
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        where = "this machine" if self.address == LOCAL else self.address
        each = f"{count_of(self.cpus, 'core')}{gpus} each"
        if self.room():
            self.say(f"Ray on {where}: {count_of(self.at_once, 'task')} at once, {each}")
        elif self.address == LOCAL:
            raise ClusterError(
                f"{where} does not have {each}, which a task asks for: pass a smaller num_cpus or "
                "num_gpus, or a cluster with such nodes (cluster=)"
            )
        else:
            self.say(f"note: Ray on {where}: no node has {each} yet: tasks wait for one that has")


@dataclass(kw_only=True)
class Dispatcher(Generic[Item, Result]):
    """Tasks of one piece of work.

    Attributes:
        running: the item of each task that has not ended, and the task's name.
    """

    cluster: Cluster
    work: bytes
    variables: Mapping[str, str]
    running: dict[Any, tuple[Item, str]] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """Whether another task would run soon; one may wait, for a cluster that grows."""
        return len(self.running) < (self.cluster.most or self.cluster.room() + 1)

    def run(self, items: Mapping[str, Item]) -> Iterator[tuple[Item, Result]]:
        """What items came to, in the order in which they end; each has a name for people."""
        left = list(items.items())[::-1]
        while left or self.running:
            while left and len(self.running) < (self.cluster.most or math.inf):
                name, item = left.pop()
                self.submit(item, name)
            yield from self.wait()

    def submit(self, item: Item, name: str) -> None:
        """Hand an item to Ray; `name`: of its task, for people."""
        cluster = self.cluster
        options = {
            "num_cpus": cluster.cpus,
            "num_gpus": cluster.gpus,
            "max_retries": RETRIES,
            "max_calls": 1 if cluster.gpus else 0,  # a process keeps the GPU that it began with
            "name": name,
            "scheduling_strategy": "SPREAD",
        }
        task = cluster.engine.remote(**options)(perform)
        around = Around(
            folder=Path.cwd(),
            variables={**variables_of(cluster.cpus), **self.variables},
            host=socket.gethostname() if cluster.own_store else "",
            host_has=cluster.own_store,
        )
        self.running[task.remote(pickle.dumps(around), self.work, pickle.dumps(item))] = item, name

    def wait(self, seconds: float = LOOK_S) -> list[tuple[Item, Result]]:
        """What ended within a time.

        Raises:
            ClusterError: Ray has given a task up.
            PipelineError, RunStopped: what ended an item.
        """
        with at_once():
            if not self.running:
                time.sleep(seconds)
                return []
            try:
                ended, _ = self.cluster.engine.wait(list(self.running), timeout=seconds)
            except ConnectionError as err:
                raise ClusterError(
                    f"cluster={self.cluster.address} is lost ({first_line(err)}): see to "
                    "its head; the same command goes on"
                ) from None
        return [self._ended(task) for task in ended]

    def _ended(self, task: object) -> tuple[Item, Result]:
        item, name = self.running.pop(task)
        outcome: Outcome[Result] = self._outcome(task, name)
        if outcome.lost:
            times = count_of(outcome.lost, "time")
            self.cluster.say(f"note: {name} was lost {times} with its process, and was run again")
        for line in outcome.lines:
            self.cluster.say(line)
        if outcome.fault:
            raise outcome.fault
        return item, outcome.value  # type: ignore[return-value]  # a Result that may be None

    def _outcome(self, task: object, name: str) -> Outcome[Result]:
        faults = self.cluster.engine.exceptions
        try:
            found: Outcome[Result] = self.cluster.engine.get(task)
        except faults.RayTaskError:
            raise  # a fault of ours, with its traceback
        except faults.RayError as err:
            raise ClusterError(
                f"cluster={self.cluster.address}: Ray has given up {name} after {RETRIES} retries "
                f"({type(err).__name__}: {first_line(err)}): see to the nodes and their memory; "
                "the same command goes on"
            ) from None
        return found

    def stop(self) -> None:
        """End what still runs: as by Ctrl-C first, outright after a while."""
        engine, end = self.cluster.engine, time.monotonic() + GRACE_S
        left = list(self.running)
        self.running.clear()
        with suppress(ConnectionError):  # Ray ends what a lost command has left
            for task in left:
                engine.cancel(task)
            while left and time.monotonic() < end:
                _, left = engine.wait(left, num_returns=len(left), timeout=LOOK_S)
            for task in left:
                engine.cancel(task, force=True)


@contextmanager
def cluster_of(settings: ClusterSettings, device: str, say: Say) -> Iterator[Cluster | None]:
    """The cluster that was asked for; None: this process does everything.

    `device`: the setting; on `cpu` tasks have no GPU.

    Raises:
        ClusterError: Ray is not installed, or nothing answers there; or the device is one of
            several by its number.
    """
    address = settings.cluster or (LOCAL if settings.workers > 1 else "")
    if not address:
        yield None
        return
    if device.startswith("cuda:") and device != "cuda:0":  # the number of a task's own GPU
        raise ClusterError(
            f"device={device} together with tasks (workers= or cluster=): Ray shows each task the "
            "GPUs that it gives it, counted from 0: pass -P device=cuda"
        )
    with connected(address, settings.workers) as engine:
        nodes = [node["Resources"] for node in engine.nodes() if node["Alive"]]
        gpus = 0.0 if device == "cpu" else settings.num_gpus or float(_have_gpus(nodes))
        workers = settings.workers if address == LOCAL else 0
        cpus = settings.num_cpus or cores_each(nodes, gpus, workers)
        cluster = Cluster(
            engine=engine, address=address, most=settings.workers, cpus=cpus, gpus=gpus, say=say
        )
        cluster.announce()
        yield cluster


def _have_gpus(nodes: list[Mapping[str, float]]) -> bool:
    return any(has.get("GPU", 0) >= 1 for has in nodes)


def cores_each(nodes: list[Mapping[str, float]], gpus: float, workers: int) -> int:
    """Cores of a task: those of a node, or of its GPUs, shared out; `workers`: over so many."""
    able = [has for has in nodes if has.get("CPU", 0) >= 1 and has.get("GPU", 0) >= gpus]
    shares = [
        has["CPU"] // (workers or (max(1, int(has["GPU"] / gpus)) if gpus else 1)) for has in able
    ]
    most = max(shares, default=1) if workers else MOST_CPUS
    return max(1, int(min([*shares, most])))
