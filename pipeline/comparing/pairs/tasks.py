"""Pairs as tasks: what another process needs to run one, and what it brings back.

In: the arms, and where new runs are nested. Out: for each pair what this process would have come
to. A process of the cluster opens the store and reads the test images once, for all its pairs.
Pairs that another command works on come last, so that two commands divide the pairs among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.cluster.dispatcher import Cluster
from pipeline.cluster.task import Say
from pipeline.comparing.arms import Arm
from pipeline.comparing.pairs.results import ArmResult, Done, PairKey, Results
from pipeline.comparing.pairs.runner import PairRunner
from pipeline.data.inspection.overlap import Overlap
from pipeline.runs.scoring import read_test_split
from pipeline.runs.sources import source_and_weights
from pipeline.system.progress import bar
from pipeline.tracking import Tracking

Attempt = tuple[PairKey, bool]
"""A pair, and whether to wait where another command works on it."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What an arm that is run for show came to; `recipes`: whose siblings are to be refreshed."""

    result: ArmResult
    recipes: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class PairWork:
    """Arms that are run on pair after pair; see `PairRunner`.

    Attributes:
        extra: an arm that is run in their place, for show.
    """

    arms: tuple[Arm, ...]
    nested_under: str | None
    metric: str
    called: str
    seeds: int
    extra: Arm | None = None

    @classmethod
    def of(cls, runner: PairRunner, extra: Arm | None = None) -> PairWork:
        """What a runner does, to be done elsewhere."""
        return cls(
            arms=runner.arms,
            nested_under=runner.nested_under,
            metric=runner.metric,
            called=runner.called,
            seeds=runner.seeds,
            extra=extra,
        )

    @cached_property
    def _runner(self) -> PairRunner:
        settings = self.arms[0].settings
        tracking = Tracking.connect(data=settings.data_name)
        source, _ = source_and_weights(settings)
        test = read_test_split(source, settings, lambda _: None)
        return PairRunner(
            arms=self.arms,
            overlap=Overlap.of(test, source),
            tracking=tracking,
            nested_under=self.nested_under,
            say=lambda _: None,
            tell=lambda *_: "",
            metric=self.metric,
            called=self.called,
            seeds=self.seeds,
        )

    def do(self, item: Attempt, say: Say) -> Done | Extra | None:
        """Run a pair, or find that it has been run; None: another command works on it."""
        runner, (key, wait) = self._runner, item
        runner.say = say
        if self.extra:
            result = runner.run_extra(key, self.extra)
            return Extra(result=result, recipes=frozenset(runner.tracking.recipes_met))
        return runner.attempt(key, wait=wait)


def run_all(runner: PairRunner, keys: list[PairKey], cluster: Cluster | None) -> list[Results]:
    """Every pair, found or run, here or on the cluster."""
    if cluster is None:
        return runner.run_all(keys)
    new = [key for key in keys if key.number not in runner.done]
    names = {runner.name_of(key): key for key in new}
    with (
        bar(f"{runner.called}s", len(keys), done=len(keys) - len(new)) as step,
        cluster.dispatcher(PairWork.of(runner), runner.tracking.place) as dispatcher,
    ):
        for wait in (False, True):
            left = {n: (key, wait) for n, key in names.items() if key.number not in runner.done}
            for (key, _), found in dispatcher.run(left):
                if isinstance(found, Done):
                    runner.take(key, found)
                    step(1)
    return [runner.done[key.number] for key in keys]


def run_extra(
    runner: PairRunner, keys: Sequence[PairKey], arm: Arm, cluster: Cluster | None
) -> list[ArmResult]:
    """Another arm on the images of pairs, for show, here or on the cluster."""
    if cluster is None:
        return [runner.run_extra(key, arm) for key in keys]
    names = {f"{arm.name} on {runner.name_of(key)}": key for key in keys}
    found: dict[PairKey, ArmResult] = {}
    with cluster.dispatcher(PairWork.of(runner, arm), runner.tracking.place) as dispatcher:
        for (key, _), extra in dispatcher.run({name: (key, True) for name, key in names.items()}):
            assert isinstance(extra, Extra)
            found[key] = extra.result
            runner.tracking.recipes_met |= extra.recipes
    return [found[key] for key in keys]
