"""Predictions of pictures in a folder: what is read, which model is meant, what the CSV holds."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import ClassVar

import mlflow
import pandas as pd
import pytest
from PIL import Image
from torch import Tensor

import pipeline
from pipeline.entries.command_line.table import perform
from pipeline.entries.predict import predicted
from pipeline.errors import DataError, LineageError, SettingsError, StorageError
from pipeline.serving.classifier import Classifier
from pipeline.tracking import ModelVersion, Tracking
from tests.conftest import class_image, enter_store, inside, tiny, write_image_folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    """A store with a run that has a model, and no champion."""
    root = tmp_path_factory.mktemp("predict")
    images = write_image_folder(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        enter_store(root / "work", empty_database, patch)
    with inside(root / "work"):
        options = {"schedule": "head_only", "log_model": "on"}
        perform("stage1", tiny(images, root / "work", options), lambda _: None)
        yield root


@pytest.fixture
def run_id(desk: Path) -> str:
    (run,) = mlflow.search_runs(["0"], "tags.kind = 'stage'", output_format="list")
    return str(run.info.run_id)


def predict(images: Path | str, said: list[str] | None = None, **options: str) -> pd.DataFrame:
    words = {"images": str(images), **options}
    table = perform("predict", words, (said if said is not None else []).append)
    assert isinstance(table, pd.DataFrame)
    return table


def test_a_folder_is_answered_as_python_answers(desk: Path, run_id: str, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "mine.csv"
    table = predict(desk / "images", said, run_id=run_id, out=str(out))
    files = sorted((desk / "images").rglob("*.png"))
    own = pipeline.load(run_id).predict(files)
    assert [Path(file) for file in table["file"]] == files
    assert list(table["label"]) == list(own["label"])
    names = ["apple", "berry", "cherry"]
    for at, place in enumerate(("", "second_", "third_")):
        expected = own[names].apply(lambda row, at=at: row.nlargest(3).iloc[at], axis=1)
        found = table[f"{place}probability"].to_numpy()
        assert found == pytest.approx(expected.to_numpy(), rel=1e-4, abs=1e-6)
    assert [set(row) for row in table[["label", "second_label", "third_label"]].to_numpy()] == [
        set(names)
    ] * len(files)
    assert list(table["true_label"]) == [file.parent.name for file in files]
    right = int((table["label"] == table["true_label"]).sum())
    assert any(line.startswith(f"{right} of 36 pictures are what their folder") for line in said)
    read = pd.read_csv(out, keep_default_na=False)
    pd.testing.assert_frame_equal(read, table)


def test_unreadable_files_are_listed_and_stand_in_the_csv(
    desk: Path, run_id: str, tmp_path: Path
) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    class_image(0, 90).save(shots / "good.png")
    (shots / "empty.png").touch()
    (shots / "text.jpg").write_text("hello")
    (shots / "cut.png").write_bytes((shots / "good.png").read_bytes()[:200])
    (shots / "notes.xyz").write_text("nothing that is read")
    said: list[str] = []
    table = predict(shots, said, run_id=run_id).set_index("file")
    assert len(table) == 4
    errors = {Path(file).name: error for file, error in table["error"].items()}
    assert errors["good.png"] == ""
    assert "empty file" in errors["empty.png"]
    assert "not an image" in errors["text.jpg"]
    assert errors["cut.png"]
    (note,) = [line for line in said if line.startswith("note: ")]
    assert note.startswith("note: 3 cannot be read: ")
    assert "true_label" not in table
    assert table.loc[str(shots / "empty.png"), "label"] == ""
    assert said[0].startswith("4 pictures (files passed over: ")


def test_a_pattern_and_a_single_file_of_any_ending_are_taken(
    desk: Path, run_id: str, tmp_path: Path
) -> None:
    odd = tmp_path / "picture.odd"
    class_image(1, 91).save(odd, "PNG")
    assert len(predict(odd, run_id=run_id)) == 1
    assert len(predict(desk / "images" / "*" / "0[12].png", run_id=run_id)) == 6
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    class_image(1, 92, 48).crop((0, 0, 48, 20)).save(turned, exif=exif, quality=100)
    upright = tmp_path / "upright.png"
    with Image.open(turned) as stored:
        stored.transpose(Image.Transpose.ROTATE_270).save(upright)
    one, two = (predict(path, run_id=run_id) for path in (turned, upright))
    assert one["probability"][0] == pytest.approx(two["probability"][0])


class Watched(Classifier):
    """Counts the pictures of a size that are in memory when the network is asked."""

    held: ClassVar[list[int]] = []

    def probabilities(self, pixels: Tensor) -> Tensor:
        sizes = [one.size for one in gc.get_objects() if Image.Image in type(one).__mro__]
        self.held.append(sizes.count((301, 203)))
        return super().probabilities(pixels)


def test_pictures_are_shrunk_one_after_the_other(desk: Path, run_id: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(10)]
    for number, file in enumerate(files):
        class_image(number % 3, number).resize((301, 203)).save(file)
    gc.collect()
    watched = Watched.of_run(Tracking.connect(), run_id)
    assert len(predicted(watched, files)) == 10
    assert watched.held == [0]


def test_wrong_words_are_one_line_each(desk: Path, run_id: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="images is not given: pass -P images="):
        perform("predict", {}, lambda _: None)
    with pytest.raises(DataError, match=r"images=.*nothing: no picture at .*: pass a folder"):
        predict(tmp_path / "nothing", run_id=run_id)
    (tmp_path / "bad.png").write_text("x")
    with pytest.raises(DataError, match=r"none of 1 picture can be read \(.*not an image"):
        predict(tmp_path / "bad.png", run_id=run_id)
    mine = tmp_path / "mine.csv"
    mine.write_text("id,name\n1,a\n")
    with pytest.raises(DataError, match=r"out=.*mine\.csv: is there already and was not written"):
        predict(desk / "images", run_id=run_id, out=str(mine))
    assert mine.read_text() == "id,name\n1,a\n"
    with pytest.raises(DataError, match="is there already"):
        predict(desk / "images", run_id=run_id, out=str(tmp_path))
    with pytest.raises(SettingsError, match=r"out=.*x\.csv: there is no folder .*nodir: make it"):
        predict(desk / "images", run_id=run_id, out=str(tmp_path / "nodir" / "x.csv"))
    assert not (tmp_path / "nodir").exists()
    for content in (b"a" * 200_000, b'"' + b"b" * 200_000, b"\xff\0"):
        mine.write_bytes(content)
        with pytest.raises(DataError, match="is there already and was not written"):
            predict(desk / "images", run_id=run_id, out=str(mine))
    for device in ("/dev/stdout", "/dev/null"):
        with pytest.raises(DataError, match="is there already and was not written"):
            predict(desk / "images", run_id=run_id, out=device)
    with pytest.raises(LineageError, match="run 0{32} does not exist"):  # noqa: RUF043
        predict(desk / "images", run_id="0" * 32)


@pytest.mark.skipif(not Path("/proc").exists(), reason="this system has no /proc")
def test_a_folder_that_may_not_be_written_is_refused_before_pictures_are_read(
    desk: Path, run_id: str
) -> None:
    said: list[str] = []
    with pytest.raises(StorageError, match=r"p\.csv .*/proc"):  # not even root may
        predict(desk / "images", said, run_id=run_id, out="/proc/p.csv")
    assert said == []


def test_a_folder_is_a_class_however_its_name_is_composed(
    desk: Path, run_id: str, tmp_path: Path
) -> None:
    classifier = Classifier.of_run(Tracking.connect("predict", files=False), run_id)
    both = "caf\u00e9", "cafe\u0301"
    rest = classifier.class_names[1:]
    for name, folder in product(both, both):
        classifier.served.about["class_names"] = [name, *rest]
        shutil.copytree(desk / "images" / "apple", tmp_path / name / folder)
        table = predicted(classifier, sorted((tmp_path / name / folder).iterdir()))
        assert set(table["true_label"]) == {name}


def test_the_same_out_file_is_written_over(desk: Path, run_id: str, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    predict(desk / "images", run_id=run_id, out=str(out))
    predict(desk / "images" / "apple", run_id=run_id, out=str(out))
    assert len(pd.read_csv(out)) == 12


def test_the_model_is_the_run_the_name_or_the_only_champion(desk: Path, run_id: str) -> None:
    apple = desk / "images" / "apple" / "01.png"
    with pytest.raises(LineageError, match=r"no model in .* has the alias champion: pass -P run"):
        predict(apple)
    tracking, uri = Tracking.connect(), mlflow.get_run(run_id).data.tags["model_uri"]
    version = ModelVersion(uri=uri, alias="champion", description="", tags={})
    tracking.register("one", version)
    said: list[str] = []
    predict(apple, said)
    assert f"model of run {run_id}" in said[0]
    for model in ("models:/one@champion", "models:/one/1", uri):
        predict(apple, said, model=model)
    typos = ("models:one@champion", "models://one@champion", "models:/one@", "foo:bar")
    for model in ("models:/two@champion", "nonsense", "models:/one/9", *typos, str(desk)):
        with pytest.raises(
            LineageError, match=f"model={model}: no such model .*there is models:/one@champion"
        ):
            predict(apple, model=model)
    logged = Path(mlflow.get_run(run_id).info.artifact_uri.removeprefix("file://")).parents[1]
    moved = [path.rename(path.with_suffix(".away")) for path in logged.rglob("MLmodel")]
    assert moved
    for words in ({}, {"model": "models:/one@champion"}):
        with pytest.raises(LineageError, match="the files of models:/one@champion are gone"):
            predict(apple, **words)
    for path in moved:
        path.rename(path.with_suffix(""))
    tracking.register("two", version)
    with pytest.raises(
        LineageError, match=r"2 models .*pass -P model=<one of models:/one@champion, models:/two@"
    ):
        predict(apple)
    with pytest.raises(LineageError, match="pass one of them"):
        predict(apple, run_id=run_id, model="models:/one@champion")


def test_a_launched_run_is_named_for_what_it_did(
    desk: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = mlflow.MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    predict(desk / "images", run_id=run_id)
    run = mlflow.get_run(launched)
    assert run.info.run_name == "predict · 36 pictures"
    assert run.data.tags["kind"] == "predict"
