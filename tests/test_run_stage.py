"""Stages end to end in one process: real images, real MLflow, real training, tiny sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.data.images import digest_image
from pipeline.model.backbones import build_backbone
from pipeline.settings.schedules import SCHEDULES
from pipeline.signals.evidence import read_predictions
from tests.conftest import TINY, Command, class_image


def runs(kind: str = "stage") -> pd.DataFrame:
    import mlflow

    found = mlflow.search_runs(["0"], f"tags.kind = '{kind}'", order_by=["start_time ASC"])
    assert isinstance(found, pd.DataFrame)
    return found


def artifact(run_id: str, path: str) -> Path:
    """Where the store keeps it: not a copy."""
    import mlflow

    return Path(mlflow.get_run(run_id).info.artifact_uri) / path


def test_stage3_trains_the_missing_parents_first_and_says_so(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage3") == 0
    said = capfd.readouterr().out
    assert "stage 2: no finished run with the same content, training it" in said
    assert "stage 1: no finished run with the same content, training it" in said
    assert said.count("Best results: Train Loss:") == 3
    stages = runs()
    assert list(stages["tags.stage"]) == ["1", "2", "3"]
    assert set(stages["status"]) == {"FINISHED"}
    assert list(stages["tags.parent_run_id"]) == ["none", *stages["run_id"][:2]]
    assert list(stages["tags.parent_checkpoint_sha256"])[1:] == list(
        stages["tags.checkpoint_sha256"][:2]
    )


def test_a_stage_ends_with_the_reference_line(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1") == 0
    line = capfd.readouterr().out.splitlines()[-1]
    pattern = (
        r"Stage-1 Best results: Train Loss: \d\.\d{4} \| Val Loss: \d\.\d{4} \| "
        r"Train Acc: \d+\.\d\d% \| Val Acc: \d+\.\d\d%"
    )
    assert pd.Series([line]).str.fullmatch(pattern).all()


def test_a_parent_is_found_by_content_and_never_by_time(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    command("stage1")
    command("stage1", seed="1")  # the latest, and the wrong one
    first = runs()["run_id"][0]
    capfd.readouterr()
    assert command("stage2") == 0
    assert f"stage 1: found run {first} with the same content" in capfd.readouterr().out
    assert runs()["tags.parent_run_id"].iloc[-1] == first


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "1"},
        {"draw": "0", "train_per_class": "3"},
        {"stage1.lr": "0.002"},
        {"stage1.epochs": "2"},
        {"image_size": "33"},
        {"norm_stats": "source"},
        {"data_seed": "1"},
        {"precision": "bfloat16"},
        {"backbone": "mobilenet_v2"},
        {"schedule": "two_stage"},
    ],
)
def test_any_other_content_needs_another_parent(command: Command, change: dict[str, str]) -> None:
    command("stage1")
    assert command("stage2", **change, epochs="1") == 0
    stages = runs()
    assert list(stages["tags.stage"]) == ["1", "1", "2"]
    assert stages["tags.lineage_key"].nunique() == 3


@pytest.mark.parametrize("schedule", ["lp_ft", "stage1_continued"])
def test_a_stage_that_trains_the_same_blocks_is_shared_by_schedules(
    command: Command, schedule: str
) -> None:
    command("stage1")
    assert command("stage2", schedule=schedule, epochs="1") == 0
    stages = runs()
    assert list(stages["tags.stage"]) == ["1", "2"]
    assert list(stages["tags.schedule"]) == ["three_stage", schedule]
    assert stages["tags.parent_run_id"][1] == stages["run_id"][0]


def test_where_and_how_it_is_computed_does_not_change_the_parent(command: Command) -> None:
    command("stage1")
    assert command("stage2", cache="off", device="cpu") == 0
    assert list(runs()["tags.stage"]) == ["1", "2"]


def test_auto_statistics_are_chosen_before_stage_1_and_told_logged_and_handed_down(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1", norm_stats="auto") == 0
    [line] = [line for line in capfd.readouterr().out.splitlines() if "norm_stats=auto" in line]
    first = runs().iloc[0]
    chosen, reason = first["tags.norm_stats"], first["tags.norm_stats_reason"]
    assert line == f"norm_stats=auto: {chosen} ({reason})"
    assert json.loads(first["tags.settings"])["norm_stats"] == chosen
    assert f"source {first['metrics.norm_stats/source_acc']:.1%}" in reason
    assert f"target {first['metrics.norm_stats/target_acc']:.1%}" in reason
    other = {"source": "target", "target": "source"}[chosen]
    parent = first["run_id"]
    assert command("stage2", parent_run_id=parent, norm_stats="auto", epochs="1") == 0
    assert runs().iloc[-1]["tags.norm_stats"] == chosen
    capfd.readouterr()
    assert command("stage2", parent_run_id=parent, norm_stats=other) == 2
    assert f"norm_stats is {chosen} there, got {other}" in capfd.readouterr().err


def test_statistics_that_were_chosen_are_those_that_can_be_asked_for(command: Command) -> None:
    command("stage1", norm_stats="auto")
    chosen = runs()["tags.norm_stats"][0]
    assert command("stage2", norm_stats=chosen, epochs="1") == 0
    assert list(runs()["tags.stage"]) == ["1", "2"]  # stage 1 is reused
    assert "norm_stats_reason" not in runs().filter(like="tags.norm_stats_").iloc[1].dropna()


def test_one_image_a_class_trains_on_with_the_statistics_of_the_weights(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1", train_per_class="1", norm_stats="auto") == 0
    assert "norm_stats=auto: source (a class has 1 training image" in capfd.readouterr().out


def test_weights_without_finite_features_are_one_line_and_leave_no_run(
    command: Command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = build_backbone("mobilenet_v3_small", 3, seed=0).model.state_dict()
    state["features.0.0.weight"].fill_(3e38)
    path = tmp_path / "broken.safetensors"
    save_file(state, path)
    assert command("stage1", weights=str(path), norm_stats="auto") == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "not finite numbers" in line
    assert runs().empty


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_says_in_which_precision_it_was_computed(command: Command, precision: str) -> None:
    assert command("stage1", precision=precision) == 0
    assert runs()["params.precision"][0] == runs()["tags.precision"][0] == precision


def test_auto_precision_is_logged_as_what_it_came_to(command: Command) -> None:
    assert command("stage1", precision="auto") == 0
    run = runs().iloc[0]
    assert run["tags.precision"] in ("float32", "bfloat16")
    assert run["params.precision"] == run["tags.precision"]


def test_a_given_parent_hands_down_its_data_backbone_and_weights(
    command: Command, capfd: pytest.CaptureFixture[str], store: Path
) -> None:
    command("stage1")
    parent = runs()["run_id"][0]
    capfd.readouterr()
    words = ["--parent_run_id", parent, "--epochs", "1", "--log_model", "off"]
    assert main(["stage2", *words, "--cache_dir", str(store / "cache")]) == 0
    said = capfd.readouterr().out
    assert f"inherited from run {parent}" in said
    assert "backbone=mobilenet_v3_small" in said
    child = runs().iloc[-1]
    assert child["params.backbone"] == "mobilenet_v3_small"
    assert child["tags.parent_run_id"] == parent
    assert child["tags.data_sha256"] == runs()["tags.data_sha256"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "resnet18"}, "backbone is mobilenet_v3_small there, got resnet18"),
        ({"draw": "1"}, "draw is 0 there, got 1"),
        ({"stage1.lr": "0.5"}, "stage1.lr is 0.003 there, got 0.5"),
    ],
)
def test_settings_that_contradict_the_given_parent_are_refused(
    command: Command, capfd: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    command("stage1")
    parent = runs()["run_id"][0]
    assert command("stage2", parent_run_id=parent, **change) == 2
    assert message in capfd.readouterr().err
    assert len(runs()) == 1


def test_another_seed_may_continue_from_a_given_parent(command: Command) -> None:
    command("stage1")
    assert command("stage2", parent_run_id=runs()["run_id"][0], seed="7") == 0
    assert runs()["params.seed"].iloc[-1] == "7"


def test_a_parent_of_the_wrong_stage_is_refused(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    command("stage1")
    parent = runs()["run_id"][0]
    assert command("stage3", parent_run_id=parent) == 2
    assert f"stage3 needs a stage-2 checkpoint, run {parent} is stage 1" in capfd.readouterr().err


def test_a_parent_that_does_not_exist_is_refused(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage2", parent_run_id="0" * 32) == 2
    assert "does not exist" in capfd.readouterr().err
    assert len(runs()) == 0


def test_a_corrupted_given_parent_is_refused_and_no_run_stays_open(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    command("stage1")
    parent = runs()["run_id"][0]
    path = artifact(parent, "checkpoint/checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert command("stage2", parent_run_id=parent) == 2
    error = capfd.readouterr().err
    assert f"run {parent}" in error
    assert "is damaged" in error
    assert "RUNNING" not in set(runs()["status"])


def test_a_corrupted_found_parent_is_passed_over_and_trained_again(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    command("stage1")
    path = artifact(runs()["run_id"][0], "checkpoint/checkpoint.safetensors")
    path.write_bytes(b"")
    assert command("stage2") == 0
    assert "note: passing over run" in capfd.readouterr().out
    assert list(runs()["tags.stage"]) == ["1", "1", "2"]


def test_images_that_changed_under_a_given_parent_are_noticed(
    command: Command, capfd: pytest.CaptureFixture[str], image_folder: Path
) -> None:
    command("stage1")
    for path in (image_folder / "apple").iterdir():
        class_image(1, 99).save(path)
    assert command("stage2", parent_run_id=runs()["run_id"][0]) == 2
    assert "are not those that run" in capfd.readouterr().err


def test_main_runs_every_stage_nested_under_one_run_and_ends_with_a_table(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("main") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1].startswith("browse the runs: mlflow ui --backend-store-uri sqlite:///")
    assert lines[-6].split()[:3] == ["stage", "trains", "parameters"]
    chain = runs("chain").iloc[0]
    assert set(runs()["tags.mlflow.parentRunId"]) == {chain["run_id"]}
    assert chain["metrics.stage3/val_acc"] == runs()["metrics.best/val_acc"].iloc[-1]
    assert "| stage | trains |" in artifact(chain["run_id"], "summary.md").read_text()


def test_main_again_reuses_every_stage(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    command("main")
    capfd.readouterr()
    assert command("main") == 0
    assert capfd.readouterr().out.count("(reused)") == 3
    assert len(runs()) == 3
    assert command("main", reuse="off") == 0
    assert len(runs()) == 6


def test_a_run_without_a_served_model_is_given_one_from_its_checkpoint(command: Command) -> None:
    words = {"schedule": "head_only", "stage1.epochs": "1"}
    for log_model in ("off", "on", "off", "on"):
        assert command("main", log_model=log_model, **words) == 0
    run = runs().iloc[0]
    assert len(runs()) == 1
    table = read_predictions(artifact(run["run_id"], "evaluation/val_predictions.csv"))
    folder = Path(run["params.data"])
    pictures = {digest_image(Image.open(p)).hex(): p.read_bytes() for p in folder.rglob("*.png")}
    model = mlflow.pyfunc.load_model(run["tags.model_uri"])
    images = [pictures[digest] for digest in table["image_sha256"]]
    answers = model.predict(pd.DataFrame({"image": images}))
    assert list(answers["label"]) == list(table["predicted"])


def test_the_same_settings_give_bit_identical_weights(command: Command) -> None:
    for _ in range(2):
        assert command("main", reuse="off", augment="strong", backbone="mobilenet_v2") == 0
    digests = runs().groupby("tags.stage")["tags.checkpoint_sha256"].nunique()
    assert list(digests) == [1, 1, 1]


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "three_stage"])
def test_every_other_schedule_runs(store: Path, image_folder: Path, schedule: str) -> None:
    words = ["--data", str(image_folder), "--schedule", schedule, "--epochs", "1"]
    words += [w for k, v in TINY.items() if "epochs" not in k for w in (f"--{k}", v)]
    assert main(["main", *words, "--cache_dir", str(store / "cache")]) == 0
    assert set(runs()["tags.schedule"]) == {schedule}


def test_a_run_says_everything_about_itself(command: Command) -> None:
    command("stage2")
    run = runs().iloc[-1]
    assert run["tags.mlflow.runName"] == "stage2 · images · mobilenet_v3_small · draw 0 · seed 0"
    for tag in ("schedule", "backbone", "weights", "data", "draw", "seed", "git_commit"):
        assert run[f"tags.{tag}"]
    assert "Stage-2 Best results" in run["tags.mlflow.note.content"]
    assert len(run["tags.frozen_sha256"]) == 64
    for metric in ("train/loss", "train/acc", "val/loss", "val/acc", "lr/head", "lr/block4"):
        assert run[f"metrics.{metric}"] == run[f"metrics.{metric}"], metric
    settings = json.loads(artifact(run["run_id"], "settings.json").read_text())
    assert settings["stage2.epochs"] == 2
    assert settings["stage1.epochs"] == 1
    for picture in ("learning_curves", "confusion_matrix"):
        assert artifact(run["run_id"], f"figures/{picture}.png").stat().st_size > 5000
    rows = pd.read_csv(artifact(run["run_id"], "evaluation/val_predictions.csv"))
    assert len(rows) == 12
    assert (rows["label"] == rows["predicted"]).mean() == pytest.approx(
        run["metrics.best/val_acc"]
    )
    assert rows["nll"].mean() == pytest.approx(run["metrics.best/val_loss"], rel=1e-4)


def test_epoch_metrics_and_data_sets_can_be_browsed(command: Command) -> None:
    import mlflow

    command("stage2")
    run_id = runs()["run_id"].iloc[-1]
    client = mlflow.MlflowClient()
    assert [m.step for m in client.get_metric_history(run_id, "val/acc")] == [1, 2]
    inputs = client.get_run(run_id).inputs.dataset_inputs
    assert {i.dataset.name for i in inputs} == {"images-training", "images-validation"}
    assert all(len(i.dataset.digest) == 32 for i in inputs)


def test_a_checkpoint_holds_only_what_differs_from_the_pretrained_weights(
    store: Path, image_folder: Path
) -> None:
    words = ["--data", str(image_folder), "--cache_dir", str(store / "cache")]
    words += ["--train_per_class", "4", "--val_per_class", "4", "--image_size", "32"]
    words += ["--epochs", "1", "--norm_stats", "source", "--log_model", "off"]
    words += ["--weights", "tiny_imagenet"]
    assert main(["stage1", *words]) == 0
    stored = load_file(artifact(runs()["run_id"][0], "checkpoint/checkpoint.safetensors"))
    assert set(stored) == {"fc.weight", "fc.bias"}


def test_a_loss_that_is_never_a_number_fails_the_run_and_is_said(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    words = {"schedule": "full", "lr": "100", "optimizer": "sgd", "stage1.epochs": "30"}
    assert command("stage1", **words) == 2
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
    command: Command, capfd: pytest.CaptureFixture[str], augment: str, views: str, noted: bool
) -> None:
    said_epochs = {"stage1.epochs": "3"}
    assert command("stage1", augment=augment, views=views, **said_epochs) == 0
    said = capfd.readouterr().out
    assert ("note: 2 stored views are met more than once in 3 epochs" in said) == noted


def test_a_store_that_refuses_metrics_fails_the_run(
    command: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics go out in the background: a refusal must not be lost there."""
    import mlflow
    from mlflow.exceptions import MlflowException

    log_batch = mlflow.MlflowClient.log_batch

    def refuse(client: mlflow.MlflowClient, run_id: str, **values: object) -> object:
        if any(getattr(m, "key", "") == "val/acc" for m in values.get("metrics", ())):
            raise MlflowException("the disk is gone")
        return log_batch(client, run_id, **values)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", refuse)
    assert command("stage1") == 2
    assert "the disk is gone" in capfd.readouterr().err
    assert list(runs()["status"]) == ["FAILED"]


def test_evaluate_scores_a_run_on_the_test_split(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--cache_dir", str(store / "cache"), "--epochs", "1", "--log_model", "off"]
    assert main(["stage1", *words]) == 0
    run = runs().iloc[0]
    assert main(["evaluate", "--run_id", run["run_id"]]) == 0
    assert "on 600 images" in capfd.readouterr().out
    assert 0 < runs()["metrics.test/acc"][0] < 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluate_computes_in_the_runs_own_precision_and_says_so(
    command: Command, precision: str
) -> None:
    assert command("stage1", test_per_class="2", precision=precision) == 0
    for words in ([], ["--precision", "bfloat16"]):
        assert main(["evaluate", "--run_id", runs()["run_id"][0], *words]) == 0
        assert runs()["tags.test_precision"][0] == (words[-1] if words else precision)


@pytest.mark.parametrize("change", ["a class renamed", "a class more", "images more"])
def test_a_run_is_not_scored_on_other_images_than_its_own(
    command: Command, capfd: pytest.CaptureFixture[str], image_folder: Path, change: str
) -> None:
    import mlflow

    command("stage1", test_per_class="2")
    run_id = runs()["run_id"][0]
    if change == "a class renamed":
        (image_folder / "apple").rename(image_folder / "zebra")
    elif change == "a class more":
        shutil.copytree(image_folder / "apple", image_folder / "kiwi")
    else:
        for number in range(50, 70):
            class_image(0, number).save(image_folder / "apple" / f"{number}.png")
    capfd.readouterr()
    assert main(["evaluate", "--run_id", run_id, "--cache_dir", "cache"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"are not those that run {run_id} was trained on" in line
    assert len(mlflow.search_runs(["0"], output_format="list")) == 1


def test_a_deleted_parent_is_refused(command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    import mlflow

    command("stage1")
    parent = runs()["run_id"][0]
    mlflow.delete_run(parent)
    assert command("stage2", parent_run_id=parent) == 2
    assert "or was deleted" in capfd.readouterr().err


def test_evaluate_needs_a_test_split(command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    command("stage1")
    assert main(["evaluate", "--run_id", runs()["run_id"][0]]) == 2
    assert "has no test split" in capfd.readouterr().err
