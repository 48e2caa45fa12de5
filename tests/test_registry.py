"""The model registry: every name that is made up can be registered, and found by its alias."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from pipeline.settings.entry import DecideSettings, usable_name
from pipeline.tracking import ModelVersion, Tracking


def logged_model() -> str:
    with mlflow.start_run():
        mlflow.log_text("x", "model/model.txt")
        return mlflow.get_artifact_uri("model")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my images_2.0-resnet18", "my images_2.0-resnet18"),
        ("im:ages-resnet18", "im-ages-resnet18"),
        ("Ann's-resnet18", "Ann-s-resnet18"),
        ("what?-resnet18", "what--resnet18"),
        ("..-resnet18", "resnet18"),
        ("été#1@home 100%-resnet18", "été#1@home 100%-resnet18"),
    ],
)
def test_a_made_up_name_is_one_that_can_be_given_and_found(
    store: Path, text: str, name: str
) -> None:
    assert usable_name(text) == name
    assert DecideSettings(register_as=name).register_as == name
    tracking, uri = Tracking.connect(), logged_model()
    for _ in range(2):  # registering again finds the version that there is
        registered = tracking.register(
            name, ModelVersion(uri=uri, alias="best", description="why", tags={"mark": "1"})
        )
        assert (registered.number, registered.replaced) == ("1", None)
    found = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@best"))
    assert [file.name for file in found.iterdir() if file.suffix == ".txt"] == ["model.txt"]


def test_the_version_that_had_the_alias_before_is_named(store: Path) -> None:
    tracking = Tracking.connect()
    one = ModelVersion(uri=logged_model(), alias="best", description="", tags={"decision": "one"})
    two = ModelVersion(uri=logged_model(), alias="best", description="", tags={"decision": "two"})
    replaced = {"1": None, "2": ("1", {"decision": "one"})}
    for version, number in ((one, "1"), (two, "2")):
        registered = tracking.register("name", version)
        assert (registered.number, registered.replaced) == (number, replaced[number])
    back = tracking.register("name", one)
    assert (back.number, back.replaced) == ("1", ("2", {"decision": "two"}))
