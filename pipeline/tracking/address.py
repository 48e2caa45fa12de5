"""Where MLflow records: its address as MLflow is to use it, and whether that can be used at all.

In: MLFLOW_TRACKING_URI, or MLflow's default. Out: the address without spaces around it, the login
of a server where MLflow keeps logins, in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: so
no text and no other process's command line ever has it. What cannot be used is refused at once:
MLflow itself would try for minutes.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.errors import TrackingError
from pipeline.system.addresses import (
    file_of,
    hidden,
    is_server,
    why_unwritable,
    with_file,
    without_password,
)
from pipeline.tracking.faults import contact

URI, USERNAME, PASSWORD = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)


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
    if "@" in parts.path and (user or not _has_port(parts)):
        raise TrackingError(
            f"{shown}: its login holds a / or an @ as it is: write %2F and %40, or set {USERNAME} "
            f"and {PASSWORD}"
        )
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


def _has_port(parts: SplitResult) -> bool:
    """Whether its port, if there is one, is a number: else it is the start of a password."""
    try:
        return parts.port is None or parts.port >= 0
    except ValueError:
        return False


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
