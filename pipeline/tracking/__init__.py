"""MLflow: where runs are found, started, fed and ended. The only importer of MLflow's client."""

from pipeline.tracking.registry import ModelVersion
from pipeline.tracking.run import RunLog
from pipeline.tracking.store import Tracking
from pipeline.tracking.view import RunView

__all__ = ["ModelVersion", "RunLog", "RunView", "Tracking"]
