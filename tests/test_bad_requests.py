"""A served model answers every row that it can, and says in one sentence what it cannot."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.scoring_server import (
    CONTENT_TYPE_CSV,
    CONTENT_TYPE_JSON,
    CONTENT_TYPE_PARQUET,
    invocations,
)
from PIL import Image

import pipeline
from pipeline.errors import DataError
from tests.conftest import Work, class_image, inside
from tests.fuzzing import DAMAGES, Damage, bodies, damaged, is_an_answer

Answer = Callable[..., dict[str, Any]]


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


GOOD = png(class_image(0, 1))
ROW = encoded(GOOD)
LARGE, DEEP = png(Image.new("1", (10_001, 5_000))), png(Image.new("I;16", (4_000, 2_501)))


@pytest.fixture(scope="module")
def run_id(shared_work: Work) -> Iterator[str]:
    """A run with a model, in a store that the module shares."""
    shared_work.run("stage1", schedule="head_only", log_model="on")
    with inside(shared_work.folder):
        (run,) = mlflow.search_runs(output_format="list", filter_string="tags.kind = 'stage'")
        yield run.info.run_id


@pytest.fixture(scope="module")
def model(run_id: str) -> PyFuncModel:
    return mlflow.pyfunc.load_model(mlflow.get_run(run_id).data.tags["model_uri"])


@pytest.fixture
def answer(model: PyFuncModel, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """What the server sends back for a body."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    def ask(body: object, kind: str = CONTENT_TYPE_JSON) -> dict[str, Any]:
        sent = body if isinstance(body, str | bytes) else json.dumps(body)
        try:
            found = invocations(sent, kind, model, model.metadata.get_input_schema())
        except MlflowException as err:
            text = err.serialize_as_json()
            if "valid CSV" not in text:  # text that is no table does not come as far as the model
                assert "Traceback" not in text
                assert "stack_trace" not in text
            refused: dict[str, Any] = json.loads(text)
            return refused | {"status": err.get_http_status_code()}
        answered: dict[str, Any] = json.loads(found.response, parse_constant=no_constant)
        return answered

    return ask


def split(*rows: object) -> dict[str, object]:
    return {"dataframe_split": {"columns": ["image"], "data": [[row] for row in rows]}}


def parquet(*rows: bytes) -> bytes:
    file = io.BytesIO()
    pd.DataFrame({"image": rows}).to_parquet(file)
    return file.getvalue()


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """The same answer, but for what the size of a batch does to the last digits."""
    assert first["label"] == second["label"]
    numbers = [[row[name] for name in ("apple", "berry", "cherry")] for row in (first, second)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (split(ROW, ROW), CONTENT_TYPE_JSON),
        ({"dataframe_records": [{"image": ROW}, {"image": ROW}]}, CONTENT_TYPE_JSON),
        ({"instances": [{"image": ROW}, {"image": ROW}]}, CONTENT_TYPE_JSON),
        ({"instances": [ROW, ROW]}, CONTENT_TYPE_JSON),
        ({"inputs": {"image": [ROW, ROW]}}, CONTENT_TYPE_JSON),
        ({"inputs": [ROW, ROW]}, CONTENT_TYPE_JSON),
        (f"image\n{ROW}\n{ROW}\n", CONTENT_TYPE_CSV),
        (f"id,image\n7,{ROW}\n8,{ROW}\n", CONTENT_TYPE_CSV),
        (parquet(GOOD, GOOD), CONTENT_TYPE_PARQUET),
        (split(f"data:image/png;base64,{ROW}", f"{ROW[:40]}\n{ROW[40:]}"), CONTENT_TYPE_JSON),
    ],
)
def test_every_format_of_mlflow_is_answered(answer: Answer, body: object, kind: str) -> None:
    first, second = answer(body, kind)["predictions"]
    assert first == second
    assert list(first) == ["label", "apple", "berry", "cherry", "error"]
    assert first["error"] is None
    assert first["label"] == max(("apple", "berry", "cherry"), key=first.__getitem__)
    assert_same(first, answer(split(ROW))["predictions"][0])


BAD = {
    encoded(b"hello"): "no image that Pillow knows",
    "": "it is empty",
    None: "it is missing",
    "!": "it is no base64",
    encoded(GOOD[:150]): "truncated",
    encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>"): "no image that Pillow knows",
    encoded(LARGE): "10001 x 5000 pixels, 50 megapixels are the most",
    encoded(DEEP): "4000 x 2501 pixels, 10 megapixels are the most",
    3: "it is a int",
    (1, 2): "it is a list",
}


@pytest.mark.parametrize(("row", "why"), BAD.items(), ids=[*BAD.values()])
def test_a_bad_row_is_named_and_the_others_are_answered(
    answer: Answer, row: object, why: str
) -> None:
    first, bad, last = answer(split(ROW, row, ROW))["predictions"]
    assert first == last
    assert_same(first, answer(split(ROW))["predictions"][0])
    assert bad["error"].startswith("the image in row 1 (rows from 0) cannot be read (")
    assert why.lower() in bad["error"].lower()
    assert len(bad["error"]) < 150
    assert {bad[name] for name in ("label", "apple", "berry", "cherry")} == {None}


def test_a_request_without_one_image_is_refused_in_one_sentence(answer: Answer) -> None:
    for body in (
        split(encoded(b"hello")),
        split("!", None),
        {"dataframe_records": [{"picture": ROW}]},
        {"dataframe_split": {"columns": [], "data": [[]]}},
        split(*[ROW] * 5001),
    ):
        found = answer(body)
        assert found["status"] == 400
        assert found["message"].count("\n") == 0
        assert "dataframe_split" in found["message"] or "send 5000 at most" in found["message"]
        assert len(found["message"]) < 300


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (split(), CONTENT_TYPE_JSON),
        ({"dataframe_records": []}, CONTENT_TYPE_JSON),
        ({"instances": []}, CONTENT_TYPE_JSON),
        ({"inputs": []}, CONTENT_TYPE_JSON),
        ({"inputs": {"image": []}}, CONTENT_TYPE_JSON),
        ("image\n", CONTENT_TYPE_CSV),
    ],
)
def test_a_request_without_rows_is_a_mistake_of_the_clients(
    answer: Answer, body: object, kind: str
) -> None:
    found = answer(body, kind)
    assert found["status"] == 400
    assert re.match("the request has no (row|column)", found["message"])
    assert "dataframe_split" in found["message"]


@given(st.sampled_from([*bodies()]), DAMAGES)
@settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[*HealthCheck],
)
def test_a_damaged_body_is_answered_or_refused(
    answer: Answer, request_sent: tuple[str, bytes, str], damages: list[Damage]
) -> None:
    _, body, kind = request_sent
    assert is_an_answer(answer(damaged(body, damages).decode(errors="replace"), kind))


def test_a_file_of_too_many_bytes_is_refused_before_it_is_decoded(answer: Answer) -> None:
    _, bad = answer(parquet(GOOD, GOOD + bytes(65 << 20)), CONTENT_TYPE_PARQUET)["predictions"]
    assert "it has 65 MiB, 64 are the most" in bad["error"]


def test_work_ends_when_the_server_no_longer_waits(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "1")
    large = encoded(png(Image.new("RGB", (7000, 7000))))
    found = answer(split(*[large] * 200))
    assert found["status"] == 503
    assert "of 200 images were computed in 1 s" in found["message"]
    assert "--timeout" in found["message"]
    monkeypatch.delenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT")
    assert len(answer(split(ROW))["predictions"]) == 1  # nothing is held back by the other


def test_requests_at_once_get_the_answers_that_they_get_alone(model: PyFuncModel) -> None:
    pictures = [png(class_image(label, 3)) for label in range(3)]
    tables = [pd.DataFrame({"image": [one] * 20}) for one in pictures]
    alone = [model.predict(table) for table in tables]
    together = threading.Barrier(12)

    def ask(number: int) -> pd.DataFrame:
        together.wait()
        return model.predict(tables[number % 3])

    with ThreadPoolExecutor(12) as pool:
        for number, found in enumerate(pool.map(ask, range(12))):
            pd.testing.assert_frame_equal(found, alone[number % 3])


def test_from_python_one_sentence_names_the_row(run_id: str) -> None:
    classifier = pipeline.load(run_id)
    assert [*classifier.predict([GOOD]).columns] == ["label", "apple", "berry", "cherry"]
    assert classifier.predict(GOOD).equals(classifier.predict([GOOD]))
    with pytest.raises(DataError, match=r"the image in row 1 \(rows from 0\) cannot be read"):
        classifier.predict([GOOD, b"no"])
    with pytest.raises(DataError, match=r"the image in row 0 \(rows from 0\) cannot be read"):
        classifier.predict([b"no"])
    assert len(classifier.predict([])) == 0  # as a batch that came out empty
    table = pd.DataFrame({"image": ["cat.jpg", np.nan]})
    with pytest.raises(ValueError, match=r"row 0 .* \(it is no base64"):
        classifier.served.predict(None, table)
