"""What `decide` and `compare` share: test images, pairs dealt from a pool, where they run.

In: settings of the arms. Out: a `PairSetup`. Images, weights and a storage that cannot serve the
pairs are refused before an image is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from pipeline.cluster.dispatcher import Cluster, cluster_of
from pipeline.comparing.arms import Arm
from pipeline.comparing.cost import equal_steps, shown_steps
from pipeline.comparing.pairs.draws import Pool, pool_in
from pipeline.comparing.pairs.results import PairKey, Results, pair_keys, resolution_pp
from pipeline.comparing.pairs.runner import PairRunner, lock_folder
from pipeline.data.base import Source, preparation_of
from pipeline.data.inspection.overlap import Overlap, tuning_draws
from pipeline.data.open import NAMES
from pipeline.data.sampling.draws import check_readable, dealt_words, draw_rows
from pipeline.entries.chain import check_storage
from pipeline.errors import DataError
from pipeline.runs.command import Command
from pipeline.runs.findings.near_duplicates import log_near_duplicates
from pipeline.runs.scoring import read_test_split, test_split
from pipeline.runs.session import Session
from pipeline.runs.sources import check_draws, source_and_weights
from pipeline.runs.stage_log import log_unreadable
from pipeline.settings.cluster import ClusterSettings
from pipeline.settings.run import Settings
from pipeline.stats.metrics import DEFAULT_SHARE, METRICS
from pipeline.tracking import RunLog, Tracking
from pipeline.training.device import emulation_note, pick_device

FEWEST_TEST_IMAGES = 2
"""Of one, nothing is known of how gains differ between images."""


@dataclass(frozen=True, kw_only=True)
class PairSetup:
    """The store of paired runs, their images, and the pool from which pairs are dealt.

    `overlap`: the test images, and which of them are copies of images seen before any pair.
    """

    command: Command
    tracking: Tracking
    settings: Settings
    source: Source
    overlap: Overlap
    pool: Pool
    seeds: int
    cluster: Cluster | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        command: Command,
        settings: Sequence[Settings],
        looks: tuple[int, ...],
        *,
        reserved: int,
        asked: str,
        tasks: ClusterSettings,
        seeds: int = 1,
    ) -> Iterator[PairSetup]:
        """The setup of arms with these settings, one for each backbone; at the end, where to look.

        `reserved`: draws that tuning uses; 0: nothing is tuned. `asked`: the setting that says how
        many pairs there are. `tasks`: where pairs run. `seeds`: on each draw.
        """
        data = settings[0].data_name
        kind = "decision" if asked == "looks" else "comparison"
        tracking = Tracking.connect(f"{kind} · {data}", data)
        with (
            tracking.explained(),
            cluster_of(tasks, settings[0].device, command.say) as cluster,
        ):
            if cluster:
                cluster.check_stores(tracking.uri, *_storages(command, tracking, reserved))
            setup = cls._of(command, tracking, settings, looks, reserved, asked)
            yield replace(setup, seeds=seeds, cluster=cluster)
        command.say(tracking.how_to_browse)

    @classmethod
    def _of(
        cls,
        command: Command,
        tracking: Tracking,
        settings: Sequence[Settings],
        looks: tuple[int, ...],
        reserved: int,
        asked: str,
    ) -> PairSetup:
        if reserved:
            check_storage(command, tracking)
        lock_folder(settings[0])
        for one in settings:
            source, _ = source_and_weights(one)
        first = settings[0]
        test_split(source, first)
        check_draws(source, first, range(first.draw, first.draw + max(1, reserved)))
        pool = pool_in(source, first, looks, reserved=reserved, asked=asked)
        test = read_test_split(source, first, command.say)
        if len(test) < FEWEST_TEST_IMAGES:
            raise DataError(
                f"{first.data}: 1 image of the test split can be read, pairs are scored on "
                f"{FEWEST_TEST_IMAGES} or more: add images to the test split"
            )
        overlap = Overlap.of(test, source).after(tuning_draws(source, first, reserved))
        return cls(
            command=command,
            tracking=tracking,
            settings=first,
            source=source,
            overlap=overlap,
            pool=pool,
            seeds=1,
        )

    @property
    def keys(self) -> list[PairKey]:
        """The pairs, up to the last look."""
        return pair_keys(self.pool, self.settings, self.seeds)

    @property
    def images(self) -> int:
        """Training images of the first pair's draw."""
        return len(draw_rows(self.source, self.keys[0].apply(self.settings))[0])

    def worth_pp(self, metric: str) -> float:
        """What one test image is worth by a metric, see `resolution_pp`."""
        return resolution_pp(self.overlap.test.labels.numpy(), metric)

    def check(self, keys: Sequence[PairKey]) -> None:
        """Refuse pairs with images that cannot be read, and tell what is known of the images."""
        check_readable(self.source, [key.apply(self.settings) for key in keys])
        if words := dealt_words(self.source, self.keys[0].apply(self.settings)):
            self.command.say(words)
        slow = emulation_note(self.settings.precision, pick_device(self.settings.device))
        for note in filter(None, (*self.source.notes, slow)):
            self.command.say(f"note: {note}")

    def announce(self, compared: str, arms: Sequence[Arm], metric: str, extra: str = "") -> None:
        """Tell what is compared, at how many steps, on which images."""
        steps = shown_steps(equal_steps(arms, self.images))
        self.command.say(
            f"{compared} {steps} optimizer steps{extra}; {self.pool.sentence}; "
            f"{METRICS[metric].words} on {len(self.overlap.test)} test images"
        )
        sizes = self.source.class_sizes(test_split(self.source, self.settings))
        if metric == DEFAULT_SHARE and sizes.min() < sizes.max():
            self.command.say(
                f"note: classes have {sizes.min()} to {sizes.max()} test images, and accuracy "
                "counts images: -P metric=balanced_acc (or macro_f1) counts classes alike"
            )
        if note := self.overlap.counts.note:
            self.command.say(note)

    def _prepared(self, overlap: Overlap, settings: Settings) -> Overlap:
        """The overlap with the same test images of another size, or otherwise prepared."""
        wanted = settings.image_size, preparation_of(settings)
        if (overlap.test.pixels.shape[-1], overlap.test.preparation) == wanted:
            return overlap
        test = read_test_split(self.source, settings, lambda _: None)
        assert np.array_equal(test.digests, overlap.test.digests), "the same images"
        return replace(overlap, test=test)

    @contextmanager
    def run(self, kind: str, name: str, params: Mapping[str, object]) -> Iterator[RunLog]:
        """The run of the whole command."""
        with self.tracking.run(name, {"kind": kind}, target=True) as log:
            log.params(params)
            log_unreadable(log, self.overlap.test.unreadable)
            self._log_near_duplicates(log)
            yield log

    def _log_near_duplicates(self, log: RunLog) -> None:
        """Images of the first look's draws and the test split that are nearly the same.

        The features come from the entries of the cache that the pairs' first stages need anyway;
        without a cache the first draw alone is looked at.
        """
        if not self.settings.near_duplicates or self.settings.data in NAMES:
            return
        looked_at = self.keys[: self.pool.looks[0] * self.seeds if self.settings.cache else 1]
        draws = {(key.draw, key.data_seed): key for key in reversed(looked_at)}
        sessions = map(self._session, reversed(draws.values()))
        test = self.overlap.test
        log_near_duplicates(next(sessions), log, self.command.say, sessions, test)

    def _session(self, key: PairKey) -> Session:
        session = Session.open(key.apply(self.settings), self.tracking, lambda _: None)
        session.pretrained_backbone()
        return session

    def runner(
        self,
        arms: tuple[Arm, ...],
        overlap: Overlap,
        metric: str,
        run_id: str,
        tell: Callable[[int, str, Results], str],
        called: str = "pair",
    ) -> PairRunner:
        """A runner of these arms, with test images prepared as their backbone's weights want them.

        `overlap`: with the draws that have been run before.
        `tell`: a line about a finished pair: number, images and seed in words, results.
        """

        def line(key: PairKey, results: Results) -> str:
            images = f"data_seed {key.data_seed}" if self.pool.resampled else f"draw {key.draw}"
            return tell(key.number, f"{images}, seed {key.seed}", results)

        return PairRunner(
            arms=arms,
            overlap=self._prepared(overlap, arms[0].settings),
            tracking=self.tracking,
            nested_under=run_id,
            say=self.command.say,
            tell=line,
            metric=metric,
            called=called,
            seeds=self.seeds,
        )


def _storages(command: Command, tracking: Tracking, reserved: int) -> list[str]:
    """The storage of studies, where arms are tuned."""
    if not reserved:
        return []
    from pipeline.tuning.storage.access import storage_url  # Optuna is imported where it is used

    return [storage_url(command.storage, tracking.uri)]
