"""How far should a pretrained image classifier be unfrozen? The same entry points from Python.

    import pipeline

    summary = pipeline.run_stage(2, data="my-images", weights="imagenet", image_size=224)
    decision = pipeline.decide(data="my-images", weights="imagenet", image_size=224, looks="5,10")
    classifier = pipeline.load(summary.run_id)
    classifier.predict(["cat.jpg", "dog.jpg"])

Settings are those of the command line; `stage2.lr` is passed as `**{"stage2.lr": 1e-4}`. Runs go
to MLFLOW_TRACKING_URI. Whatever a person can mend is raised as a `PipelineError` of one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.comparing.decision import Decision
    from pipeline.serving.classifier import Classifier
    from pipeline.tracking.history import Summary

__all__ = ["PipelineError", "decide", "load", "run_stage"]


def run_stage(number: int, **settings: object) -> Summary:
    """Run one stage; the stages before it are found by content, or trained first.

    Args:
        number: the stage, from 1.
        settings: as on the command line (docs/settings.md); `parent_run_id` names the stage run
            to continue from.

    Returns:
        the finished run: its id, and losses (nats) and accuracies (0 to 1) at the selected epoch.

    Raises:
        PipelineError: a wrong setting, unusable data or weights, a store that does not answer.
    """
    summary: Summary = _perform("stage", {"number": number, **settings})
    return summary


def decide(**settings: object) -> Decision:
    """Is stage 3 (or `question="stage2"`) justified? Paired runs, look by look, to a verdict.

    Args:
        settings: as on the command line (docs/settings.md).

    Returns:
        the decision: `decision.verdict`, its pairs and costs; its report is on its MLflow run.

    Raises:
        PipelineError: a wrong setting or design, unusable data or weights, a failed run.
    """
    decision: Decision = _perform("decide", settings)
    return decision


def load(run_id: str) -> Classifier:
    """The classifier that a finished stage run logged.

    Raises:
        PipelineError: no such run, or a run without a model.
    """
    from pipeline.serving.classifier import Classifier
    from pipeline.tracking import Tracking

    return Classifier.of_run(Tracking.connect(files=False), run_id)


def _perform(name: str, settings: dict[str, object]) -> Any:  # noqa: ANN401 - what the entry point returns
    from pipeline.entries.command_line.table import perform

    words = {True: "on", False: "off"}
    options = {
        key: words[value] if isinstance(value, bool) else str(value)
        for key, value in settings.items()
    }
    return perform(name, options)
