"""Every fault a user can cause, as one tree.

    PipelineError                 one line: what, got, where, what to do next; exit code 2
    ├── SettingsError             an unknown setting, a value out of range, settings that disagree
    ├── DataError                 images: missing, unreadable, too few, only one class
    ├── WeightsError              pretrained weights: missing, damaged, made for another backbone
    ├── DownloadError             a file had to come from the network and did not
    ├── LineageError              a parent run: missing, of the wrong stage, damaged, contradicted
    ├── TrainingError             no epoch came to a finite loss
    ├── FreezingError             a frozen tensor changed during training
    ├── GateError                 the gate was asked to stop stage 3, or cannot be read
    ├── StudyError                a study: none that matches, unfinished, its storage out of reach
    ├── DesignError               a decision or comparison that these images or arms do not allow
    ├── StorageError              a disk that is full or cannot be written
    └── TrackingError             MLflow's store cannot be reached or refuses

`RunStopped` is no fault: it ends a run early on purpose.
Broken invariants of our own are asserts, not members of this tree.
"""

from __future__ import annotations


class PipelineError(Exception):
    """A fault that the user can mend. `str()` is the whole message, one line a fault."""


class SettingsError(PipelineError):
    """Settings that cannot be used; holds every fault found, one a line."""


class DataError(PipelineError):
    """Images that cannot be used."""


class WeightsError(PipelineError):
    """Pretrained weights that cannot be used."""


class DownloadError(PipelineError):
    """A file that had to be fetched and was not."""


class LineageError(PipelineError):
    """A parent run that cannot be continued from."""


class TrainingError(PipelineError):
    """Training that came to nothing."""


class FreezingError(PipelineError):
    """A tensor outside the trainable blocks changed: the run's result is void."""


class GateError(PipelineError):
    """The gate stops stage 3, or has too little to read."""


class StudyError(PipelineError):
    """A study that is missing or unfinished, or whose storage cannot be reached."""


class DesignError(PipelineError):
    """A decision or comparison that these images or arms do not allow."""


class StorageError(PipelineError):
    """A disk that is full or cannot be written."""


class TrackingError(PipelineError):
    """The tracking store cannot be reached or refused a request."""


class RunStopped(Exception):
    """A run that ends early on purpose: it is marked KILLED, the message says why."""


_PREAMBLE = "(raised as a result of Query-invoked autoflush"
"""What SQLAlchemy says before it says what went wrong."""


def first_line(err: BaseException) -> str:
    """What another library's error says, on one line: its type where it says nothing."""
    lines = [line for line in str(err).strip().splitlines() if not line.startswith(_PREAMBLE)]
    return lines[0][:200] if lines else type(err).__name__
