"""MLflow's exceptions, and those of its transport, database and disk, as one of ours."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import TrackingError, first_line
from pipeline.files import storage_faults

CONTACT_TIMEOUT_S = 5.0


@contextmanager
def translated(doing: str, uri: str) -> Iterator[None]:
    """Raise TrackingError, naming what was being done and where, for any fault of MLflow.

    A full or read-only disk under its artifacts is a StorageError.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with storage_faults(f"MLflow's files ({doing})", uri):
            yield
    except (MlflowException, requests.RequestException, SQLAlchemyError) as err:
        raise TrackingError(
            f"MLflow could not {doing} at {uri} ({first_line(err)}): check the server and "
            "the disk, then run the same command again; finished stages are reused"
        ) from None


def contact(uri: str) -> None:
    """See whether anything answers there.

    Raises:
        TrackingError: nothing does.
    """
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONTACT_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # something answers
    except (OSError, ValueError) as err:
        reason = getattr(err, "reason", err)
        raise TrackingError(
            f"no tracking server answers at MLFLOW_TRACKING_URI={uri} ({reason}): start one with "
            "`mlflow server`, or unset MLFLOW_TRACKING_URI to record in ./mlflow.db"
        ) from None
