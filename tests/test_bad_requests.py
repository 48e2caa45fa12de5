"""A served model says in one sentence which row of a request is no image."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import CONTENT_TYPE_JSON, invocations

import pipeline
from pipeline.entries.table import perform
from pipeline.errors import DataError
from tests.conftest import class_image, tiny


@pytest.fixture
def run_id(store: Path, image_folder: Path) -> str:
    options = {"schedule": "head_only", "log_model": "on"}
    return str(perform("stage1", tiny(image_folder, store, options), lambda _: None).run_id)


def answer(run_id: str, *rows: bytes) -> dict[str, str]:
    """What the server would send back for these bytes."""
    model = mlflow.pyfunc.load_model(mlflow.get_run(run_id).data.tags["model_uri"])
    encoded = [[base64.b64encode(row).decode()] for row in rows]
    body = {"dataframe_split": {"columns": ["image"], "data": encoded}}
    schema = model.metadata.get_input_schema()
    try:
        sent = invocations(json.dumps(body), CONTENT_TYPE_JSON, model, schema)
    except MlflowException as err:
        found: dict[str, str] = json.loads(err.serialize_as_json())
        return found
    return {"predictions": sent.response}


def test_a_bad_row_is_named_without_a_traceback_or_the_request(
    run_id: str, tmp_path: Path
) -> None:
    good = tmp_path / "good.png"
    class_image(0, 1).save(good)
    content = good.read_bytes()
    bad = {b"hello": "no image that Pillow knows", b"": "it is empty", content[:150]: "truncated"}
    for row, why in bad.items():
        found = answer(run_id, content, row, content)
        message = found["message"]
        assert message.startswith("the image in row 1 (rows from 0) cannot be read (")
        assert why.lower() in message.lower()
        assert "base64" in message
        assert "stack_trace" not in found
        assert "Traceback" not in json.dumps(found)
        assert len(message) < 250
    assert len(json.loads(answer(run_id, content, content)["predictions"])["predictions"]) == 2


def test_from_python_too_one_sentence_names_the_row(run_id: str, tmp_path: Path) -> None:
    classifier = pipeline.load(run_id)
    with pytest.raises(DataError, match=r"the image in row 1 \(rows from 0\) cannot be read"):
        classifier.predict([_png(tmp_path), b"no"])
    table = pd.DataFrame({"image": ["cat.jpg"]})
    with pytest.raises(ValueError, match=r"row 0 .* \(it is a str, not bytes\)"):
        classifier.served.predict(None, table)


def _png(folder: Path) -> bytes:
    class_image(0, 2).save(folder / "x.png")
    return (folder / "x.png").read_bytes()
