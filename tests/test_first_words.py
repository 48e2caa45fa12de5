"""What is wrong with the data is told before an image is decoded and before a run is started."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from tests.conftest import Command, class_image
from tests.test_run_stage import artifact, runs

NO_IMAGE = b"would be named if anything were decoded"


def undecodable(root: Path, splits: str = "train test") -> Path:
    for split in splits.split():
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(8):
                (root / split / name / f"{number}.png").write_bytes(NO_IMAGE)
    return root


def all_runs() -> list[str]:
    found = mlflow.search_runs(["0"], run_view_type=3)
    assert isinstance(found, pd.DataFrame)
    return found["run_id"].tolist() if len(found) else []


BOTH, TRAINING = "train test", ("main", "stage1", "tune", "decide", "compare")
DRAW = r"error: .*draw \d asked for, the pool holds 1 draw"
FEW = "too few images in class a .8., b .8. for"


@pytest.mark.parametrize(
    ("entry_point", "options", "splits", "message"),
    [
        ("main", {"draw": "1"}, BOTH, DRAW),
        ("stage2", {"draw": "1"}, BOTH, DRAW),
        ("tune", {"draws": "2", "stage": "1"}, BOTH, DRAW),
        ("tune", {"draw": "1", "stage": "all"}, BOTH, DRAW),
        ("decide", {"draw": "1"}, BOTH, DRAW),
        ("decide", {"tune": "on", "draws": "2"}, BOTH, DRAW),
        ("compare", {"draw": "1"}, BOTH, DRAW),
        ("compare", {"tuned": "on", "tune_draws": "2"}, BOTH, DRAW),
        ("pretrain", {"train_per_class": "8", "val_per_class": "4"}, BOTH, f"{FEW} train"),
        *((name, {"train_per_class": "9"}, BOTH, FEW) for name in TRAINING),
        ("decide", {}, "train", "has no test split"),
        ("compare", {}, "train", "has no test split"),
        *(
            (name, {}, "train_images test_images", "are named like splits, not like classes: did")
            for name in (*TRAINING, "stage3", "pretrain")
        ),
    ],
)
def test_what_the_images_cannot_give_is_refused_at_once(
    entry_point: str,
    options: dict[str, str],
    splits: str,
    message: str,
    command: Command,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = {"data": str(undecodable(tmp_path / "set", splits)), **options}
    if entry_point == "pretrain":
        own |= {"out": str(tmp_path / "w.safetensors"), "norm_stats": "source"}
    assert command(entry_point, **own) == 2
    error = capfd.readouterr().err
    assert re.search(message, error)
    assert error.count("error: ") == 1
    assert all_runs() == []


def test_the_line_that_counts_images_names_the_classes(
    command: Command, image_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "apple" / "phone.HEIC").write_bytes(b"x")
    assert command("stage1") == 0
    out = capfd.readouterr().out
    assert (
        f"{image_folder}: 12 training and 12 validation images of 3 classes, draw 0; dealt from "
        "apple, berry, cherry (12 images each)\nnote: files passed over: 1 .heic\n"
    ) in out


# --- images that cannot be read ------------------------------------------------------------------


def with_test_split(root: Path, bad: int = 1) -> Path:
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate("abc"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                path = root / split / name / f"{number}.png"
                class_image(label, number + 100 * (split == "test")).save(path)
                if label == 0 and number < bad:
                    path.write_bytes(b"")
    return root


def test_unreadable_images_are_left_out_where_that_is_asked_for_and_listed(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = with_test_split(tmp_path / "set")
    assert command("stage1", data=str(root)) == 2
    assert f"images: {root}/train/a/0.png (an empty file)" in capfd.readouterr().err
    assert all_runs() == []

    assert command("stage1", data=str(root), skip_unreadable="true") == 0
    out = capfd.readouterr().out
    assert f"note: images left out, as they cannot be read: 1 ({root}/train/a/0.png (" in out
    [parent] = runs()["run_id"]
    assert unreadable(parent) == [f"{root}/train/a/0.png (an empty file)"]
    assert runs()["params.skip_unreadable"][0] == "True"

    assert command("stage2", data=str(root), parent_run_id=parent, epochs="1") == 0
    assert "skip_unreadable=True" in capfd.readouterr().out
    assert evaluated(parent) == 0
    told = "note: test split: images left out, as they cannot be read: 1 ("
    assert told in capfd.readouterr().out
    [evaluation] = runs("evaluate")["run_id"]
    assert unreadable(evaluation) == [f"{root}/test/a/0.png (an empty file)"]


def unreadable(run_id: str) -> list[str]:
    return artifact(run_id, "unreadable_images.txt").read_text().splitlines()


def evaluated(run_id: str, *words: str) -> int:
    return main(["evaluate", "--run_id", run_id, *words])


def test_a_decision_counts_and_lists_the_images_that_it_goes_on_without(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = with_test_split(tmp_path / "set", bad=4)
    options = {"question": "stage2", "looks": "2,3", "train_per_class": "2", "val_per_class": "2"}
    options |= {"register_as": "off"}
    for path in (root / "train" / "a").iterdir():
        path.write_bytes(b"" if path.name == "1.png" else (root / "train/a/7.png").read_bytes())
    assert command("decide", data=str(root), skip_unreadable="true", **options) == 0
    [run_id] = runs("decision")["run_id"]
    assert len(unreadable(run_id)) == 4
    gaps = "left out, as they cannot be read: 4 test images, 1 of draws"
    for text in (capfd.readouterr().out, artifact(run_id, "report.md").read_text()):
        assert gaps in text
        assert "no test image is of class a" in text


def test_images_of_all_draws_of_the_first_look_are_checked_before_a_pair_is_run(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = with_test_split(tmp_path / "set", bad=0)
    for number in range(8):
        (root / "train" / "b" / f"{number}.png").write_bytes(b"")
    options = {"looks": "2", "train_per_class": "2", "val_per_class": "2"}
    assert command("decide", data=str(root), **options) == 2
    assert "cannot read 8 of 24 images: " in capfd.readouterr().err
    assert all_runs() == []


def test_evaluate_goes_on_without_test_images_and_names_the_classes_that_are_lost(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = with_test_split(tmp_path / "set", bad=0)
    assert command("stage1", data=str(root)) == 0
    for number in range(4):
        (root / "test" / "a" / f"{number}.png").write_bytes(b"")
    (run_id,) = runs()["run_id"]
    assert evaluated(run_id) == 2
    assert "or go on without: -P skip_unreadable=true" in capfd.readouterr().err
    assert evaluated(run_id, "--skip_unreadable", "true") == 0
    out = capfd.readouterr().out
    assert "on 8 images" in out
    assert "note: no test image is of class a: " in out


# --- columns are part of what a run is made of ---------------------------------------------------


def test_a_child_reads_the_columns_that_its_parent_read(
    command: Command,
    tmp_path: Path,
    write_parquet: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = write_parquet(tmp_path / "set" / "train.parquet", [0, 1, 2] * 8, list("abc"))
    table = pq.read_table(path)
    other = [("x", "y")[n % 2] for n in range(24)]
    pq.write_table(table.append_column("kind_label", pa.array(other)), path)
    data = str(path.parent)
    assert command("stage1", data=data, label_column="kind_label") == 0
    assert "of 2 classes, draw 0; dealt from x, y (12 images each)" in capfd.readouterr().out
    (parent,) = runs()["run_id"]
    assert command("stage2", data=data, parent_run_id=parent, epochs="1") == 0
    out = capfd.readouterr().out
    assert "label_column=kind_label" in out
    assert "of 2 classes" in out
    assert command("stage2", data=data, parent_run_id=parent, label_column="label") == 2
    err = capfd.readouterr().err
    assert f"run {parent} was trained on (it had label_column=kind_label): " in err
    assert command("stage2", data=data, label_column="label") == 0  # another lineage
    assert "of 3 classes" in capfd.readouterr().out


def test_a_run_of_before_there_were_columns_is_continued_and_found(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1") == 0
    (parent,) = (row for _, row in runs().iterrows())
    settings = json.loads(parent["tags.z.settings"])
    for key in ("label_column", "image_column", "skip_unreadable"):
        del settings[key]
    mlflow.MlflowClient().set_tag(parent["run_id"], "z.settings", json.dumps(settings))
    assert command("stage2", parent_run_id=parent["run_id"]) == 0
    assert command("stage2") == 0
    out = capfd.readouterr().out
    assert f"stage 1: found run {parent['run_id']} with the same content" in out
