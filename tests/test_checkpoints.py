"""Checkpoints: what was saved comes back bit for bit, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import LineageError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.model.checkpoints import load_checkpoint, save_checkpoint
from pipeline.model.pretrained import Pretrained
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES
from pipeline.system.digests import digest_file, digest_tensors
from tests.helpers import (
    CLASSES,
    calibrated_backbone,
    changed_names,
    copy_state,
    live_features,
    make_images,
    trainer_for,
)

NAME = "mobilenet_v3_small"
CLASS_NAMES = ("apple", "berry", "cherry")


def pretrained_of(backbone: Backbone, name: str = "example") -> Pretrained:
    """All but the head, as a file of pretrained weights would hold it."""
    names = [n for n in backbone.tensor_names(backbone.blocks) if not n.startswith("classifier.3")]
    state = copy_state(backbone)
    tensors = {n: state[n] for n in names}
    return Pretrained(name, digest_tensors(tensors), tensors, "")


def save(path: Path, backbone: Backbone, pretrained: Pretrained, stage: int = 1) -> str:
    return save_checkpoint(
        path,
        backbone,
        pretrained,
        class_names=CLASS_NAMES,
        schedule="three_stage",
        stage=stage,
    )


@pytest.fixture
def fresh() -> Callable[[], Backbone]:
    """A backbone of the same classes but other weights: what a checkpoint is loaded into."""
    return lambda: build_backbone(NAME, CLASSES, seed=9)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, str, Backbone, Pretrained]:
    """A checkpoint of a backbone whose head and one bias differ from the pretrained weights."""
    backbone = build_backbone(NAME, CLASSES, seed=0)
    pretrained = pretrained_of(backbone)
    backbone.model.state_dict()["features.12.1.bias"] += 1
    path = tmp_path / "checkpoint.safetensors"
    return path, save(path, backbone, pretrained), backbone, pretrained


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        content: dict[str, str] = file.metadata()
    return content


def rewrite(path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None) -> str:
    """The same file with other content; returns its SHA-256, as if a run had logged it."""
    save_file(tensors, path, about)
    return digest_file(path)


def test_every_stage_of_a_chain_comes_back_bit_for_bit(
    fresh: Callable[[], Backbone], tmp_path: Path
) -> None:
    images = make_images(6)
    pretrained = pretrained_of(build_backbone(NAME, CLASSES, seed=0))
    backbone = calibrated_backbone(NAME, images)
    for number in (1, 2, 3):
        stage = SCHEDULES["three_stage"].stage(number)
        settings = TrainSettings(epochs=1, batch_size=3, augment="none", lr=0.01)
        trainer = trainer_for(backbone, stage, settings)
        features = live_features(backbone, stage, images)
        for _ in trainer.epochs(images, features, images, features):
            pass
        before = copy_state(backbone)
        backbone.model.load_state_dict(trainer.best, strict=False)
        assert changed_names(before, copy_state(backbone))

        path = tmp_path / f"{number}.safetensors"
        sha256 = save(path, backbone, pretrained, stage=number)
        assert sha256 == digest_file(path)
        restored = fresh()
        load_checkpoint(path, sha256, restored, pretrained, CLASS_NAMES)
        assert changed_names(copy_state(backbone), copy_state(restored)) == set()
        backbone = restored  # the next stage starts from what was read


def test_only_tensors_that_differ_from_the_pretrained_ones_are_stored(
    saved: tuple[Path, str, Backbone, Pretrained],
) -> None:
    path = saved[0]
    assert set(load_file(path)) == {
        "classifier.3.weight",
        "classifier.3.bias",
        "features.12.1.bias",
    }


def test_random_weights_are_stored_whole(tmp_path: Path, fresh: Callable[[], Backbone]) -> None:
    backbone, nothing = build_backbone(NAME, CLASSES, seed=0), Pretrained("none", "none", {}, "")
    path = tmp_path / "checkpoint.safetensors"
    sha256 = save(path, backbone, nothing)
    assert set(load_file(path)) == set(backbone.model.state_dict())
    restored = fresh()
    load_checkpoint(path, sha256, restored, nothing, CLASS_NAMES)
    assert changed_names(copy_state(backbone), copy_state(restored)) == set()


@pytest.mark.parametrize("value", [-0.0, float("nan"), float("inf")])
def test_unusual_numbers_come_back_bit_for_bit(
    value: float, tmp_path: Path, fresh: Callable[[], Backbone]
) -> None:
    """Minus zero equals zero, and NaN is not equal to itself: bits are what counts."""
    backbone = build_backbone(NAME, CLASSES, seed=0)
    backbone.model.state_dict()["features.0.1.bias"].zero_()
    pretrained = pretrained_of(backbone)
    backbone.model.state_dict()["features.0.1.bias"].fill_(value)
    path = tmp_path / "checkpoint.safetensors"
    sha256 = save(path, backbone, pretrained)
    restored = fresh()
    load_checkpoint(path, sha256, restored, pretrained, CLASS_NAMES)
    assert changed_names(copy_state(backbone), copy_state(restored)) == set()


def test_the_file_tells_what_it_is_of(saved: tuple[Path, str, Backbone, Pretrained]) -> None:
    path, _, backbone, pretrained = saved
    assert json.loads(metadata(path)["checkpoint"]) == {
        "format": 1,
        "backbone": NAME,
        "class_names": list(CLASS_NAMES),
        "weights": "example",
        "weights_digest": pretrained.digest,
        "schedule": "three_stage",
        "stage": 1,
        "model_digest": digest_tensors(backbone.model.state_dict()),
    }


def test_the_same_model_gives_the_same_file_every_time(
    saved: tuple[Path, str, Backbone, Pretrained], tmp_path: Path
) -> None:
    _, sha256, backbone, pretrained = saved
    again = {save(tmp_path / "again.safetensors", backbone, pretrained) for _ in range(8)}
    assert again == {sha256}


def test_a_truncated_file_is_refused(
    saved: tuple[Path, str, Backbone, Pretrained], fresh: Callable[[], Backbone]
) -> None:
    path, sha256, _, pretrained = saved
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LineageError, match=f"is damaged: its SHA-256 is not {sha256[:12]}"):
        load_checkpoint(path, sha256, fresh(), pretrained, CLASS_NAMES)


@pytest.mark.parametrize("position", [20, -1])
def test_one_flipped_bit_is_refused(
    position: int,
    saved: tuple[Path, str, Backbone, Pretrained],
    fresh: Callable[[], Backbone],
) -> None:
    path, sha256, _, pretrained = saved
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(LineageError, match="is damaged"):
        load_checkpoint(path, sha256, fresh(), pretrained, CLASS_NAMES)


def test_a_digest_of_another_file_is_refused(
    saved: tuple[Path, str, Backbone, Pretrained], fresh: Callable[[], Backbone]
) -> None:
    path, _, _, pretrained = saved
    with pytest.raises(LineageError, match="its SHA-256 is not 000000000000…"):
        load_checkpoint(path, "0" * 64, fresh(), pretrained, CLASS_NAMES)


def test_other_pretrained_weights_are_refused(
    saved: tuple[Path, str, Backbone, Pretrained], fresh: Callable[[], Backbone]
) -> None:
    path, sha256, _, pretrained = saved
    other = pretrained_of(build_backbone(NAME, CLASSES, seed=1), "others")
    message = (
        f"from weights example .{pretrained.digest[:12]}.*weights others .* {other.digest[:12]}"
    )
    with pytest.raises(LineageError, match=message):
        load_checkpoint(path, sha256, fresh(), other, CLASS_NAMES)


def test_another_backbone_is_refused(saved: tuple[Path, str, Backbone, Pretrained]) -> None:
    path, sha256, _, pretrained = saved
    other = build_backbone("mobilenet_v2", CLASSES, seed=0)
    with pytest.raises(LineageError, match=f"is of {NAME}, got backbone mobilenet_v2"):
        load_checkpoint(path, sha256, other, pretrained, CLASS_NAMES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("apple", "zebra", "cherry"),
            "has 3 classes, the images 3: class 2 is berry there and z",
        ),
        (
            (*CLASS_NAMES, "kiwi"),
            "3 classes, the images 4: class 4 is missing there and kiwi here",
        ),
        (CLASS_NAMES[:2], "3 classes, the images 2: class 3 is cherry there and missing here"),
    ],
)
def test_other_classes_are_refused(
    saved: tuple[Path, str, Backbone, Pretrained], names: tuple[str, ...], message: str
) -> None:
    path, sha256, _, pretrained = saved
    with pytest.raises(LineageError, match=message):
        load_checkpoint(path, sha256, build_backbone(NAME, len(names), 0), pretrained, names)


def test_a_model_that_does_not_add_up_is_refused(
    saved: tuple[Path, str, Backbone, Pretrained], fresh: Callable[[], Backbone]
) -> None:
    """The file and its digest are right, but one of its tensors is missing or changed."""
    path, _, _, pretrained = saved
    about, tensors = metadata(path), load_file(path)
    missing = {n: t for n, t in tensors.items() if n != "features.12.1.bias"}
    changed = tensors | {"features.12.1.bias": tensors["features.12.1.bias"] + 1}
    for content in (missing, changed):
        sha256 = rewrite(path, content, about)
        with pytest.raises(LineageError, match="do not add up to the model that was saved"):
            load_checkpoint(path, sha256, fresh(), pretrained, CLASS_NAMES)


@pytest.mark.parametrize(
    "about", [None, {"format": "1"}, {"checkpoint": "{"}, {"checkpoint": "{}"}]
)
def test_a_safetensors_file_of_something_else_is_refused(
    about: dict[str, str] | None,
    saved: tuple[Path, str, Backbone, Pretrained],
    fresh: Callable[[], Backbone],
) -> None:
    path, _, _, pretrained = saved
    sha256 = rewrite(path, load_file(path), about)
    with pytest.raises(LineageError, match="is not a checkpoint of this pipeline"):
        load_checkpoint(path, sha256, fresh(), pretrained, CLASS_NAMES)


def test_a_file_that_is_no_safetensors_is_refused(
    saved: tuple[Path, str, Backbone, Pretrained], fresh: Callable[[], Backbone]
) -> None:
    path, _, _, pretrained = saved
    path.write_bytes(b"not safetensors")
    with pytest.raises(LineageError, match="is not a checkpoint of this pipeline"):
        load_checkpoint(path, digest_file(path), fresh(), pretrained, CLASS_NAMES)
