"""Pairs: where images and seeds come from, what they are scored on, how a small pool is dealt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.cli import main
from pipeline.cluster.dispatcher import Cluster
from pipeline.comparing.arms import Arm, Comparison, decide_plan
from pipeline.comparing.pairs.draws import Pool, pool_of
from pipeline.comparing.pairs.results import Done, PairKey, label_of, pair_keys
from pipeline.comparing.pairs.runner import PairRunner, shared_prefix
from pipeline.comparing.pairs.tasks import Attempt, PairWork, run_all, run_extra
from pipeline.data.base import Source, Split
from pipeline.data.images import digest_image
from pipeline.data.inspection.overlap import Overlap
from pipeline.data.sampling.draws import deal_rows, draws_held, set_aside, share_in_common
from pipeline.errors import DataError, DesignError, StorageError
from pipeline.model.backbones import Backbone, batch_norms, build_backbone
from pipeline.runs.scoring import predict
from pipeline.runs.sources import source_of
from pipeline.settings.run import Settings
from pipeline.settings.schedules import SCHEDULES
from pipeline.tracking import Tracking
from pipeline.training.prefix.cache import PrefixCache
from tests.conftest import write_image_folder
from tests.families import small
from tests.helpers import (
    CLASSES,
    CPU,
    calibrate,
    calibrated_backbone,
    load_settings,
    make_draw,
    make_images,
    request_of,
    slow_after,
)
from tests.test_draws import make_source, make_split


def arm(name: str, last: int | None = None) -> Arm:
    settings = load_settings({"preset": "cifar10_small", "schedule": name})
    return Arm(name=name, settings=settings, last=last or len(SCHEDULES[name].stages))


def pool(count: int, *, resampled: bool = False) -> Pool:
    return Pool(first_draw=2, resampled=resampled, looks=(2, count), sentence="")


def digests(split: Split | None) -> set[bytes]:
    assert split
    return {digest_image(image) for image in split.read(range(len(split.labels)))}


def test_disjoint_pairs_take_draw_after_draw_of_one_shuffle() -> None:
    keys = pair_keys(pool(3), load_settings({"data_seed": "5", "seed": "40"}))
    assert keys == [
        PairKey(number=0, draw=2, data_seed=5, seed=42),
        PairKey(number=1, draw=3, data_seed=5, seed=43),
        PairKey(number=2, draw=4, data_seed=5, seed=44),
    ]
    moved = pair_keys(pool(3), load_settings({"data_seed": "5", "seed": "40", "draw": "2"}))
    assert moved == [
        PairKey(number=0, draw=2, data_seed=5, seed=40),
        PairKey(number=1, draw=3, data_seed=5, seed=41),
        PairKey(number=2, draw=4, data_seed=5, seed=42),
    ]


def test_further_seeds_of_a_draw_follow_its_first() -> None:
    keys = pair_keys(pool(2), load_settings({"seed": "40"}), seeds=2)
    assert [(key.number, key.draw, key.seed) for key in keys] == [
        (0, 2, 42),
        (1, 2, 1042),
        (2, 3, 43),
        (3, 3, 1043),
    ]


def test_resampled_pairs_take_the_first_draw_of_a_shuffle_each() -> None:
    keys = pair_keys(pool(3, resampled=True), load_settings({"data_seed": "5", "seed": "40"}))
    assert keys == [
        PairKey(number=0, draw=0, data_seed=6, seed=40),
        PairKey(number=1, draw=0, data_seed=7, seed=41),
        PairKey(number=2, draw=0, data_seed=8, seed=42),
    ]


def test_an_arm_that_is_run_for_show_elsewhere_has_its_siblings_refreshed_here() -> None:
    key, shown = PairKey(number=3, draw=1, data_seed=0, seed=1), arm("lp_ft")
    there = SimpleNamespace(
        run_extra=lambda *asked: asked, tracking=SimpleNamespace(recipes_met={"its recipe"})
    )

    class Task:
        def run(self, names: dict[str, Attempt]) -> Iterator[tuple[Attempt, object]]:
            assert list(names) == ["lp_ft on pair 2.2"]
            for item in names.values():
                yield item, work[0].do(item, print)

    @contextmanager
    def dispatcher(asked: PairWork, place: dict[str, str]) -> Iterator[Task]:
        assert place == {"MLFLOW_EXPERIMENT_ID": "0"}
        asked.__dict__["_runner"] = there  # a store of its own
        work.append(asked)
        yield Task()

    work: list[PairWork] = []
    here = cast(
        "PairRunner",
        SimpleNamespace(
            arms=(arm("full"),),
            nested_under=None,
            metric="acc",
            called="pair",
            seeds=2,
            name_of=lambda key: f"pair {label_of(key.number, 2)}",
            tracking=SimpleNamespace(recipes_met={"ours"}, place={"MLFLOW_EXPERIMENT_ID": "0"}),
        ),
    )
    cluster = cast("Cluster", SimpleNamespace(dispatcher=dispatcher))
    assert run_extra(here, [key], shown, cluster) == [(key, shown)]
    assert here.tracking.recipes_met == {"ours", "its recipe"}


def test_tasks_leave_a_pair_to_the_command_that_works_on_it_and_come_back_last() -> None:
    keys = [PairKey(number=n, draw=n, data_seed=0, seed=n) for n in range(3)]
    elsewhere, tried = {1}, list[Attempt]()
    done = Done(results=(), reused=False, seen=(), left_out=0, recipes=frozenset())

    def attempt(key: PairKey, *, wait: bool) -> Done | None:
        tried.append((key, wait))
        return None if key.number in elsewhere and not wait else done

    there = SimpleNamespace(attempt=attempt)

    class Task:
        def run(self, names: dict[str, Attempt]) -> Iterator[tuple[Attempt, object]]:
            for item in names.values():
                yield item, work[0].do(item, print)

    @contextmanager
    def dispatcher(asked: PairWork, _: dict[str, str]) -> Iterator[Task]:
        asked.__dict__["_runner"] = there
        work.append(asked)
        yield Task()

    work: list[PairWork] = []
    here = SimpleNamespace(
        arms=(arm("full"),),
        nested_under=None,
        metric="acc",
        called="pair",
        seeds=1,
        name_of=str,
        done={},
        tracking=SimpleNamespace(place={}),
    )
    here.take = lambda key, found: here.done.update({key.number: found})
    cluster = cast("Cluster", SimpleNamespace(dispatcher=dispatcher))
    assert run_all(cast("PairRunner", here), keys, cluster) == [done] * 3
    assert tried == [*((key, False) for key in keys), (keys[1], True)]


@pytest.mark.parametrize("place", ["/proc/nope", "file", "folder/pairs"])
@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_cache_folder_that_cannot_be_used_is_told(store: Path, place: str, cache: str) -> None:
    (store / "folder").mkdir()
    for name in ("file", "folder/pairs"):
        (store / name).touch()
    where = {"cache_dir": place.removesuffix("/pairs"), "cache": cache}
    nothing = np.zeros(2, dtype=np.bool_)
    treatment = Arm(name="full", settings=load_settings({"schedule": "full", **where}), last=1)
    runner = PairRunner(
        arms=(treatment,),
        overlap=Overlap(test=make_images(2), in_pool=nothing, seen=nothing, class_names=()),
        tracking=Tracking.connect(),
        nested_under=None,
        say=print,
        tell=lambda *_: "",
    )
    with pytest.raises(StorageError, match=r"^cannot write the cache to .*: choose a folder"):
        runner.run_all([PairKey(number=0, draw=0, data_seed=0, seed=0)])


@pytest.mark.parametrize("words", [["decide", "--looks", "2"], ["compare", "--draws", "2"]])
def test_a_cache_folder_that_cannot_be_used_is_told_before_images_are_read(
    words: list[str], store: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in image_folder.rglob("*.png"):
        path.write_bytes(b"")
    own = ["--data", str(image_folder), "--weights", "none", "--cache_dir", "/proc/nope"]
    assert main([*words, *own]) == 2
    assert "cannot write the cache to /proc/nope/pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arms", "prefixes"),
    [
        ([("three_stage", 3), ("stage2_continued", 3)], [3, 3]),
        ([("three_stage", 2), ("stage1_continued", 2)], [4, 4]),
        ([("stage1_continued", 2)], [5]),
        ([("three_stage", 3), ("full", 1)], [3, 0]),
        ([("full", 1), ("two_stage", 2), ("head_only", 1), ("lp_ft", 2)], [0, 3, 3, 0]),
        ([("lp_ft", 1), ("lp_ft", 2)], [5, 0]),
    ],
)
def test_arms_are_scored_through_the_frozen_blocks_that_they_have_in_common(
    arms: list[tuple[str, int]], prefixes: list[int]
) -> None:
    given = [arm(name, last) for name, last in arms]
    backbone = build_backbone("resnet18", CLASSES, 32, seed=0)
    assert [shared_prefix(backbone, one, given) for one in given] == prefixes


def vary(backbone: Backbone, blocks: tuple[str, ...], seed: int) -> None:
    """Other weights and statistics in these blocks."""
    generator = torch.Generator().manual_seed(seed)
    state = backbone.model.state_dict()
    with torch.no_grad():
        for name in backbone.tensor_names(blocks):
            if state[name].is_floating_point():
                state[name] *= 1 + 0.2 * torch.rand(state[name].shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "prefix"),
    slow_after(
        2,
        [
            *(("mobilenet_v3_small", prefix) for prefix in (0, 5, 1)),
            *(("resnet18", prefix) for prefix in (3, 0)),
        ],
    ),
)
def test_logits_through_a_kept_prefix_are_those_of_the_whole_model(
    name: str, prefix: int, tmp_path: Path
) -> None:
    images = make_images(24)
    backbone = calibrated_backbone(name, images)
    suffix = backbone.order[prefix:]
    for seed in range(2):
        vary(backbone, suffix, seed)
        cache = PrefixCache(tmp_path, 1 << 30)
        found = predict(backbone, images, torch.float32, CPU, cache=cache, prefix=prefix)
        expected = predict(backbone, images, torch.float32, CPU)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(list(tmp_path.glob("*.bin"))) == (1 if prefix else 0)  # computed once


@pytest.mark.parametrize("blocks", [("stem",), ("block1",), ()])
def test_a_prefix_that_changed_is_computed_again(tmp_path: Path, blocks: tuple[str, ...]) -> None:
    images = make_images(12)
    backbone = small("regnet_y_400mf")
    calibrate(backbone, images)
    cache, prefix = PrefixCache(tmp_path, 1 << 30), 2
    before = predict(backbone, images, torch.float32, CPU, cache=cache, prefix=prefix)
    if blocks:
        vary(backbone, blocks, 2)
    else:  # one statistic is enough
        norm = next(batch_norms([backbone.model]))
        assert norm.running_mean is not None
        norm.running_mean[0] += 3
    after = predict(backbone, images, torch.float32, CPU, cache=cache, prefix=prefix)
    torch.testing.assert_close(after, predict(backbone, images, torch.float32, CPU))
    assert not torch.allclose(after, before)


def test_scoring_holds_one_batch_of_outputs_however_many_images_there_are(tmp_path: Path) -> None:
    """Outputs of all images at once would take gigabytes at 224 px."""
    backbone = build_backbone("mobilenet_v3_small", CLASSES, 512, seed=0)
    largest: list[int] = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda _module, _inputs, output: largest.append(len(output))
    )
    try:
        images = make_images(6, size=512)
        for prefix in (0, 2):
            cache = PrefixCache(tmp_path, 1 << 30)
            logits = predict(backbone, images, torch.float32, CPU, cache=cache, prefix=prefix)
            assert logits.shape == (6, CLASSES)
    finally:
        hook.remove()
    assert 0 < max(largest) <= 4


def sized(train: int, val: int) -> Settings:
    """Settings with these numbers of images a class."""
    return load_settings({}).model_copy(update={"train_per_class": train, "val_per_class": val})


def test_images_set_aside_are_in_no_draw_of_any_shuffle() -> None:
    source = make_source(14, 14, 17)
    split = set_aside(source, 2)
    test = digests(split.test)
    assert len(test) == 6
    assert test | digests(split.pool) == digests(source.pool)
    for data_seed in range(3):
        for number in range(4):
            draw = make_draw(
                split,
                train_per_class=2,
                val_per_class=1,
                data_seed=data_seed,
                draw=number,
                image_size=8,
            )
            drawn = {row.tobytes() for part in (draw.train, draw.val) for row in part.digests}
            assert len(drawn) == 9
            assert not test & drawn


def test_the_same_images_are_set_aside_whatever_is_drawn_and_shuffled(
    tmp_path: Path,
) -> None:
    folder = write_image_folder(tmp_path / "images")
    own = {"data": str(folder), "test_per_class": "3", "cache_dir": str(tmp_path)}
    own |= {"train_per_class": "2", "val_per_class": "1", "weights": "none"}
    changes = [{}, {"draw": "2"}, {"data_seed": "1"}, {"seed": "4"}, {"train_per_class": "1"}]
    found = [digests(source_of(load_settings(own | change)).test) for change in changes]
    assert len(found[0]) == 9
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize(("per_class", "refused"), [(4, False), (5, True), (6, True)])
def test_a_class_that_would_be_left_empty_is_named(per_class: int, refused: bool) -> None:
    source = make_source(9, 5)
    if not refused:
        assert np.bincount(set_aside(source, per_class).pool.labels).tolist() == [5, 1]
        return
    message = f"^farm: test_per_class = {per_class} takes all 5 images of class bee: lower"
    with pytest.raises(DataError, match=message):
        set_aside(source, per_class)


@pytest.mark.parametrize(
    ("source", "train", "val"),
    [
        (make_source(12, 12), 2, 1),
        (make_source(12, 7), 2, 1),
        (make_source(5, 5), 3, 2),
        (make_source(4, 9), 3, 2),
        (make_source(12, 12, val=make_split(4, 5, start=50)), 2, 2),
        (make_source(7, 12, val=make_split(9, 9, start=50)), 2, 2),
        (make_source(7, 12, val=make_split(1, 9, start=50)), 2, 2),
        (set_aside(make_source(12, 12), 3), 2, 1),
    ],
)
def test_as_many_draws_are_held_as_can_be_dealt(source: Source, train: int, val: int) -> None:
    held = draws_held(source, sized(train, val))

    def deal(draw: int) -> set[bytes]:
        dealt = make_draw(
            source,
            train_per_class=train,
            val_per_class=val,
            data_seed=0,
            draw=draw,
            image_size=4,
        )
        return {row.tobytes() for row in dealt.train.digests}

    dealt = [deal(draw) for draw in range(held)]
    assert not any(left & right for left, right in combinations(dealt, 2))
    with pytest.raises(DataError, match=r"too few images in class|the pool holds"):
        deal(held)


@pytest.mark.parametrize(
    ("held", "words", "first", "looks", "resampled", "sentence"),
    [
        (40, {}, 0, (5, 10, 20, 40), False, "pairs are disjoint draws, of 40 that the pool holds"),
        (45, {"draw": "4"}, 4, (5, 10, 20, 40), False, "disjoint draws, of 41 that the pool"),
        (
            19,
            {},
            0,
            (5, 10, 19),
            False,
            "holds 19 disjoint draws, 40 were",
        ),
        (10, {}, 0, (5, 10), False, "40 were asked for: this command ends after 10 pairs"),
        (7, {}, 0, (5, 7), False, "ends after 7 pairs"),
        (5, {}, 0, (5,), False, "ends after 5 pairs"),
        (20, {"tune": "on", "draws": "3"}, 3, (5, 10, 17), False, "beyond those used for tuning"),
        (43, {"tune": "on", "draws": "3"}, 3, (5, 10, 20, 40), False, "of 40 that the pool holds"),
        (
            40,
            {"draws": "3"},
            0,
            (5, 10, 20, 40),
            False,
            "of 40 that the pool holds",
        ),  # nothing is tuned
        (4, {}, 0, (5, 10, 20, 40), True, "holds 4 disjoint draws, 5 are needed: .*share"),
        (
            3,
            {"tune": "on"},
            0,
            (5, 10, 20, 40),
            True,
            "costs power, and tuning uses .*: fewer images a class would give disjoint draws",
        ),
    ],
)
def test_a_pool_is_dealt_as_disjoint_draws_as_far_as_it_reaches(
    held: int,
    words: dict[str, str],
    first: int,
    looks: tuple[int, ...],
    resampled: bool,
    sentence: str,
) -> None:
    plan = decide_plan(request_of("decide", {"preset": "cifar10_small", **words}))
    pool = dealt(plan, held)
    assert (pool.first_draw, pool.looks, pool.resampled) == (first, looks, resampled)
    assert re.search(sentence, pool.sentence)
    assert pool.correction == pytest.approx(0.75 * 0.25 / (1 - 0.75 * 0.25) if resampled else 0)


def dealt(plan: Comparison, held: int, share: float = 0.25) -> Pool:
    """The pool of a decision; two draws of different shuffles have a quarter in common."""
    return pool_of(
        plan.treatment.settings,
        plan.decide.design.looks,
        reserved=plan.tune.draws if plan.decide.tune else 0,
        held=held,
        share=share,
    )


def test_every_pair_of_a_disjoint_pool_has_a_draw() -> None:
    for held in range(5, 30):
        for draw in range(4):
            plan = decide_plan(
                request_of("decide", {"preset": "cifar10_small", "draw": str(draw)})
            )
            if draw and held - draw < 5:
                with pytest.raises(DesignError, match=f"{held - draw} of the {held} draws of 100"):
                    dealt(plan, held)
                continue
            pool = dealt(plan, held)
            if not pool.resampled:
                assert pool.first_draw + pool.looks[-1] <= held
                assert list(pool.looks) == sorted(set(pool.looks))


def test_pairs_that_would_all_train_on_the_same_images_are_refused() -> None:
    plan = decide_plan(request_of("decide", {"preset": "cifar10_small"}))
    with pytest.raises(DesignError, match=r"train_per_class=100 takes all .* at best for 20$"):
        dealt(plan, 1, share=1.0)
    assert dealt(plan, 5, share=1.0).correction == 0  # disjoint draws share nothing


@pytest.mark.parametrize(
    ("source", "train", "val"),
    [
        (make_source(12, 12), 4, 2),
        (make_source(12, 20), 3, 6),
        (make_source(9, 6, val=make_split(5, 5, start=50)), 4, 3),
        (make_source(6, 6, val=make_split(3, 3, start=50)), 6, 3),
    ],
)
def test_the_share_in_common_is_what_shuffles_give(source: Source, train: int, val: int) -> None:
    """Counted on many pairs of shuffles, of the class and the part where it is largest."""

    def dealt(data_seed: int) -> list[set[int]]:
        rows = deal_rows(source, train, val, data_seed, 0)
        parts = rows if source.val is None else rows[:1]
        sizes = (train, val)
        return [
            set(per_class.tolist())
            for part, size in zip(parts, sizes, strict=False)
            for per_class in part.reshape(-1, size)
        ]

    many = [dealt(seed) for seed in range(400)]
    common = np.mean(
        [
            [len(one & other) / len(one) for one, other in zip(left, right, strict=True)]
            for left, right in pairwise(many)
        ],
        axis=0,
    )
    assert common.max() == pytest.approx(share_in_common(source, sized(train, val)), abs=0.04)


def test_the_share_in_common_bounds_how_far_gains_correlate() -> None:
    """Linear gains reach the bound; gains that owe something to chance, or to pairs, lie below."""
    rng = np.random.default_rng(0)
    worth = rng.standard_normal((4000, 20))  # studies, images of a pool
    first = rng.permuted(np.tile(np.arange(20), (4000, 1)), axis=1)[:, :8]
    second = rng.permuted(np.tile(np.arange(20), (4000, 1)), axis=1)[:, :8]

    def correlation(gain: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
        left, right = (gain(np.take_along_axis(worth, rows, 1)) for rows in (first, second))
        return float(np.corrcoef(left, right)[0, 1])

    share = share_in_common(make_source(20, 20), sized(8, 4))
    assert share == 0.4
    assert correlation(lambda x: x.sum(1)) == pytest.approx(share, abs=0.04)
    assert correlation(lambda x: x.sum(1) + 3 * rng.standard_normal(4000)) < share - 0.1
    assert correlation(lambda x: x.sum(1) ** 2 - (x**2).sum(1)) < share - 0.1


def test_a_pool_without_a_draw_is_refused() -> None:
    plan = decide_plan(request_of("decide", {"preset": "cifar10_small"}))
    with pytest.raises(DesignError, match=r"cifar10 holds no draw of 100 \+ 100 images a class"):
        dealt(plan, 0)


def test_images_set_aside_are_as_many_of_each_class_with_their_labels_and_not_its_first() -> None:
    source = make_source(12, 20, val=make_split(3, 3, start=50))
    labels = {
        digest_image(image): label
        for image, label in zip(
            source.pool.read(range(32)), source.pool.labels.tolist(), strict=True
        )
    }
    split = set_aside(source, 5)
    assert split.test
    assert split.val is source.val
    assert np.bincount(split.test.labels).tolist() == [5, 5]
    assert np.bincount(split.pool.labels).tolist() == [7, 15]
    first = [int(row) for k in (0, 1) for row in np.flatnonzero(source.pool.labels == k)[:5]]
    assert digests(split.test) != {digest_image(image) for image in source.pool.read(first)}
    for part in (split.pool, split.test):
        images = part.read(range(len(part.labels)))
        assert [labels[digest_image(image)] for image in images] == part.labels.tolist()


def test_a_source_with_a_test_split_of_its_own_has_none_set_aside() -> None:
    source = make_source(6, 6, test=make_split(2, 2, start=50))
    assert set_aside(source, 0) is source
    with pytest.raises(DataError, match=r"test_per_class = 3: .* of its own \(4 images\): leave"):
        set_aside(source, 3)
