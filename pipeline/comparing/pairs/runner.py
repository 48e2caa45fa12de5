"""Runs the arms of a comparison on the images of a pair, and scores them on the test split.

In: arms and the numbers of pairs. Out: each pair's runs and scores. A pair that has been run
before, by any process, is found by content and costs nothing; commands on one machine divide
pairs among them by locks in the cache's folder. An arm that diverges recognises nothing: the pair
counts with that, unless all its arms diverge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from filelock import Timeout

from pipeline.comparing.arms import Arm
from pipeline.comparing.pairs.results import ArmResult, Done, PairKey, Results, label_of
from pipeline.data.cache import cache_folder
from pipeline.data.inspection.overlap import Overlap
from pipeline.errors import DivergedError
from pipeline.model.backbones import Backbone
from pipeline.runs.find_or_run import add_pictures_and_model, find_or_run
from pipeline.runs.findings.predictions import Correct, keep_predictions, predicted_before
from pipeline.runs.floor import Floor, floor_of
from pipeline.runs.messages.origins import origin_of
from pipeline.runs.scoring import keep_scores, logits_of, scored_on
from pipeline.runs.session import Session
from pipeline.settings.run import Settings
from pipeline.signals.evidence import as_far_as_allowed
from pipeline.stats.metrics import DEFAULT_SHARE, score_logits
from pipeline.system.disk.digests import digest_values
from pipeline.system.disk.files import lock_for_all, storage_faults
from pipeline.system.interrupts import at_once
from pipeline.system.progress import bar, doing
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.history import Summary, chain_of
from pipeline.tracking.keys import PEAK_MIB, PREFIX_S, TEST, TEST_SHA256, TOTAL_S, TRAINABLE, VAL


def shared_prefix(backbone: Backbone, arm: Arm, arms: Sequence[Arm]) -> int:
    """How many segments' outputs an arm's scoring shares with the other arms'.

    The shortest frozen prefix of any arm, so that one entry of the prefix cache serves as many
    arms as can be; arms that train everything aside.
    """
    own, *others = (
        backbone.frozen_segments(a.settings.stage(a.last).trainable) for a in (arm, *arms)
    )
    return min(prefix for prefix in (own, *others) if prefix) if own else 0


def lock_folder(settings: Settings) -> Path:
    """Where processes that divide pairs among them hold locks; made if need be.

    Raises:
        StorageError: it cannot be written.
    """
    folder = cache_folder(settings) / "pairs"
    with storage_faults("the cache", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder


@dataclass(kw_only=True)
class PairRunner:
    """Runs the same arms on draw after draw.

    Attributes:
        overlap: the test images, and which of them the pairs that are done have seen.
        nested_under: the run that new runs are nested in.
        tell: a line about a finished pair.
        metric: of `METRICS`, what the arms are compared by.
        called: what a pair is called in the names of its runs.
        seeds: pairs on each draw.
        done: results in the order of `arms`, by the number of the pair.
    """

    arms: tuple[Arm, ...]
    overlap: Overlap
    tracking: Tracking
    nested_under: str | None
    say: Callable[[str], None]
    tell: Callable[[PairKey, Results], str]
    metric: str = DEFAULT_SHARE
    called: str = "pair"
    seeds: int = 1
    done: dict[int, Results] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.test = self.overlap.test
        self.test_digest = self.test.fingerprint()

    def name_of(self, key: PairKey) -> str:
        """`pair 3`; with several seeds a draw `pair 2.1`."""
        return f"{self.called} {label_of(key.number, self.seeds)}"

    def run_all(self, keys: list[PairKey]) -> list[Results]:
        """Every pair, found or run; the pairs that another process works on come last."""
        new = [key for key in keys if key.number not in self.done]
        with bar(f"{self.called}s", len(keys), done=len(keys) - len(new)) as step:
            later = [key for key in new if not self._try(key, step)]
            for key in later:
                self._try(key, step, wait=True)
        return [self.done[key.number] for key in keys]

    def _try(self, key: PairKey, step: Callable[[int], object], *, wait: bool = False) -> bool:
        done = self.attempt(key, wait=wait)
        if done:
            self.take(key, done)
            step(1)
        return done is not None

    def take(self, key: PairKey, done: Done) -> None:
        """Count a pair, and tell of it."""
        self.done[key.number] = done.results
        self.overlap = self.overlap.joined(done.seen, done.left_out)
        self.tracking.recipes_met |= done.recipes
        self.say(f"{self.tell(key, done.results)}{' (reused)' if done.reused else ''}")

    def attempt(self, key: PairKey, *, wait: bool) -> Done | None:
        """Run a pair unless another process works on it; `wait`: run it afterwards."""
        folder = lock_folder(self.arms[0].settings)
        content = [
            arm.settings.model_copy(update={"draw": key.draw}).model_dump() | {"pair": str(key)}
            for arm in self.arms
        ]
        lock = lock_for_all(folder / f"{digest_values(content)}.lock")
        try:
            others = doing(f"waiting for the {self.called} of another command")
            with others, storage_faults("the cache", folder), at_once():
                held = lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return None
        with held:
            return self._run(key)

    def _run(self, key: PairKey) -> Done:
        session = self._session(key, self.arms[0])
        found: list[ArmResult] = []
        reused, failures = True, []
        for arm in self.arms:
            settings = session.resolved(key.apply(arm.settings))
            own = replace(session, settings=settings, keys={}, done={})
            try:
                summary = find_or_run(own, arm.last, self.nested_under)
                found.append(self._scored(own, arm, summary))
                reused &= summary.reused
            except DivergedError as err:
                failures.append(err)
                found.append(self._nothing(key, arm, err))
                reused = False
        if len(failures) == len(self.arms):
            raise failures[0]
        alone = self.overlap.alone([session.draw])
        return Done(
            results=tuple(found),
            reused=reused,
            seen=alone.seen,
            left_out=alone.left_out,
            recipes=frozenset(self.tracking.recipes_met),
        )

    def completed(self, key: PairKey, arm: Arm) -> ArmResult:
        """An arm's result on a pair that is done, its run now with pictures and a served model."""
        result = self.done[key.number][self.arms.index(arm)]
        session = self._session(key, arm)
        session.settings = session.settings.to_be_shown()
        add_pictures_and_model(session, arm.last, result.run_id)
        return result

    def run_extra(self, key: PairKey, arm: Arm) -> ArmResult:
        """Another arm on a pair's images, for show."""
        own = self._session(key, arm)
        try:
            summary = find_or_run(own, arm.last, self.nested_under)
        except DivergedError as err:
            return self._nothing(key, arm, err)
        return self._scored(own, arm, summary)

    def floor(self, key: PairKey, arm: Arm) -> Floor | None:
        """Stage 0 on a pair's images and the test images."""
        return floor_of(self._session(key, arm), self.test)

    def _session(self, key: PairKey, arm: Arm) -> Session:
        session = Session.open(key.apply(arm.settings), self.tracking, lambda _: None)
        return replace(session, is_trial=True, role=self.name_of(key))

    def _scored(self, session: Session, arm: Arm, summary: Summary) -> ArmResult:
        """A run's score on the test images, measured before or now, and its chain's cost."""
        run = self.tracking.get(summary.run_id)
        measured = scored_on(self.test_digest, session.precision)
        counts = self.overlap.alone([session.draw]).counts.metrics
        known = measured.items() <= run.tags.items() and TEST[self.metric] in run.metrics
        names = session.draw.class_names
        predicted = predicted_before(self.tracking, run, self.test, names) if known else None
        if predicted is not None:
            test = run.metrics[TEST[self.metric]]
            if not counts.items() <= run.metrics.items():
                self.tracking.writing(run.run_id).metrics(counts)
        else:
            backbone = session.restore(run)
            prefix = shared_prefix(backbone, arm, self.arms)
            logits = logits_of(session, backbone, self.test, prefix)
            scores = score_logits(logits, self.test.labels)
            test, predicted = scores[self.metric], logits.argmax(1).numpy()
            if run.tags.get(TEST_SHA256, "unknown") in (self.test_digest, "unknown"):
                with as_far_as_allowed(run, self.say):
                    keep_predictions(self.tracking, run, logits, self.test, names)
                keep_scores(self.tracking, run, scores, measured, counts)
            else:
                self.say(
                    f"note: run {run.run_id} was scored on other test images before: its test/acc "
                    "stays, and this command counts the score that was measured now"
                )
        correct: Correct = predicted == self.test.labels.numpy()
        val = summary.metrics[VAL[self.metric]]
        result = self._result(run, val=val, test=test, correct=correct)
        return replace(result, predicted=predicted)

    def _nothing(self, key: PairKey, arm: Arm, err: DivergedError) -> ArmResult:
        """What an arm that diverged came to: a network without numbers recognises no image."""
        self.say(
            f"note: {self.name_of(key)}: {arm.words} diverged (run {err.run_id}; {err}): no "
            "image counts as recognised"
        )
        correct, run = np.zeros(len(self.test), dtype=np.bool_), self.tracking.get(err.run_id)
        return replace(self._result(run, val=0.0, test=0.0, correct=correct), diverged=True)

    def _result(self, run: RunView, *, val: float, test: float, correct: Correct) -> ArmResult:
        """A run's scores, and its chain's cost and origin."""
        chain = list(chain_of(self.tracking, run))
        prefix_s = sum(one.metrics[PREFIX_S] for one in chain)
        return ArmResult(
            run_id=run.run_id,
            correct=correct,
            origins={one.run_id: origin_of(one) for one in chain},
            val=val,
            test=test,
            training_s=sum(one.metrics[TOTAL_S] for one in chain) - prefix_s,
            prefix_s=prefix_s,
            parameters_trained=max(int(one.metrics[TRAINABLE]) for one in chain),
            peak_mib=float(np.max([one.metrics.get(PEAK_MIB, math.nan) for one in chain])),
        )
