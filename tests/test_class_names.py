"""Class names are text from the folder to the last page: nothing reads them as anything else."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.cli import main
from pipeline.reporting.figures import confusion_matrix
from pipeline.runs.stage_log import predictions_csv
from pipeline.signals.evidence import read_predictions, scores_of
from pipeline.tracking import Tracking
from pipeline.tuning.choose import paired
from tests.conftest import Command
from tests.helpers import fill, make_images
from tests.test_run_stage import artifact, runs
from tests.test_unreadable import DAMAGED, PICTURE

MISSING_TO_PANDAS = ("null", "NA", "nan", "None", "N/A", "NaN", "NULL", "<NA>", "n/a", "#N/A")
ODD = (
    *MISSING_TO_PANDAS,
    *("true", "1e5", "007", " padded ", "a,b;c", 'say "hi"', "O'Brien", "two\nlines", "tab\tname"),
    *("carriage\rreturn", "both\r\nof them", "nul\x00", "\ufeffmark", "\u2028", '"', 'a""b'),
    *("$10_$20", "$x$y$", "$100_{bill$", "a^b_{c", "\\frac", "100%", "#1", "-dash", "=1+1"),
    *("<b>bold</b>", "[a](b)", "*star*", "_under_", "`tick`", "a|b", "中文", "naïve café", "🙂"),
)


# --- tables --------------------------------------------------------------------------------------


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    images = make_images(3 * len(ODD))
    labels = torch.arange(len(images)) % len(ODD)
    images = replace(images, labels=labels)
    logits = torch.nn.functional.one_hot(labels, len(ODD)).float()
    path = tmp_path / "predictions.csv"
    path.write_text(predictions_csv(logits, images, ODD), encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [ODD[i] for i in labels]
    table = read_predictions(path)
    assert table["label"].tolist() == table["predicted"].tolist() == [ODD[i] for i in labels]
    assert np.isfinite(table["nll"].astype(float)).all()


def test_predictions_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They have quotes only where Pandas thinks them necessary."""
    path = tmp_path / "predictions.csv"
    path.write_bytes(b'image_sha256,label,nll\nab,"\r",0.5\ncd,null,1.0\n')
    assert read_predictions(path)["label"].tolist() == ["\r", "null"]


def test_a_loss_that_is_no_number_is_read_as_such(tmp_path: Path) -> None:
    images = make_images(2)
    logits = torch.tensor([[float("nan")] * 3, [1.0, 0.0, 0.0]])
    path = tmp_path / "predictions.csv"
    path.write_text(predictions_csv(logits, images, ("null", "NA", "nan")))
    assert np.isnan(read_predictions(path)["nll"].astype(float)).tolist() == [True, False]


def test_right_answers_of_a_parent_count_whatever_the_classes_are_called(
    command: Command, tmp_path: Path
) -> None:
    """They used to count as wrong, so that any child seemed to gain."""
    root = fill(tmp_path / "set", "null", "NA", "None", count=10)
    options = {"data": str(root), "stage1.epochs": "3", "weights": "tiny_imagenet"}
    assert command("stage2", backbone="resnet18", **options) == 0
    first, second = (row for _, row in runs().iterrows())
    tracking = Tracking.connect()
    scored = [scores_of(tracking, tracking.get(row["run_id"])) for row in (first, second)]
    for row, found in zip((first, second), scored, strict=True):
        assert found is not None
        assert found.correct.mean() == pytest.approx(row["metrics.selected/val_acc"], abs=1e-6)
    assert scored[0] is not None
    assert scored[0].correct.any()
    gain = second["metrics.selected/val_acc"] - first["metrics.selected/val_acc"]
    assert second["metrics.signal/acc_gain"] == pytest.approx(gain, abs=2e-6)
    assert scored[1] is not None
    assert paired(scored[1], scored[0])["correct"].mean() == pytest.approx(gain, abs=2e-6)


# --- pictures ------------------------------------------------------------------------------------


def test_dollars_are_drawn_and_not_typeset() -> None:
    names = ["$10_$20", "$x$y$", "$5-$10", "\\frac", "a^b_{c"]
    figure = confusion_matrix("title", np.eye(len(names), dtype=np.int64), names)
    figure.savefig(io.BytesIO(), format="png")
    for ticks in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == names
        assert not any(tick.get_parse_math() for tick in ticks)


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")  # a picture of boxes
def test_a_stage_trains_on_classes_of_any_name_and_its_model_answers_with_them(
    command: Command, tmp_path: Path
) -> None:
    import mlflow

    names = ("$10_$20", "null", "<b>bold", "two\nlines", "tab\tname", "naïve 中文", "w" * 250)
    root = fill(tmp_path / "set", *names, count=8)
    assert command("stage1", data=str(root), log_model="on", log_pictures="on") == 0
    (run,) = (row for _, row in runs().iterrows())
    assert artifact(run["run_id"], "figures/confusion_matrix.png").stat().st_size > 3000
    model = mlflow.pyfunc.load_model(run["tags.model_uri"])
    image = (root / names[0] / "0.png").read_bytes()
    answer = model.predict(pd.DataFrame({"image": [image]}))
    assert set(answer.columns) == {"label", *names, "error"}
    assert answer["label"][0] in names

    # one image with damaged metadata does not fail the request, and is read as its pixels
    damaged = [make() for kind, make in DAMAGED.items() if kind.startswith("png")]
    clean = io.BytesIO()
    PICTURE.save(clean, "PNG")
    answers = model.predict(pd.DataFrame({"image": [clean.getvalue(), *damaged]}))
    assert len(answers) == 1 + len(damaged) == 3
    assert answers["error"].isna().all()
    np.testing.assert_allclose(answers[list(names)][1:], answers[list(names)].iloc[[0, 0]], 1e-5)


def test_training_is_not_lost_over_a_picture(
    command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from matplotlib.figure import Figure

    def fails(*_: object, **__: object) -> None:
        raise ValueError("a font that is broken")

    monkeypatch.setattr(Figure, "savefig", fails)
    assert command("stage2", log_pictures="on") == 0
    out = capfd.readouterr().out
    assert "note: a picture of the result could not be drawn (a font that is broken)" in out
    assert set(runs()["status"]) == {"FINISHED"}
    for run_id in runs()["run_id"]:
        assert artifact(run_id, "evaluation/val_predictions.csv").exists()
        assert artifact(run_id, "evidence.json").exists()
        assert not artifact(run_id, "figures/confusion_matrix.png").exists()


# --- pages ---------------------------------------------------------------------------------------


def test_a_folder_whose_name_is_markdown_stands_as_text_in_notes(
    command: Command, tmp_path: Path
) -> None:
    root = fill(tmp_path / "<img src=x> *set*", "a", "b", count=10)
    assert command("main", data=str(root), schedule="head_only") == 0
    (stage,) = runs()["tags.mlflow.note.content"]
    (chain,) = runs("chain")["tags.mlflow.note.content"]
    for note in (stage, chain):
        assert r"\<img src=x\> \*set\*" in note
    assert runs()["tags.z.data"].tolist() == [root.name]
    (settings,) = runs()["tags.z.settings"]
    assert json.loads(settings)["data"] == str(root)


# --- terminals and other encodings ---------------------------------------------------------------


def test_a_terminal_that_lacks_a_letter_shows_another(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "set", "café", "中文", count=10)
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="latin-1", write_through=True)
    monkeypatch.setattr("sys.stdout", terminal)
    assert command("stage1", data=str(root)) == 0
    shown = written.getvalue().decode("latin-1")
    assert "of 2 classes, draw 0; dealt from café, ?? (10 images each)" in shown


def test_what_steers_a_terminal_is_spelled_out(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "set", "\x1b[31mred", "b", count=10)
    assert command("stage1", data=str(root), train_per_class="100") == 2
    error = capfd.readouterr().err
    assert "\x1b" not in error
    assert r"too few images in class \x1b[31mred (10)" in error


def test_a_class_that_is_not_utf_8_trains_and_is_predicted(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "set", "bar", "cafe", count=10)
    path = os.fsencode(root)
    os.rename(path + b"/cafe", path + b"/caf\xe9")  # noqa: PTH104 - a path of bytes
    assert command("stage1", data=str(root), log_model="on") == 0
    assert r"the class is written as caf\xe9" in capfd.readouterr().out
    (run_id,) = runs()["run_id"]
    assert main(["predict", "--images", str(root), "--run_id", run_id]) == 0
    table = pd.read_csv("predictions.csv")
    assert set(table["true_label"]) == {"bar", r"caf\xe9"}


def test_a_path_that_is_not_utf_8_is_refused(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["stage1", "--data", os.fsdecode(b"/nowhere/caf\xe9")]) == 2
    assert r"data=/nowhere/caf\xe9 (command line) is not UTF-8" in capfd.readouterr().err
