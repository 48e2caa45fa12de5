"""Stages end to end in one process: real images, real MLflow, real training, tiny sizes."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.data.images import digest_image
from pipeline.model.backbones import build_backbone
from pipeline.runs.session import CHECKPOINT, Session
from pipeline.settings.schedules import SCHEDULES
from pipeline.signals.evidence import read_predictions
from pipeline.tracking import Tracking
from tests.conftest import MOBILENET, SMALL_NET, Command, Work, class_image, inside, tiny, words_of
from tests.helpers import load_settings

TEST = {"test_per_class": "2"}


def runs(kind: str = "stage") -> pd.DataFrame:
    found = mlflow.search_runs(["0"], f"tags.kind = '{kind}'", order_by=["start_time ASC"])
    assert isinstance(found, pd.DataFrame)
    return found


def artifact(run_id: str, path: str) -> Path:
    """Where the store keeps it: not a copy."""
    return Path(mlflow.get_run(run_id).info.artifact_uri) / path


# --- chains --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chains:
    """What three commands printed: a chain by `main`, one by `stage3`, and the first again."""

    main: str
    stage3: str
    again: str


@pytest.fixture(scope="module")
def chains_once(shared_work: Work) -> Chains:
    first = shared_work.run("main", log_pictures="on")
    return Chains(first, shared_work.run("stage3", seed="1"), shared_work.run("main"))


@pytest.fixture
def chains(chains_once: Chains, shared_work: Work) -> Iterator[Chains]:
    with inside(shared_work.folder):
        yield chains_once


def of_seed(seed: str) -> pd.DataFrame:
    found = runs()
    return found[found["tags.seed"] == seed].reset_index(drop=True)


def test_stage3_trains_the_missing_parents_first_and_says_so(chains: Chains) -> None:
    for number in (1, 2):
        told = f"stage {number}: no finished run with the same content, training it"
        assert told in chains.stage3
    stages = of_seed("1")
    assert list(stages["tags.stage"]) == ["1", "2", "3"]
    assert set(stages["status"]) == {"FINISHED"}
    assert list(stages["tags.parent_run_id"]) == ["none", *stages["run_id"][:2]]
    parents = list(stages["tags.z.parent_checkpoint_sha256"])[1:]
    assert parents == list(stages["tags.z.checkpoint_sha256"][:2])


def test_a_stage_ends_with_the_reference_line(chains: Chains) -> None:
    pattern = (
        r"Stage-{} Best results: Train Loss: \d\.\d{{4}} \| Val Loss: \d\.\d{{4}} \| "
        r"Train Acc: \d+\.\d\d% \| Val Acc: \d+\.\d\d%"
    )
    best, following, see, page = chains.stage3.splitlines()[-4:]
    assert re.fullmatch(pattern.format(3), best)
    assert following.startswith("next: mlflow run . -e decide --env-manager local ")
    assert "-P weights=none" in following
    assert see.startswith("see the run: mlflow ui --backend-store-uri sqlite:///")
    run_id = of_seed("1")["run_id"].iloc[-1]
    assert page.endswith(f"/#/experiments/0/runs/{run_id}?workflowType=machine_learning")
    for number in (1, 2, 3):
        assert len(re.findall(pattern.format(number), chains.main)) == 1


def test_main_runs_every_stage_nested_under_one_run_and_ends_with_a_table(chains: Chains) -> None:
    lines = chains.main.splitlines()
    assert [line.partition(": ")[0] for line in lines[-4:-1]] == ["Stage 3", "next", "see the run"]
    (first,) = (n for n, line in enumerate(lines) if line.split()[:2] == ["stage", "trains"])
    assert [line.split()[0] for line in lines[first + 1 : first + 6]] == ["0", "0", "1", "2", "3"]
    chain, stages = runs("chain").iloc[0], of_seed("0")
    assert set(stages["tags.mlflow.parentRunId"]) == {chain["run_id"]}
    assert chain["metrics.stage3/val_acc"] == stages["metrics.selected/val_acc"].iloc[-1]
    assert "| stage | trains |" in artifact(chain["run_id"], "summary.md").read_text()


def test_stages_are_found_by_content_and_never_by_time(chains: Chains) -> None:
    assert chains.again.count("(reused)") == 3
    stages = of_seed("0")  # those of the other seed are younger
    assert len(stages) == 3
    for number, run_id in enumerate(stages["run_id"], start=1):
        assert f"stage {number}: found run {run_id} with the same content" in chains.again


def test_a_run_says_everything_about_itself(chains: Chains) -> None:
    run = of_seed("0").iloc[1]
    rest = f"stage 2 · lr 0.0003 · images · {SMALL_NET} · draw 0 · seed 0"
    assert run["tags.mlflow.runName"] == f"{run['metrics.selected/val_acc']:.1%} · {rest}"
    for tag in ("schedule", "z.backbone", "z.weights", "z.data", "draw", "seed", "z.git_commit"):
        assert run[f"tags.{tag}"]
    assert "Stage-2 Best results" in run["tags.mlflow.note.content"]
    assert len(run["tags.z.frozen_sha256"]) == 64
    for metric in ("loss/train", "acc/train", "loss/val", "acc/val", "lr/head", "lr/block4"):
        assert pd.notna(run[f"metrics.{metric}"]), metric
    settings = json.loads(artifact(run["run_id"], "settings.json").read_text())
    assert (settings["stage1.epochs"], settings["stage2.epochs"]) == (1, 2)
    for picture in ("learning_curves", "confusion_matrix"):
        assert artifact(run["run_id"], f"figures/{picture}.png").stat().st_size > 5000
    rows = pd.read_csv(artifact(run["run_id"], "evaluation/val_predictions.csv"))
    assert len(rows) == 12
    right = (rows["label"] == rows["predicted"]).mean()
    assert right == pytest.approx(run["metrics.selected/val_acc"], abs=1e-6)
    assert rows["nll"].mean() == pytest.approx(run["metrics.selected/val_loss"], rel=1e-4)
    client = mlflow.MlflowClient()
    assert [m.step for m in client.get_metric_history(run["run_id"], "acc/val")] == [1, 2]
    inputs = client.get_run(run["run_id"]).inputs.dataset_inputs
    assert {i.dataset.name for i in inputs} == {"images-training", "images-validation"}
    assert all(len(i.dataset.digest) == 32 for i in inputs)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "three_stage"])
def test_every_other_schedule_runs(command: Command, schedule: str) -> None:
    assert command("main", schedule=schedule, epochs="1", **{"stage1.batch_size": "64"}) == 0
    assert set(runs()["tags.schedule"]) == {schedule}


def test_the_same_settings_give_bit_identical_weights(command: Command) -> None:
    for _ in range(2):
        assert command("main", reuse="off", augment="strong", backbone="mobilenet_v2") == 0
    digests = runs().groupby("tags.stage")["tags.z.checkpoint_sha256"]
    assert list(digests.count()) == [2, 2, 2]
    assert list(digests.nunique()) == [1, 1, 1]


def test_a_run_without_pictures_and_model_is_given_them_from_its_checkpoint(
    command: Command,
) -> None:
    words = {"schedule": "head_only", "stage1.epochs": "1"}
    for both, there in (("off", False), ("on", True), ("off", True)):
        assert command("main", log_model=both, log_pictures=both, **words) == 0
        [run] = [row for _, row in runs().iterrows()]
        for path in ("figures/learning_curves.png", "predictions.json"):
            assert artifact(run["run_id"], path).exists() == there
    table = read_predictions(artifact(run["run_id"], "evaluation/val_predictions.csv"))
    folder = Path(run["params.data"])
    pictures = {digest_image(Image.open(p)).hex(): p.read_bytes() for p in folder.rglob("*.png")}
    model = mlflow.pyfunc.load_model(run["tags.model_uri"])
    images = [pictures[digest] for digest in table["image_sha256"]]
    answers = model.predict(pd.DataFrame({"image": images}))
    assert list(answers["label"]) == list(table["predicted"])


# --- what a stage is found by --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": "1"}, False),
        ({"train_per_class": "3"}, False),
        ({"stage1.lr": "0.002"}, False),
        ({"stage1.epochs": "2"}, False),
        ({"image_size": "33"}, False),
        ({"norm_stats": "source"}, False),
        ({"data_seed": "1"}, False),
        ({"precision": "bfloat16"}, False),
        ({"backbone": "mobilenet_v2"}, False),
        ({"schedule": "two_stage"}, False),
        ({"schedule": "lp_ft"}, True),
        ({"schedule": "stage1_continued"}, True),
        ({"cache": "off", "device": "cpu"}, True),
        ({"stage2.lr": "0.002", "signal_loss_rise": "0.5"}, True),
    ],
)
def test_stage_1_is_shared_by_commands_with_the_same_content(
    store: Path, image_folder: Path, change: dict[str, str], same: bool
) -> None:
    def key_of(options: dict[str, str]) -> str:
        settings = load_settings(tiny(image_folder, store, options))
        return Session.open(settings, Tracking.connect(), lambda _: None).key(1)

    assert (key_of(change) == key_of({})) is same


@pytest.mark.parametrize(("backbone", "same"), [("efficientnet_b0", False), ("resnet18", True)])
def test_runs_whose_head_was_drawn_larger_by_its_library_are_others(
    store: Path,
    image_folder: Path,
    backbone: str,
    same: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key() -> str:
        options = {"backbone": backbone, "weights": "none"}
        settings = load_settings(tiny(image_folder, store, options))
        return Session.open(settings, Tracking.connect(), lambda _: None).key(1)

    drawn_here = key()
    monkeypatch.setattr("pipeline.model.backbones.TOO_LARGE", math.inf)  # as in earlier versions
    assert (key() == drawn_here) is same


def test_auto_statistics_are_chosen_before_stage_1_and_told_logged_and_handed_down(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1", norm_stats="auto") == 0
    [line] = [line for line in capfd.readouterr().out.splitlines() if "norm_stats=auto" in line]
    first = runs().iloc[0]
    chosen, reason = first["tags.z.norm_stats"], first["tags.z.norm_stats_reason"]
    assert line == f"norm_stats=auto: {chosen} ({reason})"
    assert json.loads(first["tags.z.settings"])["norm_stats"] == chosen
    for name in ("source", "target"):
        assert f"{name} {first[f'metrics.norm_stats/{name}_acc']:.1%}" in reason
    parent = first["run_id"]
    assert command("stage2", parent_run_id=parent, norm_stats="auto", epochs="1") == 0
    assert command("stage2", norm_stats=chosen, epochs="1") == 0  # reuses stage 1
    assert list(runs()["tags.stage"]) == ["1", "2", "2"]
    assert set(runs()["tags.z.norm_stats"]) == {chosen}
    other = {"source": "target", "target": "source"}[chosen]
    capfd.readouterr()
    assert command("stage2", parent_run_id=parent, norm_stats=other) == 2
    assert f"norm_stats is {chosen} there, got {other}" in capfd.readouterr().err


def test_one_image_a_class_trains_on_with_the_statistics_of_the_weights(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1", train_per_class="1", norm_stats="auto") == 0
    assert "norm_stats=auto: source (a class has 1 training image" in capfd.readouterr().out


def test_a_stage_that_keeps_statistics_has_those_of_the_stage_before(
    command: Command, tmp_path: Path
) -> None:
    """As stage 2 of depthwise networks by the preset cifar10, and not stage 3 after it."""
    state = build_backbone(MOBILENET, 3, 32, seed=0).model.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    words = {"backbone": MOBILENET, "weights": str(tmp_path / "weights.safetensors")}
    words["preset"] = "cifar10"
    assert command("stage3", **words) == 0
    stages = runs().sort_values("tags.stage")
    assert list(stages["params.norm"]) == ["adapt", "keep", "adapt"]
    first, second, third = (load_file(artifact(run_id, CHECKPOINT)) for run_id in stages["run_id"])
    statistics = [key for key in first if key.endswith("running_mean")]
    assert statistics
    assert all(torch.equal(first[key], second[key]) for key in statistics)
    assert not all(torch.equal(second[key], third[key]) for key in statistics)


def test_weights_without_finite_features_are_one_line_and_leave_no_run(
    command: Command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = build_backbone(SMALL_NET, 3, 32, seed=0).model.state_dict()
    state["stem.0.weight"].fill_(3e38)
    save_file(state, tmp_path / "broken.safetensors")
    weights = str(tmp_path / "broken.safetensors")
    assert command("stage1", weights=weights, norm_stats="auto") == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "not finite numbers" in line
    assert runs().empty


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "auto"])
def test_a_run_and_its_evaluation_say_in_which_precision_they_were_computed(
    command: Command, asked: str
) -> None:
    assert command("stage1", precision=asked, **TEST) == 0
    run = runs().iloc[0]
    precision = run["tags.z.precision"]
    assert run["params.precision"] == precision
    assert precision in (("float32", "bfloat16") if asked == "auto" else (asked,))
    for words, expected in (([], precision), (["--precision", "bfloat16"], "bfloat16")):
        assert main(["evaluate", "--run_id", run["run_id"], *words]) == 0
        assert runs()["tags.z.test_precision"][0] == expected


# --- a given parent ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent_once(shared_work: Work) -> str:
    shared_work.run("stage1", seed="9", **TEST)
    with inside(shared_work.folder):
        return str(of_seed("9")["run_id"][0])


@pytest.fixture
def parent(parent_once: str, shared_work: Work) -> Iterator[str]:
    """The id of a stage-1 run in the store that the module shares."""
    with inside(shared_work.folder):
        yield parent_once


def test_a_given_parent_hands_down_its_data_backbone_and_weights(
    parent: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = {"parent_run_id": parent, "epochs": "1", "log_model": "off", "cache_dir": "cache"}
    assert main(words_of("stage2", {**words, "seed": "7"})) == 0  # the seed may be another
    output = capfd.readouterr().out
    assert f"inherited from run {parent}" in output
    assert f"backbone={SMALL_NET}" in output
    [child] = [row for _, row in of_seed("7").iterrows()]
    assert child["params.backbone"] == SMALL_NET
    assert child["tags.parent_run_id"] == parent
    assert child["tags.z.data_sha256"] == of_seed("9")["tags.z.data_sha256"][0]


@pytest.mark.parametrize(
    ("entry_point", "words", "message"),
    [
        ("stage2", {"backbone": "resnet18"}, f"backbone is {SMALL_NET} there, got resnet18"),
        ("stage2", {"draw": "1"}, "draw is 0 there, got 1"),
        ("stage2", {"stage1.lr": "0.5"}, "stage1.lr is 0.003 there, got 0.5"),
        ("stage3", {}, "stage3 needs a stage-2 checkpoint, run {parent} is stage 1"),
        ("stage2", {"parent_run_id": "0" * 32}, "does not exist"),
    ],
)
def test_a_parent_that_does_not_fit_is_refused(
    parent: str,
    capfd: pytest.CaptureFixture[str],
    entry_point: str,
    words: dict[str, str],
    message: str,
) -> None:
    before = len(runs())
    assert main(words_of(entry_point, {"parent_run_id": parent, **words})) == 2
    assert message.format(parent=parent) in capfd.readouterr().err
    assert len(runs()) == before


def test_a_damaged_or_deleted_parent_is_refused_and_one_that_was_found_is_trained_again(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    command("stage1")
    parent = runs()["run_id"][0]
    path = artifact(parent, CHECKPOINT)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert command("stage2", parent_run_id=parent) == 2
    error = capfd.readouterr().err
    assert f"run {parent}" in error
    assert "is damaged" in error
    assert "RUNNING" not in set(runs()["status"])
    assert command("stage2") == 0
    assert "note: passing over run" in capfd.readouterr().out
    assert list(runs()["tags.stage"]) == ["1", "1", "2"]
    mlflow.delete_run(parent)
    assert command("stage2", parent_run_id=parent) == 2
    assert "or was deleted" in capfd.readouterr().err


@pytest.mark.parametrize("entry_point", ["stage2", "evaluate"])
@pytest.mark.parametrize("change", ["a class renamed", "a class more", "images more"])
def test_images_that_are_not_the_runs_own_are_noticed(
    parent: str,
    shared_work: Work,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: str,
    entry_point: str,
) -> None:
    data = Path(shutil.copytree(shared_work.images, tmp_path / "images"))
    if change == "a class renamed":
        (data / "apple").rename(data / "zebra")
    elif change == "a class more":
        shutil.copytree(data / "apple", data / "kiwi")
    else:
        for number in range(50, 70):
            class_image(0, number).save(data / "apple" / f"{number}.png")
    before = len(mlflow.search_runs(["0"], output_format="list"))
    key = "run_id" if entry_point == "evaluate" else "parent_run_id"
    words = {key: parent, "data": str(data), "cache_dir": "cache"}
    assert main(words_of(entry_point, words)) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"are not those that run {parent} was trained on" in line
    assert len(mlflow.search_runs(["0"], output_format="list")) == before


# --- faults, notes and evaluation ----------------------------------------------------------------


def test_a_checkpoint_holds_only_what_differs_from_the_pretrained_weights(
    command: Command,
) -> None:
    words = {"backbone": "resnet18", "weights": "tiny_imagenet", "norm_stats": "source"}
    assert command("stage1", **words) == 0
    stored = load_file(artifact(runs()["run_id"][0], CHECKPOINT))
    assert set(stored) == {"fc.weight", "fc.bias"}


def test_a_loss_that_is_never_a_number_fails_the_run_and_is_said(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    words = {"schedule": "full", "lr": "100", "optimizer": "sgd", "stage1.epochs": "30"}
    assert command("stage1", backbone=MOBILENET, **words) == 2
    output = capfd.readouterr()
    assert "is not a number in epoch" in output.out
    assert "no epoch had a finite validation loss: lower stage1.lr" in output.err
    run = runs().iloc[0]
    assert run["tags.diverged"] == "true"
    assert run["status"] == "FAILED"


@pytest.mark.parametrize(
    ("augment", "views", "noted"),
    [("strong", "2", True), ("strong", "3", False), ("strong", "0", False), ("light", "2", False)],
)
def test_fewer_stored_views_than_epochs_are_noted(
    shared_work: Work, augment: str, views: str, noted: bool
) -> None:
    output = shared_work.run("stage1", augment=augment, views=views, **{"stage1.epochs": "3"})
    assert ("note: 2 stored views are met more than once in 3 epochs" in output) == noted


def test_a_store_that_refuses_metrics_fails_the_run(
    command: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics go out in the background: a refusal must not be lost there."""
    log_batch = mlflow.MlflowClient.log_batch

    def refuse(client: mlflow.MlflowClient, run_id: str, **values: object) -> object:
        if any(getattr(m, "key", "") == "acc/val" for m in values.get("metrics", ())):
            raise mlflow.exceptions.MlflowException("the disk is gone")
        return log_batch(client, run_id, **values)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", refuse)
    assert command("stage1") == 2
    assert "the disk is gone" in capfd.readouterr().err
    assert list(runs()["status"]) == ["FAILED"]


def test_evaluate_scores_a_run_on_the_test_split(
    parent: str, chains: Chains, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run_id", parent]) == 0
    assert "on 6 images" in capfd.readouterr().out
    assert 0 <= of_seed("9")["metrics.test/acc"][0] <= 1
    assert main(["evaluate", "--run_id", of_seed("0")["run_id"][0]]) == 2
    assert "has no test split" in capfd.readouterr().err


def test_plain_kernels_come_to_the_same_and_are_kept_apart(
    command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = {"schedule": "full", "backbone": "resnet18", "stage1.epochs": "1"}
    assert command("stage1", **words) == 0
    monkeypatch.setenv("UNFREEZE_KERNELS", "plain")
    assert command("main", **words) == 0
    fast, plain = (run for _, run in runs().iterrows())
    assert plain["tags.z.kernels"] == "plain"
    for tag in ("z.lineage_key", "z.checkpoint_sha256"):
        assert fast[f"tags.{tag}"] != plain[f"tags.{tag}"]
    loss = "metrics.selected/train_loss"
    assert fast[loss] == pytest.approx(plain[loss], rel=1e-3)
    monkeypatch.setenv("UNFREEZE_KERNELS", "plane")
    assert command("stage1", **words) == 2
    assert "UNFREEZE_KERNELS=plane" in capfd.readouterr().err


@pytest.mark.usefixtures("chains")
def test_the_id_of_a_run_of_main_stands_for_its_last_stage() -> None:
    chain = runs("chain").iloc[0]
    run = Tracking.connect().get(chain["run_id"])
    assert run.stage_run_id == chain["tags.stage3_run_id"]
    last = Tracking.connect().get(run.stage_run_id)
    assert last.stage_run_id == last.run_id
