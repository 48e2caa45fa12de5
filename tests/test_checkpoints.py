"""Checkpoints: what was saved comes back bit for bit, and anything else is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.errors import LineageError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES
from pipeline.system.disk.digests import digest_file, digest_tensors
from pipeline.weights.checkpoints import load_checkpoint, save_checkpoint
from pipeline.weights.pretrained import Pretrained
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
    names = [n for n in backbone.tensor_names(backbone.order) if not n.startswith("classifier.3")]
    state = copy_state(backbone)
    tensors = {n: state[n] for n in names}
    return Pretrained(name=name, digest=digest_tensors(tensors), tensors=tensors, report="")


def save(path: Path, backbone: Backbone, pretrained: Pretrained, stage: int = 1) -> str:
    return save_checkpoint(
        path,
        backbone,
        pretrained,
        class_names=CLASS_NAMES,
        schedule="three_stage",
        stage=stage,
    )


def load(path: Path, sha256: str, pretrained: Pretrained) -> Backbone:
    """The checkpoint, in a backbone that had other weights."""
    restored = build_backbone(NAME, CLASSES, 32, seed=9)
    load_checkpoint(path, sha256, restored, pretrained, CLASS_NAMES)
    return restored


def same(one: Backbone, other: Backbone) -> bool:
    return changed_names(copy_state(one), copy_state(other)) == set()


@dataclass
class Saved:
    """A checkpoint of a backbone whose head and one bias differ from the pretrained weights."""

    path: Path
    sha256: str
    backbone: Backbone
    pretrained: Pretrained


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    backbone = build_backbone(NAME, CLASSES, 32, seed=0)
    pretrained = pretrained_of(backbone)
    backbone.model.state_dict()["features.12.1.bias"] += 1
    path = tmp_path / "checkpoint.safetensors"
    return Saved(path, save(path, backbone, pretrained), backbone, pretrained)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        content: dict[str, str] = file.metadata()
    return content


def test_every_stage_of_a_chain_comes_back_bit_for_bit(tmp_path: Path) -> None:
    images = make_images(6)
    pretrained = pretrained_of(build_backbone(NAME, CLASSES, 32, seed=0))
    backbone = calibrated_backbone(NAME, images)
    for number in (1, 2, 3):
        stage = SCHEDULES["three_stage"].stage(number)
        settings = TrainSettings(epochs=1, batch_size=3, augment="none", lr=0.01)
        trainer = trainer_for(backbone, stage, settings)
        features = live_features(backbone, stage, images)
        for _ in trainer.epochs(images, features, images, features):
            pass
        before = copy_state(backbone)
        backbone.put(trainer.best)
        assert changed_names(before, copy_state(backbone))

        path = tmp_path / f"{number}.safetensors"
        sha256 = save(path, backbone, pretrained, stage=number)
        assert sha256 == digest_file(path)
        restored = load(path, sha256, pretrained)
        assert same(backbone, restored)
        backbone = restored  # the next stage starts from what was read


def test_only_tensors_that_differ_are_stored_with_what_they_are_of(saved: Saved) -> None:
    changed = {"classifier.3.weight", "classifier.3.bias", "features.12.1.bias"}
    assert set(load_file(saved.path)) == changed
    assert json.loads(metadata(saved.path)["checkpoint"]) == {
        "format": 1,
        "backbone": NAME,
        "class_names": list(CLASS_NAMES),
        "weights": "example",
        "weights_digest": saved.pretrained.digest,
        "schedule": "three_stage",
        "stage": 1,
        "model_digest": digest_tensors(saved.backbone.model.state_dict()),
    }


def test_random_weights_are_stored_whole(saved: Saved) -> None:
    nothing = Pretrained(name="none", digest="none", tensors={}, report="")
    sha256 = save(saved.path, saved.backbone, nothing)
    assert set(load_file(saved.path)) == set(saved.backbone.model.state_dict())
    assert same(saved.backbone, load(saved.path, sha256, nothing))


@pytest.mark.parametrize("value", [-0.0, float("nan"), float("inf")])
def test_unusual_numbers_come_back_bit_for_bit(value: float, tmp_path: Path) -> None:
    """Minus zero equals zero, and NaN is not equal to itself: bits are what counts."""
    backbone = build_backbone(NAME, CLASSES, 32, seed=0)
    backbone.model.state_dict()["features.0.1.bias"].zero_()
    pretrained = pretrained_of(backbone)
    backbone.model.state_dict()["features.0.1.bias"].fill_(value)
    path = tmp_path / "checkpoint.safetensors"
    assert same(backbone, load(path, save(path, backbone, pretrained), pretrained))


def test_the_same_model_gives_the_same_file_every_time(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "again.safetensors"
    assert {save(path, saved.backbone, saved.pretrained) for _ in range(8)} == {saved.sha256}


@pytest.mark.parametrize("position", [20, -1, None])
def test_a_truncated_file_or_one_flipped_bit_is_refused(
    position: int | None, saved: Saved
) -> None:
    content = bytearray(saved.path.read_bytes())
    if position is None:
        del content[-1]
    else:
        content[position] ^= 1
    saved.path.write_bytes(content)
    with pytest.raises(LineageError, match=f"is damaged: its SHA-256 is not {saved.sha256[:12]}"):
        load(saved.path, saved.sha256, saved.pretrained)


def test_other_pretrained_weights_are_refused(saved: Saved) -> None:
    other = pretrained_of(build_backbone(NAME, CLASSES, 32, seed=1), "others")
    digests = [weights.digest[:12] for weights in (saved.pretrained, other)]
    message = f"from weights example .{digests[0]}.*weights others .* {digests[1]}"
    with pytest.raises(LineageError, match=message):
        load(saved.path, saved.sha256, other)


def test_another_backbone_is_refused(saved: Saved) -> None:
    other = build_backbone("mobilenet_v2", CLASSES, 32, seed=0)
    with pytest.raises(LineageError, match=f"is of {NAME}, got backbone mobilenet_v2"):
        load_checkpoint(saved.path, saved.sha256, other, saved.pretrained, CLASS_NAMES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("apple", "zebra", "cherry"), "3 classes, .* 3: class 2 is berry there and zebra here"),
        ((*CLASS_NAMES, "kiwi"), "3 classes, .* 4: class 4 is missing there and kiwi here"),
        (CLASS_NAMES[:2], "3 classes, .* 2: class 3 is cherry there and missing here"),
    ],
)
def test_other_classes_are_refused(saved: Saved, names: tuple[str, ...], message: str) -> None:
    backbone = build_backbone(NAME, len(names), 32, 0)
    with pytest.raises(LineageError, match=message):
        load_checkpoint(saved.path, saved.sha256, backbone, saved.pretrained, names)


def test_a_model_that_does_not_add_up_is_refused(saved: Saved) -> None:
    """The file and its digest are right, but one of its tensors is missing or changed."""
    about, tensors = metadata(saved.path), load_file(saved.path)
    missing = {n: t for n, t in tensors.items() if n != "features.12.1.bias"}
    changed = tensors | {"features.12.1.bias": tensors["features.12.1.bias"] + 1}
    for content in (missing, changed):
        save_file(content, saved.path, about)
        with pytest.raises(LineageError, match="do not add up to the model that was saved"):
            load(saved.path, digest_file(saved.path), saved.pretrained)


@pytest.mark.parametrize(
    "about",
    [None, {"format": "1"}, {"checkpoint": "{"}, {"checkpoint": "{}"}, "not safetensors"],
)
def test_a_file_of_something_else_is_refused(
    about: dict[str, str] | str | None, saved: Saved
) -> None:
    if isinstance(about, str):
        saved.path.write_text(about)
    else:
        save_file(load_file(saved.path), saved.path, about)
    with pytest.raises(LineageError, match="is not a checkpoint of this pipeline"):
        load(saved.path, digest_file(saved.path), saved.pretrained)


def test_a_network_whose_layers_changed_since_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tests.networks:Net"
    none = Pretrained(name="none", digest="none", tensors={}, report="")
    backbone = build_backbone(name, CLASSES, 32, seed=0)
    sha256 = save(tmp_path / "c.safetensors", backbone, none)
    monkeypatch.setattr("tests.networks.WIDTH", 4)
    wider = build_backbone(name, CLASSES, 32, seed=0)
    with pytest.raises(LineageError, match=rf"does not fit {name} as the network is now: early"):
        load_checkpoint(tmp_path / "c.safetensors", sha256, wider, none, CLASS_NAMES)
