"""Faults of MLflow's store, its disk among them, as one line of ours."""

from __future__ import annotations

import errno
import os

import pytest
from mlflow.exceptions import MlflowException

from pipeline.errors import StorageError, TrackingError
from pipeline.tracking.faults import translated

URI = "sqlite:///mlflow.db"


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose a folder you may write")],
)
def test_a_disk_under_the_artifacts_is_named_with_what_to_do(number: int, advice: str) -> None:
    with pytest.raises(StorageError) as caught, translated("store a file", URI):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"cannot write MLflow's files (store a file) to {URI} ")
    assert advice in str(caught.value)


def test_a_fault_of_mlflow_is_named_with_what_was_being_done() -> None:
    with pytest.raises(TrackingError) as caught, translated("store a file", URI):
        raise MlflowException("gone")
    assert str(caught.value).startswith(f"MLflow could not store a file at {URI} (gone)")
