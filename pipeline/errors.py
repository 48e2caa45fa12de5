"""Every fault that a user can cause, as one tree below `PipelineError`.

`RunStopped` is no fault: it ends a run early on purpose. Broken invariants of our own are
asserts, not members of this tree.
"""

from __future__ import annotations


class PipelineError(Exception):
    """A fault that the user can mend; exit code 2.

    `str()` is the whole message, one line a fault: what, got, where, what to do next.
    """


class SettingsError(PipelineError):
    """Unknown settings, values out of range, settings that disagree: every fault found."""


class DataError(PipelineError):
    """Images that are missing, unreadable, too few or of one class."""


class WeightsError(PipelineError):
    """Pretrained weights that are missing, damaged or made for another backbone."""


class DownloadError(PipelineError):
    """A file that had to be fetched and was not."""


class LineageError(PipelineError):
    """A parent run that is missing, of the wrong stage, damaged or contradicted."""


class TrainingError(PipelineError):
    """No epoch came to a finite loss."""


class DivergedError(TrainingError):
    """A training without a usable epoch, as a loss was NaN or infinite; `run_id` names the run."""

    def __init__(self, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class OutOfMemoryError(PipelineError):
    """A batch, or images, that the memory of the device or of the host does not hold."""


class FreezingError(PipelineError):
    """A tensor outside the trainable blocks changed: the run's result is void."""


class GateError(PipelineError):
    """The gate stops stage 3, or has too little to read."""


class StudyError(PipelineError):
    """A study that is missing or unfinished, or whose storage cannot be reached."""


class DesignError(PipelineError):
    """A decision or comparison that these images or arms do not allow."""


class ClusterError(PipelineError):
    """Ray is not installed, no cluster answers, or a task was lost again and again."""


class StorageError(PipelineError):
    """A disk that is full or cannot be written."""


class TrackingError(PipelineError):
    """The tracking store cannot be reached or refused a request."""


class AwayError(TrackingError):
    """A server stayed away for longer than the command waits for one: MLflow's or Optuna's."""


class RunStopped(Exception):
    """A run that ends early on purpose: it is marked KILLED, the message says why.

    `goes_on`: the same command takes the run up again.
    """

    goes_on = False


def note_once(err: BaseException, other: PipelineError) -> None:
    """Note what failed besides, unless that is a fault of the same kind, or is noted already."""
    if type(err) is not type(other) and str(other) not in getattr(err, "__notes__", ()):
        err.add_note(str(other))


class OvertakenError(RunStopped):
    """Another process does the same, or has done it meanwhile: this one's run is taken back."""


_PREAMBLE = "(raised as a result of Query-invoked autoflush"
"""What SQLAlchemy says before it says what went wrong."""


def first_line(err: BaseException) -> str:
    """What another library's error says, on one line: its type where it says nothing."""
    lines = [line for line in str(err).strip().splitlines() if not line.startswith(_PREAMBLE)]
    return lines[0][:200] if lines else type(err).__name__
