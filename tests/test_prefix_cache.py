"""The prefix cache: the same values as without it, nothing stale, nothing damaged, any faults."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.augment import render_views
from pipeline.data.image_set import ImageSet
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.settings.augmentation import Augment
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES
from pipeline.system.disk.digests import digest_each
from pipeline.system.processes import owner_mark
from pipeline.tracking.keys import TRAIN_LOSS, VAL_LOSS
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.prefix.features import Features, LiveFeatures, StoredFeatures
from tests import forked
from tests.helpers import (
    CLASSES,
    CPU,
    calibrated_backbone,
    changed_names,
    copy_state,
    edited_factory,
    make_images,
    other_version_of,
    slow_after,
    trainer_for,
)

ROOT = Path(__file__).resolve().parent.parent
NAME = "mobilenet_v3_small"
STAGE_1, STAGE_2, STAGE_3 = (SCHEDULES["three_stage"].stage(n) for n in (1, 2, 3))
PREFIXES = (5, 4, 3)  # segments that stages 1, 2 and 3 freeze
PREFIX = PREFIXES[1]
ENOUGH = 1 << 30


@dataclass(frozen=True)
class Request:
    """The arguments of `PrefixCache.features`, to be varied one at a time."""

    backbone: Backbone
    images: ImageSet
    prefix: int = PREFIX
    augment: Augment = "strong"
    views: int = 2
    dtype: torch.dtype = torch.float32
    also: Sequence[int] = ()
    digests: Mapping[str, str] | None = None

    def ask(self, cache: PrefixCache) -> Features:
        return cache.features(
            self.backbone,
            self.prefix,
            self.images,
            augment=self.augment,
            views=self.views,
            dtype=self.dtype,
            device=CPU,
            also=self.also,
            digests=self.digests,
        )

    def every_view(self, cache: PrefixCache) -> Tensor:
        """The features of view 0 of all images, then view 1, ..."""
        features, rows = self.ask(cache), np.arange(len(self.images))
        numbers = [np.full_like(rows, view) for view in range(self.views)]
        return torch.cat([features.batch(rows, views) for views in numbers])


@pytest.fixture(scope="module")
def request_() -> Request:
    """No test changes its network."""
    images = make_images(8)
    return Request(calibrated_backbone(NAME, images), images)


def keys(folder: Path) -> set[str]:
    assert {p.stem for p in folder.glob("*.json")} == {p.stem for p in folder.glob("*.bin")}
    return {path.stem for path in folder.glob("*.json")}


def leftovers(folder: Path) -> list[str]:
    """Files that are neither an entry nor a lock."""
    return [p.name for p in folder.iterdir() if p.suffix not in (".json", ".bin", ".lock")]


# The same values, the same training


@pytest.mark.parametrize(
    ("name", "prefix", "augment", "distinct"),
    slow_after(
        3,
        [
            (NAME, PREFIXES[0], "none", 1),
            (NAME, PREFIXES[1], "light", 2),
            (NAME, PREFIXES[2], "strong", 3),
            ("resnet18", PREFIXES[1], "strong", 3),
        ],
    ),
)
def test_stored_and_live_features_are_the_prefix_of_the_rendered_views(
    name: str, prefix: int, augment: Augment, distinct: int, tmp_path: Path
) -> None:
    images = make_images(6)
    backbone = calibrated_backbone(name, images)
    before = copy_state(backbone)
    rows, views = np.array([4, 0, 5, 1, 1]), np.array([0, 2, 1, 1, 0]) % distinct
    rendered = render_views(images.pixels[rows], images.keys[rows], views, augment)
    with torch.no_grad():
        logits = [backbone.model(rendered)]
    for folder, kind in ((tmp_path, StoredFeatures), (None, LiveFeatures)):
        request = Request(backbone, images, prefix, augment, views=3)
        features = request.ask(PrefixCache(folder, ENOUGH))
        assert isinstance(features, kind)
        with torch.no_grad():
            logits.append(backbone.run(features.batch(rows, views), start=prefix))
    torch.testing.assert_close(logits[1], logits[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=2e-4)
    (about,) = tmp_path.glob("*.json")
    assert json.loads(about.read_text())["shape"][:2] == [distinct, len(images)]
    assert changed_names(before, copy_state(backbone)) == set()


@pytest.mark.parametrize(
    ("name", "augment"), slow_after(1, [(NAME, "light"), ("resnet18", "none")])
)
def test_training_takes_the_same_course_with_and_without_the_cache(
    name: str, augment: Augment, tmp_path: Path
) -> None:
    images, val = make_images(12), make_images(6, start=50)
    backbone = calibrated_backbone(name, images)
    losses, weights = [], []
    for folder in (tmp_path, None):
        cache = PrefixCache(folder, ENOUGH)
        train_features = Request(backbone, images, PREFIX, augment, views=10).ask(cache)
        val_features = Request(backbone, val, PREFIX, "none", views=1).ask(cache)
        settings = TrainSettings(epochs=2, batch_size=6, augment=augment, optimizer="sgd", lr=0.01)
        trainer = trainer_for(backbone, STAGE_2, settings, views=10)
        results = list(trainer.epochs(images, train_features, val, val_features))
        losses.append([(result[TRAIN_LOSS], result[VAL_LOSS]) for result in results])
        weights.append(trainer.snapshot())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for tensor_name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][tensor_name], rtol=1e-4, atol=1e-5)


# What an entry is kept under


def _nudge(request: Request, tensor: str) -> Request:
    twin = build_backbone(request.backbone.name, CLASSES, 32, 0)
    twin.model.load_state_dict(request.backbone.model.state_dict())
    twin.model.state_dict()[tensor].view(-1)[:1] += 1
    return replace(request, backbone=twin)


def _one_pixel(request: Request) -> Request:
    """As if one pixel of the last image were another: its digest tells."""
    pixels, digests = request.images.pixels.clone(), request.images.digests.copy()
    pixels[-1, 0, 0, 0] ^= 1
    digests[-1, -1] ^= 1
    return replace(
        request, images=ImageSet(pixels=pixels, labels=request.images.labels, digests=digests)
    )


def _reorder(request: Request) -> Request:
    images = request.images
    flipped = ImageSet(
        pixels=images.pixels.flip(0),
        labels=images.labels.flip(0),
        digests=images.digests[::-1].copy(),
    )
    return replace(request, images=flipped)


def _resize(request: Request) -> Request:
    images = request.images
    larger = ImageSet(
        pixels=images.pixels.repeat(1, 1, 2, 2), labels=images.labels, digests=images.digests
    )
    twin = build_backbone(request.backbone.name, CLASSES, 64, 0)
    twin.model.load_state_dict(request.backbone.model.state_dict())
    return replace(request, images=larger, backbone=twin)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: _nudge(r, "features.1.block.0.0.weight"), id="a prefix weight"),
        pytest.param(lambda r: _nudge(r, "features.0.1.running_mean"), id="a prefix mean"),
        pytest.param(lambda r: _nudge(r, "features.8.block.3.1.running_var"), id="its last layer"),
        pytest.param(_one_pixel, id="one pixel"),
        pytest.param(_reorder, id="order of images"),
        pytest.param(_resize, id="resolution"),
        pytest.param(lambda r: replace(r, augment="light"), id="augment"),
        pytest.param(lambda r: replace(r, views=3), id="views"),
        pytest.param(lambda r: replace(r, dtype=torch.bfloat16), id="dtype"),
        pytest.param(lambda r: replace(r, prefix=PREFIXES[2]), id="blocks"),
    ],
)
def test_what_changes_the_outputs_changes_the_key(
    change: Callable[[Request], Request], request_: Request, tmp_path: Path
) -> None:
    cache = PrefixCache(tmp_path, ENOUGH)
    request_.ask(cache)
    first = keys(tmp_path)
    change(request_).ask(cache)
    assert len(first) == 1
    assert len(keys(tmp_path)) == 2


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: _nudge(r, "features.12.0.weight"), id="a suffix weight"),
        pytest.param(lambda r: _nudge(r, "features.9.block.0.1.running_mean"), id="a suffix mean"),
        pytest.param(lambda r: _nudge(r, "classifier.3.weight"), id="the head"),
        pytest.param(
            lambda r: replace(r, images=replace(r.images, labels=r.images.labels.flip(0))),
            id="labels",
        ),
        pytest.param(lambda r: r, id="nothing"),
    ],
)
def test_what_does_not_reach_the_outputs_leaves_the_key(
    change: Callable[[Request], Request], request_: Request, tmp_path: Path
) -> None:
    request_.ask(PrefixCache(tmp_path, ENOUGH))
    first = keys(tmp_path)
    change(request_).ask(PrefixCache(tmp_path, ENOUGH))
    assert keys(tmp_path) == first


def test_an_edited_factory_computes_its_own_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit leaves every tensor as it is: an activation has none."""
    images, values = make_images(8), []
    for layer in ("stem[2] = nn.ReLU()", "stem[2] = nn.Hardswish()"):
        request = Request(edited_factory(tmp_path, layer, monkeypatch), images, prefix=2)
        values.append(request.every_view(PrefixCache(tmp_path / "cache", ENOUGH)))
        fresh = request.every_view(PrefixCache(tmp_path / layer, ENOUGH))
        assert torch.equal(values[-1], fresh)
    assert not torch.equal(*values)


# Sharing


def test_another_version_of_a_library_makes_other_entries(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels, or its way to resize, may give other last bits."""
    request_.ask(PrefixCache(tmp_path, ENOUGH))
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    request_.ask(PrefixCache(tmp_path, ENOUGH))
    assert len(keys(tmp_path)) == 2


@pytest.mark.parametrize("name", ["timm:test_resnet", "tests.networks:around_timm"])
def test_another_version_of_timm_makes_other_entries_for_its_layers_alone(
    name: str, request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    backbone = build_backbone(name, CLASSES, 32, seed=0)
    of_timm = replace(request_, backbone=backbone, prefix=2)
    for request in (request_, of_timm):
        request.ask(PrefixCache(tmp_path, ENOUGH))
    before = keys(tmp_path)
    other_version_of("timm", monkeypatch)
    request_.ask(PrefixCache(tmp_path, ENOUGH))
    assert keys(tmp_path) == before
    of_timm.ask(PrefixCache(tmp_path, ENOUGH))
    assert len(keys(tmp_path)) == len(before) + 1


def test_a_second_cache_reads_what_the_first_wrote(request_: Request, tmp_path: Path) -> None:
    first = request_.every_view(PrefixCache(tmp_path, ENOUGH))
    (key,) = keys(tmp_path)
    before = (tmp_path / f"{key}.bin").stat()
    cache = PrefixCache(tmp_path, ENOUGH)
    second = request_.every_view(cache)
    after = (tmp_path / f"{key}.bin").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert torch.equal(first, second)
    assert cache.notes == []


def test_an_entry_of_another_person_is_read(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the owner of a file may say when it was used."""
    expected = request_.every_view(PrefixCache(tmp_path, ENOUGH))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    second = PrefixCache(tmp_path, ENOUGH)
    assert torch.equal(request_.every_view(second), expected)
    assert second.notes == []
    assert isinstance(request_.ask(second), StoredFeatures)


def test_one_call_fills_the_cuts_of_later_stages(request_: Request, tmp_path: Path) -> None:
    together, apart = tmp_path / "together", tmp_path / "apart"
    also = PREFIXES[1:]
    replace(request_, prefix=PREFIXES[0], also=also).ask(PrefixCache(together, ENOUGH))
    written = {path.name: path.stat().st_ino for path in together.glob("*.bin")}
    assert len(written) == 3
    for prefix in PREFIXES:
        request = replace(request_, prefix=prefix)
        values = request.every_view(PrefixCache(together, ENOUGH))
        assert torch.equal(values, request.every_view(PrefixCache(apart, ENOUGH)))
    assert {path.name: path.stat().st_ino for path in together.glob("*.bin")} == written
    assert keys(apart) == keys(together)


def fill_in_a_process(
    barrier: Any,  # noqa: ANN401 - multiprocessing does not export the type
    folder: Path,
    answer: Path,
) -> None:
    images = make_images(8)
    backbone = calibrated_backbone(NAME, images)
    cache = PrefixCache(folder, ENOUGH)
    also = PREFIXES[1:]
    request = Request(backbone, images, PREFIXES[0], views=3, also=also)
    barrier.wait(60)
    values = request.every_view(cache)
    answer.write_text(json.dumps({"values": values.tolist(), "notes": cache.notes}))


@pytest.mark.slow
def test_processes_that_fill_one_key_at_once_all_get_its_values(tmp_path: Path) -> None:
    folder, answers = tmp_path / "cache", [tmp_path / f"{n}.answer" for n in range(3)]
    context = forked.CONTEXT
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=fill_in_a_process, args=(barrier, folder, answer))
        for answer in answers
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    images = make_images(8)
    request = Request(calibrated_backbone(NAME, images), images, PREFIXES[0], views=3)
    expected = request.every_view(PrefixCache(None, 0))
    for answer in answers:
        content = json.loads(answer.read_text())
        assert content["notes"] == []
        torch.testing.assert_close(torch.tensor(content["values"]), expected, rtol=1e-5, atol=1e-5)
    assert len(keys(folder)) == 3
    assert leftovers(folder) == []


# Damage


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _reshape(path: Path) -> None:
    """Another shape of the same size."""
    about = json.loads(path.read_text())
    about["shape"][:2] = about["shape"][1::-1]
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        *(("bin", damage) for damage in (_truncate, _flip_a_bit, Path.unlink)),
        *(("json", damage) for damage in (_truncate, _reshape)),
        ("json", lambda path: path.write_text("{}")),
    ],
)
def test_a_damaged_entry_is_noted_once_and_computed_anew(
    suffix: str, damage: Callable[[Path], None], request_: Request, tmp_path: Path
) -> None:
    expected = request_.every_view(PrefixCache(tmp_path, ENOUGH))
    (key,) = keys(tmp_path)
    about = json.loads((tmp_path / f"{key}.json").read_text())
    damage(tmp_path / f"{key}.{suffix}")

    cache = PrefixCache(tmp_path, ENOUGH)
    assert torch.equal(request_.every_view(cache), expected)
    assert isinstance(request_.ask(cache), StoredFeatures)
    assert cache.notes == [f"prefix cache entry {key[:12]} is damaged: computing it anew"]
    assert json.loads((tmp_path / f"{key}.json").read_text()) == about

    healed = PrefixCache(tmp_path, ENOUGH)
    assert torch.equal(request_.every_view(healed), expected)
    assert healed.notes == []


def test_another_entry_that_lost_its_values_is_no_hindrance(
    request_: Request, tmp_path: Path
) -> None:
    request_.ask(PrefixCache(tmp_path, ENOUGH))
    (key,) = keys(tmp_path)
    (tmp_path / f"{key}.bin").unlink()
    cache = PrefixCache(tmp_path, ENOUGH)
    assert isinstance(replace(request_, views=1).ask(cache), StoredFeatures)
    assert cache.notes == []


# Limits


def test_a_cache_that_would_not_fit_is_noted_and_computed_live(
    request_: Request, tmp_path: Path
) -> None:
    cache = PrefixCache(tmp_path, 1000)
    live = request_.every_view(cache)
    assert isinstance(request_.ask(cache), LiveFeatures)
    (note,) = cache.notes  # once, however often
    assert "would need 12.3 kB, the limit is 1 kB (cache_limit): computing without it" in note
    assert list(tmp_path.glob("*.bin")) == []
    stored = request_.every_view(PrefixCache(tmp_path, ENOUGH))
    torch.testing.assert_close(live, stored, rtol=1e-5, atol=1e-5)


def test_later_cuts_are_left_out_where_only_the_first_fits(
    request_: Request, tmp_path: Path
) -> None:
    request_.ask(PrefixCache(tmp_path / "sized", ENOUGH))
    (values,) = (tmp_path / "sized").glob("*.bin")
    cache = PrefixCache(tmp_path / "small", values.stat().st_size)
    features = replace(request_, also=[PREFIXES[2]]).ask(cache)
    assert isinstance(features, StoredFeatures)
    assert keys(tmp_path / "small") == {values.stem}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_large_entry_is_read_without_keeping_it_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, channels = 4000, 8192  # 64 MB
    path = tmp_path / "values.bin"
    np.repeat(np.arange(count, dtype=np.int16), channels).tofile(path)

    def shared_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[2])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    grown = []
    for limit in (1 << 30, 1):
        monkeypatch.setattr("pipeline.training.prefix.features.RESIDENT_BYTES", limit)
        features = StoredFeatures(path, [1, count, channels], torch.int16, CPU)
        before, most = shared_mb(), 0.0
        for rows in np.array_split(np.random.default_rng(0).permutation(count), 40):
            outputs = features.batch(rows, np.zeros_like(rows))
            assert outputs[:, -1].tolist() == rows.tolist()
            most = max(most, shared_mb() - before)
        grown.append(most)
        del features, outputs
        gc.collect()
    assert grown[0] > 50
    assert grown[1] < 10


def test_digests_that_the_caller_has_give_the_same_entry(
    request_: Request, tmp_path: Path
) -> None:
    backbone = request_.backbone
    request_.ask(PrefixCache(tmp_path, ENOUGH))
    digests = digest_each(backbone.model.state_dict(), backbone.model.state_dict())
    for given, entries in ((digests, 1), ({**digests, "features.0.0.weight": "0"}, 2)):
        replace(request_, digests=given).ask(PrefixCache(tmp_path, ENOUGH))
        assert len(keys(tmp_path)) == entries


def test_the_least_recently_used_entry_goes_first(request_: Request, tmp_path: Path) -> None:
    requests = [replace(request_, images=make_images(8, start=start)) for start in (0, 100, 200)]
    names: list[str] = []
    for age, request in zip((300, 200), requests[:2], strict=True):
        request.ask(PrefixCache(tmp_path, ENOUGH))
        (new,) = keys(tmp_path) - set(names)
        names.append(new)
        os.utime(tmp_path / f"{new}.json", (age, age)[::-1])
    size = (tmp_path / f"{names[0]}.bin").stat().st_size
    os.utime(tmp_path / f"{names[0]}.json", (100, 100))  # older than the second ...
    requests[0].ask(PrefixCache(tmp_path, ENOUGH))  # ... but used now
    requests[2].ask(PrefixCache(tmp_path, 2 * size))
    assert names[0] in keys(tmp_path)
    assert names[1] not in keys(tmp_path)
    assert len(keys(tmp_path)) == 2


def test_one_command_keeps_to_the_limit_and_what_it_uses_stays(
    request_: Request, tmp_path: Path
) -> None:
    train, other, val = (replace(request_, images=make_images(8, start=s)) for s in (0, 100, 200))
    cache = PrefixCache(tmp_path, ENOUGH)
    used = train.ask(cache)
    (first,) = keys(tmp_path)
    cache.limit_bytes = size = (tmp_path / f"{first}.bin").stat().st_size
    expected = used.batch(np.arange(8), np.zeros(8, dtype=np.int64))
    assert isinstance(other.ask(cache), LiveFeatures)
    assert isinstance(val.ask(cache), LiveFeatures)
    assert keys(tmp_path) == {first}
    assert torch.equal(used.batch(np.arange(8), np.zeros(8, dtype=np.int64)), expected)
    (note,) = cache.notes
    assert f"would need {2 * size / 1000:.1f} kB" in note
    del used
    gc.collect()
    assert isinstance(other.ask(cache), StoredFeatures)
    assert len(keys(tmp_path) - {first}) == 1 == len(keys(tmp_path))
    cache = PrefixCache(tmp_path, size - 1)
    cache.needed_bytes = 10**6  # all stages, as far as known
    other.ask(cache)
    train.ask(cache)
    assert "would need 1 MB" in cache.notes[0]


def test_parts_of_dead_processes_go_at_once_and_those_of_others_stay(
    request_: Request, tmp_path: Path
) -> None:
    code = "from pipeline.system.processes import owner_mark; print(owner_mark())"
    words = [sys.executable, "-c", code]
    dead = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    dead = dead.strip()
    marks = [dead, owner_mark(), "0" * 16 + dead[16:]]
    parts = [tmp_path / f"{'0' * 64}.{m}.{kind}" for m in marks for kind in ("tmp", "about")]
    for path in parts:
        path.write_bytes(b"part")
    request_.ask(PrefixCache(tmp_path, ENOUGH))
    assert [path.exists() for path in parts] == [False, False, True, True, True, True]


def test_a_folder_that_cannot_be_made_is_noted_and_computed_live(
    request_: Request, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = PrefixCache(blocked / "cache", ENOUGH)
    assert isinstance(request_.ask(cache), LiveFeatures)
    (note,) = cache.notes
    assert f"prefix cache in {blocked / 'cache'} cannot be used (Not a directory)" in note


UNDER_FILE_SIZE_LIMITS = """
import resource, sys
from pathlib import Path
from tests.test_prefix_cache import *
for count, limit in ((8, 100), (8, 12_000), (4, 100), (1, 100)):
    images = make_images(count)
    request = Request(
        build_backbone(NAME, CLASSES, 32, 0), images, PREFIXES[0], "none", 1, also=[PREFIX]
    )
    folder = Path(sys.argv[1]) / f"{count}-{limit}"
    cache = PrefixCache(folder, ENOUGH)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    features = request.ask(cache)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert isinstance(features, LiveFeatures)
    assert len(cache.notes) == 1, cache.notes
    assert "cannot be used (File too large): computing without it" in cache.notes[0], cache.notes
    assert leftovers(folder) == [], (count, limit, leftovers(folder))
"""


@pytest.mark.slow
def test_a_full_disk_is_noted_and_leaves_no_part_of_an_entry(tmp_path: Path) -> None:
    """A limit on file sizes fails as a full disk does: while writing, or only at closing."""
    command = [sys.executable, "-c", UNDER_FILE_SIZE_LIMITS, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# Without a cache


@pytest.mark.parametrize(
    ("folder", "views", "prefix"),
    [
        pytest.param(None, 2, PREFIX, id="turned off"),
        pytest.param("cache", 0, PREFIX, id="fresh views"),
        pytest.param("cache", 2, 0, id="nothing frozen"),
    ],
)
def test_nothing_is_stored_where_nothing_can_be_shared(
    folder: str | None, views: int, prefix: int, request_: Request, tmp_path: Path
) -> None:
    cache = PrefixCache(tmp_path / folder if folder else None, ENOUGH)
    features = replace(request_, views=views, prefix=prefix).ask(cache)
    assert isinstance(features, LiveFeatures)
    assert cache.notes == []
    assert list(tmp_path.iterdir()) == []


def test_fresh_views_differ_from_view_to_view(request_: Request, tmp_path: Path) -> None:
    features = replace(request_, views=0).ask(PrefixCache(tmp_path, ENOUGH))
    rows = np.arange(len(request_.images))
    first, again, other = (features.batch(rows, np.full_like(rows, v)) for v in (7, 7, 10**9))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).flatten(1).all(1).any()


@pytest.mark.parametrize(("views", "fresh"), [(0, True), (1, False)])
def test_without_stored_views_every_epoch_trains_on_fresh_ones(
    views: int, *, fresh: bool, request_: Request
) -> None:
    """Rates too small to move a weight: the training loss changes only where the views do."""
    features = replace(request_, views=views, prefix=PREFIXES[0]).ask(PrefixCache(None, 0))
    settings = TrainSettings(epochs=3, batch_size=8, augment="strong", lr=1e-30, weight_decay=0)
    backbone = request_.backbone
    backbone.model.get_submodule("classifier.2").p = 0.0  # type: ignore[assignment]
    trainer = trainer_for(backbone, STAGE_1, settings, views=views)
    images = request_.images
    losses = [r[TRAIN_LOSS] for r in trainer.epochs(images, features, images, features)]
    assert len({round(loss, 4) for loss in losses}) == (3 if fresh else 1)
