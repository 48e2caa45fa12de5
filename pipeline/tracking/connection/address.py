"""Where MLflow records: its address as MLflow is to use it, and whether that can be used at all.

In: MLFLOW_TRACKING_URI, or MLflow's default. Out: the address without spaces around it, the login
of a server where MLflow keeps logins, in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: so
no text and no other process's command line ever has it. What cannot be used is refused at once:
MLflow itself would try for minutes.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import TrackingError, first_line
from pipeline.system.disk.files import seen
from pipeline.system.network.addresses import (
    file_of,
    hidden,
    is_server,
    misread,
    why_unwritable,
    with_file,
    without_password,
)
from pipeline.tracking.connection.faults import contact

URI, USERNAME, PASSWORD = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
_OTHERS = ("databricks", "uc")
"""Addresses of MLflow's that have no scheme."""


def usable_address() -> str:
    """The address that MLflow uses from now on.

    Raises:
        TrackingError: it is none, nothing answers there, or nothing can be written there.
    """
    import mlflow

    if not os.environ.get(URI, "").strip():
        os.environ.pop(URI, None)
    given = mlflow.get_tracking_uri()
    uri = given.strip()
    _check_variables()
    if (why := misread(uri)) and not (uri.startswith(_OTHERS) or seen(Path(uri).is_dir)):
        raise TrackingError(f"{URI}={without_password(uri)}: {why}")
    if is_server(uri):
        uri = _without_login(uri)
        contact(uri)
    elif path := file_of(uri):
        _check_file(uri, path)
        # MLflow writes its default with %20 for a space, and makes a folder of that name as well
        uri = with_file(uri, path)
    else:
        _check_database(uri)
    if uri != given:
        mlflow.set_tracking_uri(uri)
    return uri


def _without_login(uri: str) -> str:
    """A server's address, its login moved to where MLflow keeps logins.

    A name with an empty password stays: MLflow's variables cannot say that.
    """
    shown = f"{URI}={without_password(uri)}"
    try:
        parts = urlsplit(uri)
        user, password = parts.username, parts.password
    except ValueError as err:
        what = f"{shown} ({hidden(str(err), uri)})"
        raise TrackingError(f"{what}: no address: write it like http://host:5000") from None
    if parts.query or parts.fragment:
        raise TrackingError(f"{shown}: no server's address has a ? or #: leave out what follows")
    if not user:
        return uri
    if password == "":
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        return uri
    if password is None:
        os.environ.setdefault(USERNAME, unquote(user))
    else:
        os.environ |= {USERNAME: unquote(user), PASSWORD: unquote(password)}
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _check_variables() -> None:
    """Refuse values of MLflow's variables that it would fail at, at once or much later."""
    from mlflow import environment_variables as known

    for variable in vars(known).values():
        if isinstance(variable, known._EnvironmentVariable):
            try:
                variable.get()  # type: ignore[no-untyped-call]
            except ValueError as err:
                raise TrackingError(f"{first_line(err)}: correct {variable.name}") from None


def _check_file(uri: str, path: Path) -> None:
    """Refuse a file that cannot be made or written; MLflow makes its folder, and so do we."""
    if why := why_unwritable(path, may_make_folders=True):
        shown = f"{URI}={uri}" if URI in os.environ else f"./{path.name}"
        raise TrackingError(
            f"{shown} cannot be used ({why}): choose a folder you may write to: "
            f"{URI}=sqlite:////<folder>/mlflow.db"
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def _check_database(uri: str) -> None:
    """Refuse a login that is read in another way than it is meant."""
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return  # no database's: MLflow may know it
    if "@" in f"{url.host}{url.database}":
        raise TrackingError(
            f"{URI}={without_password(uri)}: its login holds an @ as it is: write %40"
        )
    if url.get_backend_name() == "sqlite":
        raise TrackingError(
            f"{URI}={uri} is forgotten when this command ends: name a file: sqlite:///mlflow.db"
        )
