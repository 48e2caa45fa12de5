"""Which page of MLflow's UI shows a run, and what to type first."""

from __future__ import annotations

import shlex

from pipeline.system.network.addresses import is_server

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves."""
MODE = "?workflowType=machine_learning"
"""Without this MLflow 3.17 opens its pages for language models, on which no run is seen."""


def how_to_open(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page, or of an experiment's where `run_id` is empty."""
    page = f"#/experiments/{experiment_id}/runs"
    page += f"/{run_id}{MODE}" if run_id else MODE
    if is_server(uri):
        return f"see the run: {uri.rstrip('/')}/{page}"
    ui = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return f"see the run: {ui}\n  and open {LOCAL_UI}/{page}"
