"""Weights from scratch: what the file holds, where it says it came from, who can use it."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.entities import Run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.data.sampling.draws import draw_in
from pipeline.entries.command_line.plans import pretrain_plan
from pipeline.model.backbones import build_backbone
from pipeline.runs.session import CHECKPOINT
from pipeline.runs.sources import source_of
from pipeline.settings.run import TrainSettings
from pipeline.system.disk.digests import digest_tensors
from tests.conftest import class_image, enter_store, inside, words_of
from tests.helpers import load_pretrained, request_of
from tests.reports import artifact
from tests.test_decide import runs, settings_of

SMALL = "mobilenet_v3_small"
WORDS = {
    "backbone": SMALL,
    "image_size": "32",
    "epochs": "2",
    "batch_size": "8",
    "precision": "float32",
    "log_model": "off",
    "log_pictures": "off",
    "near_duplicates": "off",
}
COUNTS = {"kelp": 13, "moss": 10, "reed": 12}
DOMAIN = {"data": "domain", "out": "w.safetensors"}


def write_folder(root: Path, counts: dict[str, int], start: int) -> Path:
    """So many images of each class; another `start` gives other images."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(start, start + count):
            class_image(label, number).save(root / name / f"{number:03}.png")
    return root


def provenance(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    assert list(metadata) == ["provenance"]
    return dict(json.loads(metadata["provenance"]))


@dataclass
class Lab:
    """A store with two image sets, and weights that were made on one of them."""

    folder: Path
    output: str
    made: list[Run]

    def pretrain(self, out: Path | str, **options: str) -> int:
        own = {**WORDS, "data": str(self.folder / "domain"), "out": str(out)}
        return main(words_of("pretrain", {**own, "cache_dir": str(self.folder / "c"), **options}))

    @property
    def weights(self) -> Path:
        return self.folder / "kept" / "my own" / "weights.safetensors"


@pytest.fixture(scope="module")
def lab_once(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("pretrain") / "work"
    with pytest.MonkeyPatch.context() as patch:
        enter_store(folder, empty_database, patch)
    write_folder(folder / "domain", COUNTS, 0)
    write_folder(folder / "mine", {"ash": 8, "elm": 8, "fir": 8}, 500)
    lab = Lab(folder, "", [])
    lab.weights.parent.mkdir(parents=True)
    said = io.StringIO()
    with inside(folder), contextlib.redirect_stdout(said):
        assert lab.pretrain(lab.weights) == 0
        lab.output = said.getvalue()
        lab.made = runs("pretrain")
        return lab


@pytest.fixture
def lab(lab_once: Lab) -> Iterator[Lab]:
    with inside(lab_once.folder):
        yield lab_once


def stage_run(lab: Lab) -> Run:
    return mlflow.get_run(lab.made[0].data.tags["stage_run_id"])


def test_one_stage_of_every_block_is_trained_from_random_weights(lab: Lab) -> None:
    run = stage_run(lab)
    assert (run.data.tags["schedule"], run.data.tags["stage"]) == ("full", "1")
    assert run.data.tags["z.weights_sha256"] == "none"
    assert run.data.tags["mlflow.parentRunId"] == lab.made[0].info.run_id
    settings = settings_of(run)
    assert (settings.norm_stats, settings.views) == ("source", 0)
    assert settings.training(1) == TrainSettings(
        epochs=2, batch_size=8, lr=1e-3, weight_decay=0.05, augment="strong"
    )
    assert {one.info.status for one in (run, lab.made[0])} == {"FINISHED"}
    # every class counts as many images as the smallest has, a tenth of 10 aside
    assert (settings.train_per_class, settings.val_per_class) == (9, 1)
    assert "note: every class counts the same: 9 images a class" in lab.output
    assert "5 images of larger classes are left out" in lab.output
    _, told, words = lab.output.splitlines()[-1].partition("use it: ")
    assert told
    use = [f"weights={lab.weights.absolute()}", f"backbone={SMALL}"]
    assert shlex.split(words) == ["-P", use[0], "-P", use[1]]


def test_the_file_holds_the_runs_model_without_its_last_layer(lab: Lab) -> None:
    saved = load_file(lab.weights)
    trained = load_file(artifact(stage_run(lab), CHECKPOINT))
    assert set(trained) - set(saved) == {"classifier.3.weight", "classifier.3.bias"}
    assert set(saved) <= set(trained)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in saved.items())
    start = build_backbone(SMALL, len(COUNTS), 32, 0).model.state_dict()
    moved = [name for name in saved if not torch.equal(saved[name], start[name])]
    assert len(moved) > len(saved) / 2


def test_the_file_says_where_its_weights_came_from(lab: Lab) -> None:
    about, run = provenance(lab.weights), stage_run(lab)
    settings = settings_of(run)
    draw = draw_in(source_of(settings), settings)
    assert about["data_sha256"] == draw.fingerprint == run.data.tags["z.data_sha256"]
    assert about["weights_sha256"] == digest_tensors(load_file(lab.weights))
    assert (about["run_id"], about["data"]) == (run.info.run_id, "domain")
    assert about["git_commit"] == run.data.tags["z.git_commit"]
    assert (about["backbone"], about["image_size"], about["seed"]) == (SMALL, 32, 0)
    assert (about["class_names"], about["images"]) == (list(COUNTS), 27)
    assert about["training"] == settings.training(1).model_dump()
    assert about["val_acc"] == run.data.metrics["selected/val_acc"]
    assert about["selected_epoch"] == run.data.metrics["selected/epoch"]
    log = lab.made[0]
    assert json.loads(artifact(log, "provenance.json").read_text()) == about
    assert log.data.tags["z.weights_sha256"] == about["weights_sha256"]
    assert log.data.metrics["val_acc"] == about["val_acc"]


def test_a_stage_starts_from_the_file_on_other_images(lab: Lab) -> None:
    """As many classes as those of the pretraining: its classifier is left out all the same."""
    own = {"data": str(lab.folder / "mine"), "cache_dir": str(lab.folder / "c")}
    own |= {"weights": str(lab.weights), "train_per_class": "4", "val_per_class": "4"}
    own |= {"norm_stats": "source", "augment": "none"}
    assert main(words_of("stage1", {**WORDS, **own})) == 0
    run = next(run for run in runs() if run.data.tags["z.data"] == "mine")
    assert run.data.tags["z.weights_sha256"] == provenance(lab.weights)["weights_sha256"]
    report = run.data.tags["z.weights_report"]
    assert "242 of 244 tensors matched, left out classifier.3.weight and classifier.3" in report
    stored = load_file(artifact(run, CHECKPOINT))  # what differs from the weights: the head
    assert {name.split(".")[0] for name in stored} == {"classifier"}


@pytest.mark.parametrize("classes", [3, 5])
def test_the_weights_fit_any_number_of_classes(lab: Lab, classes: int) -> None:
    backbone = build_backbone(SMALL, classes, 32, 1)
    head = backbone.model.state_dict()["classifier.3.weight"].clone()
    pretrained = load_pretrained(str(lab.weights), backbone)
    pretrained.apply(backbone)
    state = backbone.model.state_dict()
    assert torch.equal(state["classifier.3.weight"], head)
    assert all(torch.equal(state[name], t) for name, t in load_file(lab.weights).items())


def test_the_same_command_trains_nothing_and_writes_the_same_bytes(
    lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = len(runs())
    (tmp_path / "deeper").mkdir()
    again = [tmp_path / "a.safetensors", tmp_path / "deeper" / "b.safetensors"]
    for path in again:
        assert lab.pretrain(path) == 0
    assert (
        f"found run {stage_run(lab).info.run_id} with the same content" in capfd.readouterr().out
    )
    assert len(runs()) == before
    assert {path.read_bytes() for path in again} == {lab.weights.read_bytes()}
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "deeper"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"out": ""}, "out is not given: say where the weights go"),
        ({"out": "w.pth"}, "out=w.pth does not end in .safetensors: say where the weights go"),
        ({"data": None}, "data is not given: pass -P data="),
        ({"weights": "imagenet"}, "weights=imagenet: pretraining means weights=none: leave it"),
        ({"schedule": "three_stage"}, "schedule=three_stage: pretraining means schedule=full"),
        ({"norm_stats": "target"}, "norm_stats=target: pretraining means norm_stats=source"),
        ({"config": "tiny.yaml"}, "weights=tiny_imagenet: pretraining means weights=none"),
        ({"stage2.lr": "1"}, "schedule full has 1 stage"),
        ({"data": "nowhere"}, "data=nowhere: neither digits"),
        ({"backbone": "resnet19"}, "did you mean resnet18"),
        ({"preset": "imags"}, "unknown preset imags"),
        ({"train_per_class": "10", "val_per_class": "1"}, "too few images in class moss (10)"),
        ({"val_per_class": "10"}, "class moss has 10 images, 10 of them to validate on"),
    ],
)
def test_a_fault_is_one_line_exit_code_2_and_nothing_is_trained(
    lab: Lab, capfd: pytest.CaptureFixture[str], words: dict[str, str | None], message: str
) -> None:
    (lab.folder / "tiny.yaml").write_text("weights: tiny_imagenet\n")
    before = len(runs())
    asked = {**WORDS, **DOMAIN, "cache_dir": str(lab.folder / "c"), **words}
    assert main(words_of("pretrain", {k: v for k, v in asked.items() if v is not None})) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert len(runs()) == before
    assert not (lab.folder / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("file/w.safetensors", "there is no folder"),
        ("no/such/folder/w.safetensors", "there is no folder"),
        ("folder.safetensors", "is a folder"),
        ("precious.safetensors", "exists and was not written by pretrain: choose another name"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_before_anything_is_trained(
    lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str], where: str, words: str
) -> None:
    (tmp_path / "file").write_bytes(b"not a folder")
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"weight": torch.ones(2)}, tmp_path / "precious.safetensors")
    before, content = len(runs()), (tmp_path / "precious.safetensors").read_bytes()
    assert lab.pretrain(tmp_path / where, seed="7") == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path) in line
    assert words in line
    assert len(runs()) == before
    assert len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / "precious.safetensors").read_bytes() == content


LONG = TrainSettings(epochs=30, lr=1e-3, weight_decay=0.05, augment="strong")
"""What random weights want."""


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("", {}, LONG),
        ("", {"epochs": "4"}, LONG.model_copy(update={"epochs": 4})),
        ("lr: 0.5", {}, LONG.model_copy(update={"lr": 0.5})),
        ("stage1: {lr: 0.5}", {}, LONG.model_copy(update={"lr": 0.5})),
        ("lr: 2\nstage1.lr: 0.5", {}, LONG.model_copy(update={"lr": 0.5})),
        ("stage1.lr: 0.5", {"stage1.lr": "0.25"}, LONG.model_copy(update={"lr": 0.25})),
        ("", {"preset": "images"}, TrainSettings(epochs=10, lr=3e-4, augment="light")),
    ],
)
def test_random_weights_are_trained_longer_unless_a_preset_file_or_option_says_otherwise(
    tmp_path: Path, text: str, options: dict[str, str], expected: TrainSettings
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    config = tmp_path / "mine.yaml" if text else None
    plan = pretrain_plan(request_of("pretrain", {**DOMAIN, **options}, config))
    assert plan.settings.training(1) == expected


@pytest.mark.parametrize(
    ("train", "val", "images"),
    [
        ({"a": 6, "b": 4}, {"a": 3, "b": 2}, 8),
        ({"a": 24, "b": 20}, {"a": 3, "b": 1}, 40),  # a tenth would be more than there are
    ],
)
def test_a_validation_split_of_its_own_takes_nothing_from_the_training_images(
    lab: Lab, tmp_path: Path, train: dict[str, int], val: dict[str, int], images: int
) -> None:
    for part, counts in (("train", train), ("val", val)):
        write_folder(tmp_path / "split" / part, counts, 900 if part == "val" else 800)
    assert lab.pretrain(tmp_path / "w.safetensors", data=str(tmp_path / "split"), epochs="1") == 0
    assert provenance(tmp_path / "w.safetensors")["images"] == images
    shutil.rmtree(tmp_path / "split")
