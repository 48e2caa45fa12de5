"""MLflow's exceptions, and those of its transport and database, as one of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import TrackingError, first_line


@contextmanager
def translated(doing: str, uri: str) -> Iterator[None]:
    """Raise TrackingError, naming what was being done and where, for any fault of MLflow."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError) as err:
        raise TrackingError(
            f"MLflow could not {doing} at {uri} ({first_line(err)}): check the server and "
            "the disk, then run the same command again; finished stages are reused"
        ) from None
