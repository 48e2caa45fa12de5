"""The model registry: every name that is made up can be registered, and found by its alias."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.settings.entry import DecideSettings, usable_name
from pipeline.tracking import ModelVersion, Tracking


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
    import mlflow

    assert usable_name(text) == name
    assert DecideSettings(register_as=name).register_as == name
    with mlflow.start_run():
        mlflow.log_text("x", "model/model.txt")
        uri = mlflow.get_artifact_uri("model")
    tracking = Tracking.connect()
    for _ in range(2):  # registering again finds the version that there is
        registered = tracking.register(name, ModelVersion(uri, "best", "why", {"mark": "1"}))
        assert (registered.number, registered.replaced) == ("1", None)
    found = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@best"))
    assert [file.name for file in found.iterdir() if file.suffix == ".txt"] == ["model.txt"]


def test_the_version_that_had_the_alias_before_is_named(store: Path) -> None:
    import mlflow

    tracking, uris = Tracking.connect(), []
    for _ in range(2):
        with mlflow.start_run():
            mlflow.log_text("x", "model/model.txt")
            uris.append(mlflow.get_artifact_uri("model"))
    tracking.register("name", ModelVersion(uris[0], "best", "", {"decision": "one"}))
    second = tracking.register("name", ModelVersion(uris[1], "best", "", {"decision": "two"}))
    assert (second.number, second.replaced) == ("2", ("1", {"decision": "one"}))
    back = tracking.register("name", ModelVersion(uris[0], "best", "", {"decision": "one"}))
    assert (back.number, back.replaced) == ("1", ("2", {"decision": "two"}))
