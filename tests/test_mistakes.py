"""What a run gets wrong can be looked at: tables, pictures, classes; all small, none of trials."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from pipeline.cli import main
from pipeline.data.image_set import ImageSet
from pipeline.errors import TrackingError
from pipeline.runs.findings import mistakes
from pipeline.runs.findings.mistakes import (
    BATCH,
    BY_CLASS,
    CHANGES,
    ERRORS,
    EVERY,
    RELIABILITY,
    TABLE,
    THUMBNAILS,
    Answers,
    batch_picture,
    by_class,
    by_class_text,
    changes_between,
    errors_picture,
    log_mistakes,
    table_of,
)
from pipeline.tracking import Tracking
from tests.conftest import Command, Work, inside
from tests.helpers import load_settings, make_images
from tests.reports import reports
from tests.test_run_stage import artifact, runs

NAMES = ("apple", "a $10_$20 | name", "mean")
SMALL_BYTES = 300_000


def answers_of(images: ImageSet, seed: int = 0) -> Answers:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(len(images), 3)).astype(np.float32))
    return Answers(images=images, logits=logits, class_names=NAMES, part="test")


def test_errors_come_first_and_the_surest_of_them_first() -> None:
    answers = answers_of(make_images(30))
    frame = table_of(answers)
    wrong = int((~answers.correct).sum())
    assert frame["correct"].tolist() == [False] * wrong + [True] * (30 - wrong)
    assert frame["probability"][:wrong].is_monotonic_decreasing
    assert frame["probability"][wrong:].is_monotonic_increasing
    assert (frame["true"] != frame["predicted"])[:wrong].all()
    row = int(answers.worst_first[0])
    shares = answers.logits[row].double().softmax(0)
    assert frame["probability"][0] == pytest.approx(float(shares.max()), abs=1e-4)
    label = int(answers.images.labels[row])
    assert frame["probability of true"][0] == pytest.approx(float(shares[label]), abs=1e-4)
    assert frame["image_sha256"][0] == answers.images.digests[row].tobytes().hex()


def test_the_table_of_classes_is_scikit_learns_and_a_class_may_be_called_mean() -> None:
    answers = answers_of(make_images(40))
    frame = by_class(answers)
    expected = f1_score(answers.labels, answers.top[1], average=None, labels=[0, 1, 2])
    assert frame["F1"].tolist() == pytest.approx(expected.tolist())
    text = by_class_text(answers)
    assert text.count("mean") == 2
    assert text.splitlines()[-1].split() == [
        "mean",
        *(f"{frame[column].mean():.1%}" for column in ("precision", "recall", "F1")),
        "40",
    ]
    worst = by_class_text(answers, most=1)
    assert "the 1 of 3 classes with the lowest F1" in worst
    assert str(frame["class"][frame["F1"].argmin()]) in worst


def test_a_class_without_images_is_undefined_and_not_counted() -> None:
    images = make_images(6)
    logits = torch.nn.functional.one_hot(images.labels, 4).float()
    names = (*NAMES, "absent")
    text = by_class_text(Answers(images=images, logits=logits, class_names=names, part="test"))
    assert text.splitlines()[-2].split() == ["absent", "-", "-", "-", "0"]
    assert text.splitlines()[-1].split() == ["mean", "100.0%", "100.0%", "100.0%", "6"]


def test_nothing_wrong_means_no_picture_of_errors() -> None:
    images = make_images(6)
    perfect = torch.nn.functional.one_hot(images.labels, 3).float()
    answers = Answers(images=images, logits=perfect, class_names=NAMES, part="test")
    assert errors_picture(answers) is None
    right = [NAMES[label] for label in images.labels]
    assert changes_between(answers, right, ("stage 2", "stage 1")) is None


def texts(figure: object) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]  # type: ignore[attr-defined]


def test_what_was_wrong_before_is_mended_and_what_was_right_is_broken() -> None:
    images = make_images(3)  # classes 0, 1, 2
    logits = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0, 0, 9.0]])
    answers = Answers(images=images, logits=logits, class_names=NAMES, part="test")
    figure = changes_between(answers, [NAMES[2], NAMES[1], NAMES[2]], ("stage 3", "stage 2"))
    assert texts(figure) == [
        "mended: 1 image",
        f"{NAMES[0]}\nwas {NAMES[2]}",
        "broken: 1 image",
        f"{NAMES[1]}\nnow {NAMES[0]}",
    ]


@pytest.mark.parametrize("augment", ["none", "strong", "light+mixup"])
def test_the_batch_is_what_the_network_sees(augment: str) -> None:
    images = make_images(6)
    settings = load_settings({"augment": augment, "mean": "0.5,0.5,0.5", "std": "0.2,0.2,0.2"})
    figure = batch_picture(images, settings, 1, NAMES)
    title = figure.axes[0].get_title()
    assert augment in title
    assert ("mixup is not drawn" in title) == ("mixup" in augment)
    captions = texts(figure)
    assert sorted(captions) == sorted(NAMES[label] for label in images.labels)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    if augment == "none":  # denormalised: the stored pixels come back
        first = images.pixels[[NAMES[n] for n in images.labels].index(captions[0])]
        tones = {
            tuple(p)
            for n, i in enumerate(images.pixels)
            for p in i.permute(1, 2, 0).reshape(-1, 3).tolist()
            if NAMES[images.labels[n]] == captions[0]
        }
        assert first.shape == (3, 32, 32)
        assert tuple(shown[1, 8].tolist()) in tones


def test_a_run_has_tables_and_pictures_that_are_small(command: Command, store: Path) -> None:
    assert command("stage2", val_per_class="6", test_per_class="2", log_pictures="on") == 0
    run_id = runs().iloc[-1]["run_id"]
    rows = json.loads(artifact(run_id, TABLE).read_text())
    assert rows["columns"][:6] == [
        "image",
        "true",
        "predicted",
        "probability",
        "correct",
        "file",
    ]
    assert len(rows["data"]) == 18
    for row in rows["data"]:  # MLflow's page complains of a row without a picture
        assert row[0]["type"] == "image"
        with Image.open(artifact(run_id, row[0]["filepath"])) as picture:
            assert picture.size == (64, 64)
        assert row[rows["columns"].index("file")].endswith(".png")
        assert str(store.parent) not in str(row)
    tables = mlflow.get_run(run_id).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(tables) == [{"path": TABLE, "type": "table"}]
    assert not artifact(run_id, EVERY).exists()  # it would say the same
    for path in (ERRORS, RELIABILITY, BATCH, TABLE, BY_CLASS):
        assert 0 < artifact(run_id, path).stat().st_size < SMALL_BYTES
    assert mlflow.get_run(run_id).data.metrics["selected/val_ece"] >= 0


def test_a_large_set_has_every_row_without_thumbnails_and_a_thumbnail_for_the_worst(
    store: Path,
) -> None:
    tracking = Tracking.connect()
    images = make_images(3 * THUMBNAILS)
    with tracking.run("large", {}, target=False) as log:
        log_mistakes(log, answers_of(images), print)
    worst = json.loads(artifact(log.run_id, TABLE).read_text())
    every = json.loads(artifact(log.run_id, EVERY).read_text())
    assert (len(worst["data"]), len(every["data"])) == (THUMBNAILS, len(images))
    assert "image" not in every["columns"]
    assert [row[1:] for row in worst["data"]] == every["data"][:THUMBNAILS]


def test_what_cannot_be_drawn_is_a_note_and_a_store_that_refuses_is_a_fault(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking, said = Tracking.connect(), list[str]()
    broken = ImageSet(
        pixels=torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
        labels=torch.zeros(0, dtype=torch.int64),
        digests=np.zeros((0, 32), dtype=np.uint8),
    )
    empty = Answers(images=broken, logits=torch.zeros(0, 3), class_names=NAMES, part="test")
    with tracking.run("empty", {}, target=False) as log:
        log_mistakes(log, empty, said.append)
    assert said
    assert all("could not be drawn" in line for line in said)
    assert mlflow.get_run(log.run_id).info.status == "FINISHED"
    gone = Tracking.connect().writing("0" * 32)
    with pytest.raises(TrackingError, match=r"store predictions\.json"):
        log_mistakes(gone, answers_of(make_images(3)), said.append)
    assert mistakes.MOST_ROWS >= THUMBNAILS


@pytest.mark.slow
def test_evaluate_and_decide_show_test_images_and_the_floor(
    shared_work: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"test_per_class": "4", "train_per_class": "2", "val_per_class": "2"}
    out = shared_work.run("decide", looks="2", register_as="off", **few)
    assert "stage 0 (frozen features, nothing trained)" in out
    with inside(shared_work.folder):
        decision = mlflow.get_run(runs("decision").iloc[0]["run_id"])
        page, text = reports(decision)
        pictures = [value for _, value in page.references if value.startswith("data:image/jpeg")]
        changed = "mends and breaks" in text and CHANGES in text
        assert len(pictures) == changed
        assert changed == artifact(decision.info.run_id, CHANGES).exists()
        assert "The floor: stage 0" in text
        assert "stage0/logreg_test_acc" in decision.data.metrics
        stage = runs().iloc[-1]["run_id"]
        trials = [artifact(run, TABLE).exists() for run in runs()["run_id"]]
        assert not any(trials)  # pairs and trials make none
        cache = str(shared_work.folder / "cache")
        capsys.readouterr()
        assert main(["evaluate", "--run_id", stage, "--cache_dir", cache]) == 0
        out = capsys.readouterr().out
        assert "test images by class" in out
        assert "stage 0 (frozen features" in out
        evaluation = runs("evaluate").iloc[0]["run_id"]
        assert artifact(evaluation, TABLE).exists()
        assert artifact(evaluation, ERRORS).exists()
