"""MLflow's model registry: which logged model is recommended, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.system.network.addresses import without_password
from pipeline.tracking.connection.faults import translated

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"
"""Of the version that is recommended."""
_NO_MODEL = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow calls the fault of an address that leads to no model."""
_NO_ADDRESS = (
    "Not a proper models:/",
    "Could not find a registered artifact repository",
    "No versions of model",
)
"""How its words begin where it has no name for the fault."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A logged model to be registered.

    Attributes:
        uri: of the logged model.
        alias: a name in the registry, such as `champion`; moved here from the version that had it.
        description: Markdown.
        gives_way_to: a tag; a version that carries one keeps the alias.
    """

    uri: str
    alias: str
    description: str
    tags: Mapping[str, str]
    gives_way_to: str = ""


@dataclass(frozen=True)
class Registered:
    """A registered version.

    Attributes:
        number: the version's.
        replaced: number and tags of the version that had the alias before, if any.
        gave_way: whether that version has kept the alias.
    """

    number: str
    replaced: tuple[str, Mapping[str, str]] | None
    gave_way: bool = False


def register(client: MlflowClient, name: str, version: ModelVersion) -> Registered:
    """Add a version to a registered model, which is created if need be.

    A logged model that has a version already keeps it, with the new description and tags.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name = '{name}'")
    number = next((str(each.version) for each in known if each.source == version.uri), None)
    if number is None:
        number = str(client.create_model_version(name, version.uri).version)
    client.update_model_version(name, number, description=version.description)
    for key, value in version.tags.items():
        client.set_model_version_tag(name, number, key, value)
    before = client.get_registered_model(name).aliases.get(version.alias)
    marks = {} if before is None else client.get_model_version(name, before).tags
    if str(before) != number and version.gives_way_to in marks:
        return Registered(number, (str(before), marks), gave_way=True)
    client.set_registered_model_alias(name, version.alias, number)
    if before is None or str(before) == number:
        return Registered(number, None)
    return Registered(number, (str(before), marks))


def champions(client: MlflowClient) -> list[str]:
    """Names of the registered models of which a version has the alias."""
    from mlflow.utils import get_results_from_paginated_fn

    models = get_results_from_paginated_fn(  # type: ignore[no-untyped-call]
        lambda count, token: client.search_registered_models(max_results=count, page_token=token),
        100,
    )
    return sorted(model.name for model in models if ALIAS in model.aliases)


def load_python_model(uri: str) -> Any:  # noqa: ANN401 - the caller knows what it logged
    """The Python object behind a logged model.

    Raises:
        TrackingError: the store does not answer, or the model is gone.
    """
    import mlflow

    with translated("load the model", without_password(mlflow.get_tracking_uri())):
        return mlflow.pyfunc.load_model(uri).unwrap_python_model()


def run_of_model(uri: str) -> str:
    """The run that logged a model, by the model's address; empty where there is none."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import get_model_info

    try:
        return get_model_info(uri).run_id or ""
    except MlflowException as err:
        is_none = err.error_code in _NO_MODEL and "No such artifact" not in str(err)
        if is_none or any(words in str(err) for words in _NO_ADDRESS):
            return ""
        raise
