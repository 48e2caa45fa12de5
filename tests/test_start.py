"""`start` answers before anything is trained, offline; wrong input is one line, without a run."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
import torchvision

from pipeline.cli import main
from pipeline.comparing.pairs.draws import pool_in
from pipeline.data.inspection.report import DataReport
from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.runs import scoring
from pipeline.runs.sources import check_draws, source_of
from pipeline.tracking.keys import endings
from pipeline.weights.here import Candidate, candidates_here, how_to_get
from tests.conftest import write_image_folder
from tests.helpers import fill, opened, typed_in
from tests.test_run_stage import artifact, runs

FEW = {"train_per_class": "4", "val_per_class": "4", "image_size": "32", "epochs": "1"}


def start(data: Path, cache: Path, **options: str) -> int:
    values = {"data": str(data), "cache_dir": str(cache), **FEW, **options}
    return main(["start", *(word for k, v in values.items() for word in (f"--{k}", v))])


def keep(folder: Path, backbone: str, weights: str = "DEFAULT") -> str:
    """Put a network of random weights where torch keeps the published file of that name."""
    members = torchvision.models.get_model_weights(backbone)
    name = members[weights].url.rpartition("/")[2]
    torch.manual_seed(0)
    state = torchvision.models.get_model(backbone).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    return name


# --- which weights are here ----------------------------------------------------------------------


def test_what_torch_keeps_is_found_and_the_same_file_is_tried_once(checkpoints: Path) -> None:
    asked = Candidate("mobilenet_v2", "imagenet")
    starter = Candidate("resnet18", "tiny_imagenet")
    assert candidates_here(asked, []) == ([starter], [asked])
    keep(checkpoints, "mobilenet_v2")
    keep(checkpoints, "mobilenet_v2", "IMAGENET1K_V1")
    older = Candidate("mobilenet_v2", "IMAGENET1K_V1")
    here, missing = candidates_here(asked, [])
    assert (here, missing) == ([asked, starter, older], [])


def test_a_list_of_backbones_is_tried_alone_with_the_weights_that_are_here(
    checkpoints: Path,
) -> None:
    keep(checkpoints, "mobilenet_v2", "IMAGENET1K_V1")
    asked = Candidate("resnet18", "imagenet")
    here, missing = candidates_here(asked, ["mobilenet_v2", "resnet50"])
    assert here == [Candidate("mobilenet_v2", "IMAGENET1K_V1")]
    assert missing == [Candidate("resnet50", "imagenet")]
    line = how_to_get(missing[0])
    assert re.search(r"resnet50-11ad3fa6\.pth", line)
    assert str(checkpoints) in line


def test_a_name_that_one_backbone_of_a_list_lacks_is_a_line_beside_the_others(
    checkpoints: Path,
) -> None:
    keep(checkpoints, "resnet50", "IMAGENET1K_V2")
    asked = Candidate("resnet18", "IMAGENET1K_V2")
    here, missing = candidates_here(asked, ["resnet18", "resnet50"])
    assert here == [Candidate("resnet50", "IMAGENET1K_V2")]
    assert missing == [asked]
    assert "torchvision has no such weights of resnet18" in how_to_get(asked)


@pytest.mark.parametrize("weights", ["imagenet", "IMAGENET1K_V1", "tiny_imagenet", "pretrained"])
def test_a_network_of_ones_own_in_a_list_is_tried_with_the_weights_that_it_brings(
    checkpoints: Path, weights: str
) -> None:
    asked = Candidate("resnet18", weights)
    here, _ = candidates_here(asked, ["tests.networks:ready_made"])
    assert here == [Candidate("tests.networks:ready_made", "pretrained")]


def test_a_backbone_that_nobody_named_and_the_settings_refuse_is_left_out_with_a_line(
    store: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_image_folder(tmp_path / "images")
    blocks = tmp_path / "blocks.yaml"
    blocks.write_text("head: fc\nlate: late\nearly: early\nstem: stem\n")
    own = {"backbone": "tests.networks:Net", "weights": "none", "blocks": str(blocks)}
    assert start(root, tmp_path / "cache", **own) == 0
    assert "note: resnet18 (tiny_imagenet) is left out: blocks=" in capsys.readouterr().out
    assert start(root, tmp_path / "cache", **own, backbones="resnet18") == 2
    assert "late matches nothing" in capsys.readouterr().err


# --- the data ------------------------------------------------------------------------------------


def test_the_report_counts_classes_sizes_modes_and_damaged_files(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", "a", "b", count=4)
    (root / "b" / "9.png").write_bytes(b"no image")
    report = DataReport.of(opened(root))
    assert report.classes.to_dict("list") == {"class": ["a", "b"], "images": [4, 5]}
    assert (report.looked_at, report.shorter, report.modes) == (9, (32, 32, 32), {"RGB": 8})
    assert len(report.unreadable) == 1
    text = "\n".join(report.lines)
    assert "1 of them cannot be read" in text
    assert "a has 4 images, b 5" in text


def test_the_report_looks_at_all_as_far_as_time_allows_and_at_pixels_in_parquet_files(
    tmp_path: Path, write_parquet: Callable[..., Path]
) -> None:
    write_parquet(tmp_path / "data" / "train-0.parquet", [0, 1] * 150, ["x", "y"])
    write_parquet(tmp_path / "data" / "test-0.parquet", [0, 1, 1], ["x", "y"])
    report = DataReport.of(opened(tmp_path / "data"))
    assert report.classes["test"].tolist() == [1, 2]
    assert (report.looked_at, report.images) == (303, 303)
    assert report.modes == {"RGB": 303}
    assert report.lines[0].startswith("of all 303 images, the shorter side has")
    hurried = DataReport.of(opened(tmp_path / "data"), limit_s=0)
    assert hurried.looked_at == 1
    assert hurried.lines[0].startswith("of a sample of 1 of 303 images, the shorter side has")


def test_a_damaged_file_of_the_test_split_is_found_and_counted_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        fill(tmp_path / "images" / split, "a", "b", count=4)
    (tmp_path / "images" / "test" / "a" / "1.png").write_bytes(b"no image")
    report = DataReport.of(opened(tmp_path / "images"))
    assert (len(report.unreadable), report.unreadable_test) == (1, 1)
    assert "1 of them cannot be read: " in report.lines[1]
    assert "test/a/1.png" in report.lines[1]


def dealt(line: str) -> dict[str, str]:
    """The options of a command that `start` proposes, once it is parsed and its images dealt."""
    entry, options = typed_in(line)
    plan = ENTRY_POINTS[entry].plan(ENTRY_POINTS[entry].read(options))
    settings = getattr(plan, "settings", plan)
    if entry == "decide":
        settings = plan.treatment.settings
    source = source_of(settings)
    check_draws(source, settings, [settings.draw])
    if entry == "decide":
        assert len(scoring.test_split(source, settings).labels)
        pool_in(source, settings, plan.decide.design.looks)
    return options


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_is_answered_and_the_commands_can_be_pasted(
    store: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(checkpoints, "mobilenet_v3_small")
    root = write_image_folder(tmp_path / "images")
    shutil.copy(root / "apple" / "00.png", root / "berry" / "copy.png")
    assert start(root, tmp_path / "cache", seed="3") == 0
    out = capsys.readouterr().out
    for words in (
        "apple      12",
        "the shorter side has 32 to 32 px",
        "12 images to train on, 12 to validate, 3 classes",
        "pass -P test_per_class=4 before you train (fewer than 20: no more are left)",
        "logistic regression",
        "resnet18 tiny_imagenet",
        "mobilenet_v3_small (IMAGENET1K_V1) is left out",  # its digest is not the published one
        "main takes about",
        "s a pair: 5 pairs",
        "resnet18 (imagenet): not here",
    ):
        assert words in " ".join(out.split()) or words in out
    commands = [line for line in out.splitlines() if line.startswith("mlflow run")]
    assert [line.split()[4] for line in commands] == ["main", "decide", "tune"]
    for options in map(dealt, commands):  # every one is understood, with what was typed
        assert options["seed"] == "3"
        assert options["data"] == str(root)
        assert int(options["test_per_class"]) > 0
    (run,) = runs("start").to_dict("records")
    page = artifact(run["run_id"], "report.md").read_text()
    assert "What to type next" in page
    assert artifact(run["run_id"], "report.html").exists()
    metrics = mlflow.get_run(run["run_id"]).data.metrics
    assert {name for name in metrics if name.startswith("stage0/logreg_val_acc/")} == {
        "stage0/logreg_val_acc/resnet18 tiny_imagenet"
    }
    assert not len(runs("stage"))


@pytest.mark.parametrize(
    ("sizes", "apart", "names"),
    [
        ((4, 4), "4", ["main", "decide", "tune"]),
        ((10, 1), "1", ["main", "decide", "tune"]),
        ((8, 4), None, ["main", "tune"]),
    ],
)
def test_commands_for_small_classes_can_be_pasted(
    store: Path,
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sizes: tuple[int, int],
    apart: str | None,
    names: list[str],
) -> None:
    root = write_image_folder(tmp_path / "images")
    (root / "apple" / "00.png").write_bytes((root / "apple" / "00.png").read_bytes()[:300])
    own = {"train_per_class": str(sizes[0]), "val_per_class": str(sizes[1]), "reuse": "off"}
    assert start(root, tmp_path / "cache", weights="tiny_imagenet", **own) == 0
    out = capsys.readouterr().out
    assert "1 of them cannot be read" in out
    assert "start goes on without the images that cannot be read" in out
    assert "\nwhat to type next:\n" in out  # with the weights that were typed
    commands = [line for line in out.splitlines() if line.startswith("mlflow run")]
    assert [line.split()[4] for line in commands] == names
    for options in map(dealt, commands):
        assert options.get("test_per_class") == apart
        assert options["skip_unreadable"] == "true"
    if apart is None:
        assert "no image is left for one" in out
        assert "decide cannot be asked so: " in out


def test_weights_of_another_network_are_left_out_with_a_line(
    store: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = keep(checkpoints, "mobilenet_v3_small")
    root = write_image_folder(tmp_path / "images")
    wrong = str(checkpoints / name)
    assert start(root, tmp_path / "cache", backbone="resnet18", weights=wrong) == 0
    out = capsys.readouterr().out
    assert "is left out" in out
    assert "resnet18 tiny_imagenet" in out
    instead = f"resnet18 (tiny_imagenet), the best here, in place of resnet18 ({name})"
    assert f"what to type next, with {instead}:" in out


def test_a_file_of_weights_may_be_called_whatever_files_are_called(
    store: Path, checkpoints: Path, tmp_path: Path
) -> None:
    root = write_image_folder(tmp_path / "images")
    own = tmp_path / "epoch=9+lr@1,5 (best)-step=420.pth"
    (checkpoints / keep(checkpoints, "mobilenet_v3_small")).rename(own)
    assert start(root, tmp_path / "cache", backbone="mobilenet_v3_small", weights=str(own)) == 0
    (run,) = runs("start").to_dict("records")
    metrics = mlflow.get_run(run["run_id"]).data.metrics
    expected = "mobilenet_v3_small epoch-9-lr-1-5 best-step-420.pth"
    assert f"stage0/logreg_val_acc/{expected}" in metrics


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_typed_is_left_only_for_what_leads_by_more_than_noise(
    store: Path,
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kept: bool,
) -> None:
    """Random weights tell these images apart; weights that make one output of all do not."""
    own = checkpoints / keep(checkpoints, "mobilenet_v3_small")
    if not kept:
        state = torch.load(own)
        torch.save({n: t * (not n.startswith("features.12.1.w")) for n, t in state.items()}, own)
    root = write_image_folder(tmp_path / "images")
    words = {"backbone": "mobilenet_v3_small", "weights": str(own)}
    assert start(root, tmp_path / "cache", **words) == 0
    out = capsys.readouterr().out
    (run,) = runs("start").to_dict("records")
    best = {"mobilenet_v3_small": 0.0, "resnet18": 0.0}
    for name, value in mlflow.get_run(run["run_id"]).data.metrics.items():
        if name.startswith(("stage0/logreg_val_acc/", "stage0/knn_val_acc/")):
            backbone = name.rpartition("/")[2].partition(" ")[0]
            best[backbone] = max(best[backbone], value)
    typed, starter = best.values()
    images = 3 * int(FEW["val_per_class"])
    error = math.sqrt(sum(p * (1 - p) for p in best.values()) / images)
    assert (starter - typed <= 2 * error) == kept
    line = next(line for line in out.splitlines() if line.startswith("mlflow run . -e main"))
    assert typed_in(line)[1]["backbone"] == ("mobilenet_v3_small" if kept else "resnet18")


def test_names_that_differ_in_refused_letters_alone_stay_apart() -> None:
    names = ["a (b=1)", "a b+1", "a b-1", "x" * 255]
    assert endings(names) == ["a b-1", "a b-1 2", "a b-1 3", "x" * 180]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "nowhere"}, "neither digits"),
        ({"backbones": "resnet99"}, "did you mean"),
        ({"backbones": "resnet50"}, "the weights of no backbone are here: resnet50"),
        ({"train_per_class": "400"}, "too few images"),
        ({"lrr": "1"}, "did you mean lr"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_run(
    store: Path,
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str],
    message: str,
) -> None:
    root = write_image_folder(tmp_path / "images")
    data = Path(options.pop("data", str(root)))
    assert start(data, tmp_path / "cache", **options) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not len(runs("start"))
