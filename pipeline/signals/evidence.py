"""A run's evidence: what its signals were read from, kept where people look for it.

In: a finished stage and its parent run. Out: tags `signal.…`, metrics `signal/…`, `evidence.json`,
pictures, sentences for the description. When a sibling finishes, every sibling's reading of
instability is brought up to date: by its own thresholds, since it may be another person's run.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.images import ImageSet
from pipeline.errors import LineageError, StorageError
from pipeline.reporting.figures import best_effort, by_block, chain_curves
from pipeline.settings.run import THRESHOLD_KEYS, Settings, Thresholds
from pipeline.settings.schedules import Stage
from pipeline.signals.pictures import signal_table
from pipeline.signals.readings import Scored, Sibling, Signal, instability, read_signals
from pipeline.tracking import RunLog, RunView, Tracking
from pipeline.tracking.history import History, read_history
from pipeline.tracking.keys import CURVES, PARENT_VAL_ACC, POOL, VAL_ACC, at_best, flat

PREDICTIONS = "evaluation/val_predictions.csv"
EVIDENCE = "evidence.json"
SIGNALS_PICTURE = "figures/signals.png"
NOTE = "mlflow.note.content"
COMPLETED = "completed"
"""Tag of a trial's run that has been given its pictures since."""


@dataclass(frozen=True)
class Subject:
    """The run that speaks, and the parent it compares itself with (None: a first stage)."""

    stage: Stage
    settings: Settings
    history: History
    logits: Tensor
    val: ImageSet
    parent: RunView | None

    @property
    def scored(self) -> Scored:
        """Its result on each validation image at the selected epoch."""
        logits, labels = self.logits, self.val.labels
        images = tuple(row.tobytes().hex() for row in self.val.digests)
        nll = F.cross_entropy(logits, labels, reduction="none")
        return Scored(images, labels.numpy(), logits.argmax(1).numpy(), nll.double().numpy())


def log_evidence(log: RunLog, tracking: Tracking, subject: Subject) -> list[Signal]:
    """Read the signals of a run that is about to finish, and log them; siblings come later."""
    parent = scores_of(tracking, subject.parent) if subject.parent else None
    signals = read_signals(
        subject.history,
        subject.scored,
        parent,
        [],
        subject.settings,
        has_parent=subject.parent is not None,
    )
    log.tags({f"signal.{signal.name}": signal.state for signal in signals})
    log.metrics({f"signal/{k}": v for signal in signals for k, v in signal.numbers.items()})
    if subject.parent:
        log.metrics({PARENT_VAL_ACC: subject.parent.metrics[at_best(VAL_ACC)]})
    content = {
        "signals": {signal.name: asdict(signal) for signal in signals},
        "thresholds": {key: getattr(subject.settings, key) for key in THRESHOLD_KEYS},
        "inputs": {
            "curves": {flat(name): subject.history[name] for name in CURVES}
            | {"planned": subject.history.planned},
            "selected_epoch": subject.history.selected,
            "validation_images": len(subject.val),
            "parent_run_id": subject.parent.run_id if subject.parent else None,
            "parent_scores_found": parent is not None,
        },
    }
    log.text(_as_json(content), EVIDENCE)
    return signals


def log_evidence_pictures(
    log: RunLog, tracking: Tracking, subject: Subject, signals: Sequence[Signal]
) -> None:
    """Drift and gradients by block, the signals as a table, the chain's curves on one axis."""
    name = f"stage {subject.stage.number} of {subject.stage.schedule}"
    risks = by_block(f"{name}: drift and gradients", subject.history.rows)
    log.figure(risks, "figures/risks.png")
    log.figure(signal_table(signals), SIGNALS_PICTURE)
    own = (subject.stage.number, subject.history)
    parts = [*ancestors(tracking, subject.parent), own]
    if len(parts) > 1:
        log.figure(chain_curves(parts), "figures/chain.png")


def sentences(signals: Sequence[Signal]) -> str:
    """The signals as a Markdown list, one line each."""
    return "\n".join(_line(signal) for signal in signals)


def _line(signal: Signal) -> str:
    return f"- `{signal.name}` **{signal.state}**: {signal.sentence}"


def read_predictions(path: Path) -> pd.DataFrame:
    """The table of `run_log.predictions_csv`, class names as text: `null`, `NA` and `nan` are."""
    return pd.read_csv(
        path, dtype=str, keep_default_na=False, na_values={"nll": [""]}, lineterminator="\n"
    )


def scores_of(tracking: Tracking, run: RunView) -> Scored | None:
    """A finished run's result on each validation image; None if the artifact is lost."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            table = read_predictions(tracking.fetch(run, PREDICTIONS, Path(folder)))
            return Scored(
                tuple(table["image_sha256"]),
                table["label"].to_numpy(),
                table["predicted"].to_numpy(),
                np.asarray(table["nll"], dtype=np.float64),
            )
    except (LineageError, KeyError, ValueError):
        return None


def ancestors(tracking: Tracking, run: RunView | None) -> list[tuple[int, History]]:
    """The stages before, first stage first, as far as the store still has them."""
    parts: list[tuple[int, History]] = []
    while run is not None:
        if history := read_history(tracking, run, CURVES):
            parts.insert(0, (int(run.tags["stage"]), history))
        parent_id = run.tags.get("parent_run_id", "none")
        try:
            run = None if parent_id == "none" else tracking.get(parent_id)
        except LineageError:
            run = None
    return parts


def siblings_of(tracking: Tracking, recipe: str) -> dict[str, RunView]:
    """Finished runs of one recipe, the latest of each draw and seed, by run id."""
    latest = {
        (run.tags["draw"], run.tags["seed"]): run
        for run in tracking.find({"kind": "stage", "recipe_key": recipe})
    }
    return {run.run_id: run for run in latest.values()}


def siblings_of_run(tracking: Tracking, run: RunView) -> dict[str, RunView]:
    """Finished runs of this run's recipe, itself included, as in `siblings_of`.

    Runs of an earlier version knew their data set by its folder's name alone: only those with the
    same `data` count.
    """
    found = siblings_of(tracking, run.tags["recipe_key"])
    if POOL in run.tags:
        return found
    data = _data_of(run)
    return {i: r for i, r in found.items() if POOL not in r.tags and _data_of(r) == data}


def _data_of(run: RunView) -> object:
    return json.loads(run.tags["settings"]).get("data")


def refresh_siblings(
    tracking: Tracking, recipe: str, settings: Settings, say: Callable[[str], None]
) -> Signal:
    """Bring the reading of instability up to date on every sibling; returns this run's.

    Once more where siblings have finished meanwhile: of two processes that do this at once, the
    one with the older list may write last.
    """
    seen: set[str] = set()
    while True:
        runs = siblings_of(tracking, recipe)
        found = [
            Sibling(
                run.metrics[at_best(VAL_ACC)],
                run.metrics[PARENT_VAL_ACC],
                run.tags["parent_checkpoint_sha256"],
            )
            for run in runs.values()
        ]
        if runs.keys() <= seen:
            return instability(found, settings)
        seen |= runs.keys()
        for run in runs.values():
            with as_far_as_allowed(run, say):
                reading = instability(found, thresholds_of(run))
                _refresh(tracking, run, reading, sorted(runs), say)


def thresholds_of(run: RunView) -> Thresholds:
    """The thresholds that a stage run's signals were read with."""
    logged = json.loads(run.tags.get("settings", "{}"))
    return Thresholds(**{key: logged[key] for key in THRESHOLD_KEYS if key in logged})


@contextmanager
def as_far_as_allowed(run: RunView, say: Callable[[str], None]) -> Iterator[None]:
    """Write to a run that may be somebody else's; if its files cannot be written, that is said."""
    try:
        yield
    except StorageError as err:
        say(f"note: run {run.run_id} ({run.name}) is not brought up to date: {err}")


def _refresh(
    tracking: Tracking,
    run: RunView,
    signal: Signal,
    run_ids: Sequence[str],
    say: Callable[[str], None],
) -> None:
    pattern = re.compile(rf"^- `{re.escape(signal.name)}` .*$", re.MULTILINE)
    note = pattern.sub(lambda _: _line(signal), run.tags.get(NOTE, ""))
    tracking.add_tags(run.run_id, {f"signal.{signal.name}": signal.state, NOTE: note})
    tracking.add_metrics(
        run.run_id, {f"signal/{key}": value for key, value in signal.numbers.items()}
    )
    with best_effort("the picture of a sibling's signals", say):
        _refresh_evidence(tracking, run, signal, run_ids)


def has_pictures(run: RunView) -> bool:
    """Whether a run is no trial's, which is made without, or has been completed since."""
    return "is_trial" not in run.tags or COMPLETED in run.tags


def signals_of(tracking: Tracking, run: RunView) -> list[Signal]:
    """A finished run's signals as they were last read; none where its evidence is lost."""
    signals = _evidence_of(tracking, run).get("signals", {})
    return [Signal(**values) for values in signals.values()]


def _evidence_of(tracking: Tracking, run: RunView) -> dict[str, Any]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = tracking.fetch(run, EVIDENCE, Path(folder))
            return dict(json.loads(path.read_text(encoding="utf-8")))
    except (LineageError, ValueError):
        return {}


def _refresh_evidence(
    tracking: Tracking, run: RunView, signal: Signal, run_ids: Sequence[str]
) -> None:
    content = _evidence_of(tracking, run)
    if not content:
        return
    content["signals"][signal.name] = asdict(signal)
    content["inputs"]["siblings"] = list(run_ids)
    tracking.add_text(run.run_id, _as_json(content), EVIDENCE)
    if has_pictures(run):
        signals = [Signal(**values) for values in content["signals"].values()]
        tracking.add_figure(run.run_id, signal_table(signals), SIGNALS_PICTURE)


def _as_json(content: object) -> str:
    return json.dumps(_standard(content), indent=2, allow_nan=False) + "\n"


def _standard(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Numbers that JSON does not know as null."""
    if isinstance(value, Mapping):
        return {key: _standard(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
