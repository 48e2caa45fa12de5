"""Which model is meant: a run's, one of the registry, or the champion where there is but one.

In: what was typed. Out: the id of the run that logged the model.
"""

from __future__ import annotations

from pipeline.errors import LineageError, TrackingError
from pipeline.system.provenance import typed
from pipeline.system.text import first_of
from pipeline.tracking import Tracking
from pipeline.tracking.keys import CHAMPION_RUN_ID
from pipeline.tracking.registry import ALIAS

_OTHERWISE = (
    f"pass -P run_id=<a finished run>, or train one: {typed('refit')} -P run_id=<a stage run>"
)


def chosen_run(tracking: Tracking, run_id: str, model: str) -> str:
    """The run whose model is meant.

    Raises:
        LineageError: both are given, there is no such model, or none or several champions.
    """
    if run_id and model:
        raise LineageError(f"run_id={run_id} and model={model}: pass one of them")
    if run_id:  # of a decision: its champion
        run = tracking.get(run_id)
        return run.tags.get(CHAMPION_RUN_ID, run.stage_run_id)
    champions = tracking.champions()
    listed = first_of([f"models:/{name}@{ALIAS}" for name in champions])
    if model or len(champions) == 1:
        address = model or f"models:/{champions[0]}@{ALIAS}"
        found = _run_of(tracking, address)
        if not found:
            there = f"there is {listed}" if champions else "no model has the alias champion"
            raise LineageError(
                f"model={address}: no such model in {tracking.uri} ({there}): {_OTHERWISE}"
            )
        return found
    if not champions:
        raise LineageError(f"no model in {tracking.uri} has the alias {ALIAS}: {_OTHERWISE}")
    raise LineageError(
        f"{len(champions)} models in {tracking.uri} have the alias {ALIAS}: pass -P model=<one of "
        f"{listed}>"
    )


def _run_of(tracking: Tracking, model: str) -> str:
    """The run that logged a model; empty where there is no such model, or no run did.

    Raises:
        LineageError: the model's files are gone.
        TrackingError: the store cannot be asked.
    """
    try:
        return tracking.run_of_model(model)
    except TrackingError as err:
        if "No such artifact" not in str(err):
            raise
        if not model.startswith("models:/"):  # a path or an address that was typed
            return ""
        raise LineageError(
            f"the files of {model} are gone: put them back where they were, or {_OTHERWISE}"
        ) from None
