"""Images of different parts that are nearly the same are counted, listed and shown."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.data.inspection.near import near_duplicates
from pipeline.model.backbones import build_backbone
from pipeline.runs.findings.near_duplicates import in_words
from pipeline.runs.findings.pooled_features import pooled_features
from pipeline.system.disk.digests import digest_file
from pipeline.tracking import Tracking
from pipeline.tracking.keys import KIND, LINEAGE_KEY, NEAR_DUPLICATES
from pipeline.training.prefix.cache import PrefixCache
from tests.conftest import Command
from tests.helpers import CPU, make_images


def parts(count: int = 30, width: int = 16) -> tuple[dict, dict]:
    """Random features of three parts, and images that differ."""
    values = torch.randn(3 * count, width, generator=torch.Generator().manual_seed(0)) + 5
    names = ("train", "val", "test")
    features = dict(zip(names, values.split(count), strict=True))
    images = {name: make_images(count, start=1000 * n) for n, name in enumerate(names)}
    return features, images


def test_unlike_images_are_no_duplicates_and_like_ones_are_counted_by_the_later_part() -> None:
    features, images = parts()
    assert near_duplicates(features, images, 0.3).pairs == []
    features["val"][3] = features["train"][7] + 0.01
    features["test"][[4, 5]] = features["val"][3] * 1.001
    found = near_duplicates(features, images, 0.3)
    assert found.counts == {"val": 1, "test": 2}
    assert found.copies == 0
    assert {(p.first, p.second) for p in found.pairs} == {
        (("train", 7), ("val", 3)),
        *((place, ("test", n)) for place in (("train", 7), ("val", 3)) for n in (4, 5)),
    }


def test_copies_to_the_pixel_are_marked_and_come_first() -> None:
    features, images = parts()
    features["test"][0], features["test"][1] = features["train"][1], features["train"][2] * 1.0001
    digests = images["test"].digests.copy()
    digests[1] = images["train"].digests[2]
    images["test"] = replace(images["test"], digests=digests)
    found = near_duplicates(features, images, 0.3)
    assert [(pair.second, pair.same_pixels) for pair in found.pairs] == [
        (("test", 1), True),
        (("test", 0), False),
    ]
    assert found.copies == 1


def few_a_class(count: int) -> tuple[dict, dict]:
    """So many images of each of three classes to train on, and one in each other part.

    Those of a class lie near each other and far from the others.
    """
    noise = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=noise)
    numbers = {"train": 3 * count, "val": 3, "test": 3}
    images = {
        name: make_images(many, start=1000 * n) for n, (name, many) in enumerate(numbers.items())
    }
    features = {
        name: centres[part.labels] + 0.3 * torch.randn(len(part), 16, generator=noise)
        for name, part in images.items()
    }
    return features, images


def test_of_three_images_a_class_copies_alone_are_told() -> None:
    """Their third nearest is of another class: all images of a class would be called alike."""
    features, images = few_a_class(1)
    assert near_duplicates(features, images, 0.25).pairs == []
    digests = images["test"].digests.copy()
    digests[2] = images["train"].digests[2]
    features["test"][2] = features["train"][2]
    found = near_duplicates(
        features, images | {"test": replace(images["test"], digests=digests)}, 0.25
    )
    assert [(pair.first, pair.second) for pair in found.pairs] == [(("train", 2), ("test", 2))]
    assert (found.counts, found.copies) == ({"val": 0, "test": 1}, 1)
    assert "1 test image the same as one of another part to the pixel, so" in in_words(found)
    features, images = few_a_class(2)
    features["val"][1] = features["train"][1] + 0.01
    assert near_duplicates(features, images, 0.25).counts == {"val": 1, "test": 0}


def test_of_more_pairs_than_are_kept_the_nearest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of pictures that are all alike: every pair is near, in a block and over blocks."""
    features, images = parts(60)
    alike = {
        name: 0.01 * values + torch.arange(60)[:, None] // 30 for name, values in features.items()
    }
    found = near_duplicates(alike, images, 100)
    assert len(found.pairs) > 3 * 500
    monkeypatch.setattr("pipeline.data.inspection.near.MOST", 100)
    monkeypatch.setattr("pipeline.data.inspection.near.BLOCK", 25)
    fewer = near_duplicates(alike, images, 100)
    assert len(fewer.pairs) == 3 * 100
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        of_all, of_few = (
            [p.cosine for p in some.pairs if (p.first[0], p.second[0]) == (one, other)]
            for some in (found, fewer)
        )
        assert of_few == pytest.approx(of_all[:100], abs=1e-6)


def test_blocks_find_what_one_product_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    features, images = parts()
    features["test"][10:25] = features["train"][10:25] + 0.01
    whole = near_duplicates(features, images, 0.3)
    monkeypatch.setattr("pipeline.data.inspection.near.BLOCK", 7)
    assert len(whole.pairs) >= 15
    assert {(p.first, p.second) for p in near_duplicates(features, images, 0.3).pairs} == {
        (p.first, p.second) for p in whole.pairs
    }


def write_with_copies(root: Path, copies: int) -> None:
    """Pictures of noise, some of them a second time as JPEG."""
    noise = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(20):
            picture = Image.fromarray(noise.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            picture = picture.resize((64, 64), Image.Resampling.NEAREST)
            picture.save(root / name / f"{number}.png")
            if number < copies:
                picture.save(root / name / f"again{number}.jpg", quality=90)


def test_a_first_stage_lists_near_duplicates_and_is_the_same_run_without_looking(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_with_copies(tmp_path / "noise", 20)
    own = {"data": str(tmp_path / "noise"), "train_per_class": "auto", "val_per_class": "auto"}
    assert command("stage1", **own, near_duplicates="0.25") == 0
    out = capsys.readouterr().out
    assert "note: near duplicates: " in out
    assert "nearly the same as one of another part" in out
    tracking = Tracking.connect()
    [run] = tracking.find({KIND: "stage"})
    assert run.metrics[NEAR_DUPLICATES["test"]] > 0
    table = pd.read_csv(tracking.fetch(run, "near_duplicates.csv", tmp_path))
    pairs = zip(table.first_image, table.second_image, strict=True)
    alike = [
        {Path(a).stem.removeprefix("again"), Path(b).stem.removeprefix("again")} for a, b in pairs
    ]
    assert sum(len(names) == 1 for names in alike) >= 0.9 * len(alike)
    picture = Image.open(tracking.fetch(run, "figures/near_duplicates.png", tmp_path))
    assert (np.asarray(picture.convert("L")) < 250).mean() > 0.2  # pictures, not white paper

    assert command("stage1", near_duplicates="off", **own) == 0
    assert "near duplicates" not in capsys.readouterr().out
    runs = tracking.find({KIND: "stage"})
    assert len(runs) == 2
    assert len({run.tags[LINEAGE_KEY] for run in runs}) == 1


def test_names_that_are_no_utf_8_or_look_like_tex_do_not_hide_what_was_found(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "noise"
    write_with_copies(root, 20)
    (root / "ant").rename(root / "$10_$20")
    for number in range(5):  # as in a zip file of another encoding
        path = root / "bee" / f"{number}.png"
        path.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9%d.png" % number))
    own = {"data": str(root), "train_per_class": "auto", "val_per_class": "auto"}
    assert command("stage1", **own, near_duplicates="0.25") == 0
    out = capsys.readouterr().out
    assert "nearly the same as one of another part" in out
    assert "could not be" not in out
    tracking = Tracking.connect()
    [run] = tracking.find({KIND: "stage"})
    for name in ("near_duplicates.csv", "figures/near_duplicates.png"):
        assert tracking.fetch(run, name, tmp_path).is_file()


def test_start_finds_what_a_stage_finds(command: Command, tmp_path: Path) -> None:
    """By the features of the weights, not of a network of random ones."""
    write_with_copies(tmp_path / "noise", 20)
    own = {"data": str(tmp_path / "noise"), "train_per_class": "auto", "val_per_class": "auto"}
    own |= {"backbone": "resnet18", "weights": "tiny_imagenet", "norm_stats": "source"}
    own |= {"near_duplicates": "0.25"}
    assert command("start", **own, backbones="resnet18") == 0
    assert command("stage1", **own) == 0
    tracking, tables = Tracking.connect(), []
    for kind in ("start", "stage"):
        [run] = tracking.find({KIND: kind})
        tables.append(pd.read_csv(tracking.fetch(run, "near_duplicates.csv", tmp_path)))
    pd.testing.assert_frame_equal(*tables, atol=1e-3)


@pytest.mark.slow
def test_a_decision_looks_at_every_draw_of_its_first_look(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_with_copies(tmp_path / "noise", 20)
    own = {"data": str(tmp_path / "noise"), "train_per_class": "auto", "val_per_class": "auto"}
    own |= {"question": "stage2", "looks": "2", "register_as": "off", "norm_stats": "source"}
    own |= {"near_duplicates": "0.25"}
    assert command("decide", **own, cache_dir=str(tmp_path / "cache")) == 0
    out = capsys.readouterr().out
    assert "note: near duplicates: in 2 of 2 draws, at most " in out
    assert "keep such images together with -P group=" in out


def test_features_of_test_images_are_read_back_and_damage_is_noticed(tmp_path: Path) -> None:
    backbone, images = build_backbone("mobilenet_v3_small", 2, 32, seed=0), make_images(12)
    cache = PrefixCache(tmp_path, 1 << 30)

    def features(*, keep: bool) -> torch.Tensor:
        return pooled_features(cache, backbone, images, torch.float32, CPU, keep=keep)

    first = features(keep=True)
    assert torch.equal(first, features(keep=False))
    kept, whole = sorted(tmp_path.glob("*.bin"), key=lambda path: path.stat().st_size)
    assert kept.stat().st_size == first.nbytes

    about = json.loads(kept.with_suffix(".json").read_text())
    other = np.arange(first.numel(), dtype=np.float32)
    kept.write_bytes(other.tobytes())
    sha256 = {"sha256": digest_file(kept)}
    kept.with_suffix(".json").write_text(json.dumps(about | sha256))
    assert features(keep=True).flatten().tolist() == other.tolist()  # no other numbers are there

    kept.write_bytes(other[::-1].tobytes())
    assert torch.equal(features(keep=True), first)
    assert cache.notes == [f"prefix cache entry {kept.stem[:12]} is damaged: computing it anew"]
    whole.unlink()
    assert torch.equal(features(keep=True), first)
    assert not whole.exists()


@pytest.mark.parametrize(
    "network", ["BranchesOnValues", "HeadsInAList", "TokensIntoTheHead", "ChannelsLastIntoTheHead"]
)
def test_features_are_means_over_positions_of_what_enters_the_head(
    tmp_path: Path, network: str
) -> None:
    """Also where the network is one segment, or channels are last."""
    backbone = build_backbone(f"tests.networks:{network}", 2, 64, seed=0)
    images = make_images(5, size=64)
    maps: list[torch.Tensor] = []
    backbone.model.late.register_forward_hook(lambda *hooked: maps.append(hooked[2]))
    with torch.no_grad():
        backbone.model(images.preparation.normalise(images.pixels))
    cache = PrefixCache(tmp_path, 1 << 30)
    for keep in (False, True, True):  # computed, kept, read back
        found = pooled_features(cache, backbone, images, torch.float32, CPU, keep=keep)
        assert found.numpy() == pytest.approx(maps[0].mean((2, 3)).numpy(), abs=1e-5)


def test_the_advice_knows_that_images_are_grouped_already() -> None:
    features, images = parts()
    features["val"][3] = features["train"][7] + 0.01
    found = near_duplicates(features, images, 0.3)
    assert "keep such images together with -P group=, or remove" in in_words(found)
    grouped = in_words(found, r"patient_(\d+)")
    assert r"-P group=patient_(\d+) does not keep all of them together: group by" in grouped
    assert "keep such" not in grouped
    assert "near duplicates: in 2 of 5 draws, at most 1 validation image nearly" in in_words(
        found, draws=5, affected=2
    )
