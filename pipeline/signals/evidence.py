"""A run's evidence: what its signals were read from, kept where people look for it.

In: a finished stage and its parent run. Out: tags `signal.…`, metrics `signal/…`, `evidence.json`,
pictures, sentences for the description. At the end of a command that has met siblings of a run,
the run's reading of instability is brought up to date: by its own thresholds, since the run may be
another person's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch.nn.functional as F
from pydantic_core import to_json
from torch import Tensor

from pipeline.data.sampling.draws import Draw
from pipeline.errors import LineageError, StorageError
from pipeline.reporting.figures import by_block, chain_curves
from pipeline.settings.run import THRESHOLD_KEYS, Settings
from pipeline.settings.schedules import Stage
from pipeline.settings.thresholds import Thresholds
from pipeline.signals.readings import (
    Sibling,
    Signal,
    instability,
    numbers_of,
    read_signals,
)
from pipeline.signals.scored import Scored, aligned
from pipeline.stats.metrics import rounded
from pipeline.tracking import RunLog, RunView, Tracking, keys
from pipeline.tracking.history import History, chain_of, read_history

PREDICTIONS = "evaluation/val_predictions.csv"
EVIDENCE = "evidence.json"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A stage run that has ended, and the parent it is compared with (None: a first stage)."""

    stage: Stage
    settings: Settings
    draw: Draw
    history: History
    logits: Tensor
    parent: RunView | None

    @property
    def scored(self) -> Scored:
        """Its result on each validation image at the selected epoch."""
        val = self.draw.val
        images = tuple(row.tobytes().hex() for row in val.digests)
        nll = F.cross_entropy(self.logits, val.labels, reduction="none")
        predicted = self.logits.argmax(1).numpy()
        labels, losses = val.labels.numpy(), nll.double().numpy()
        return Scored(images=images, labels=labels, predicted=predicted, nll=losses)


def _is_about(scored: Scored, parent: Scored) -> bool:
    """Whether the parent's scores are about the run's images."""
    try:
        aligned(scored, parent)
    except ValueError:
        return False
    return True


def log_evidence(log: RunLog, tracking: Tracking, subject: Subject) -> list[Signal]:
    """Read the signals of a run that is about to finish, and log them; siblings come later."""
    history, settings, parent = subject.history, subject.settings, subject.parent
    scores = scores_of(tracking, parent) if parent else None
    if scores and not _is_about(subject.scored, scores):
        scores = None  # a file that was cut short is as good as lost
    has_parent = parent is not None
    signals = read_signals(
        history,
        subject.scored,
        scores,
        settings,
        has_parent=has_parent,
        parent_epochs=epochs_of(tracking, parent) if parent else 0,
    )
    log.tags(_tags(signals))
    log.metrics(_metrics([s for s in signals if "siblings" not in s.numbers]))  # known at the end
    content = {
        "signals": {signal.name: asdict(signal) for signal in signals},
        "thresholds": {key: getattr(settings, key) for key in THRESHOLD_KEYS},
        "inputs": {
            "curves": {keys.flat(name): history[name] for name in keys.CURVES}
            | {"planned": history.planned},
            "selected_epoch": history.selected,
            "validation_images": len(subject.draw.val),
            "parent_run_id": parent.run_id if parent else None,
            "parent_scores_found": scores is not None,
        },
    }
    log.text(_as_json(content), EVIDENCE)
    return signals


def epochs_of(tracking: Tracking, run: RunView) -> int:
    """How many epochs a run was selected from, which may be fewer than planned; 0: not known."""
    return len(tracking.history(run.run_id, keys.VAL_ACC))


def _tags(signals: Sequence[Signal]) -> dict[str, str]:
    return {f"{keys.SIGNAL_TAGS}{signal.name}": signal.state for signal in signals}


def _metrics(signals: Sequence[Signal]) -> dict[str, float]:
    return {f"{keys.SIGNAL_METRICS}{key}": value for key, value in numbers_of(signals).items()}


def _as_json(content: object) -> str:
    """JSON text; numbers that JSON does not know are null."""
    return to_json(content, indent=2, inf_nan_mode="null").decode() + "\n"


def log_evidence_pictures(log: RunLog, tracking: Tracking, subject: Subject) -> None:
    """Drift and gradients by block, the chain's curves on one axis."""
    name = f"stage {subject.stage.number} of {subject.stage.schedule}"
    risks = by_block(f"{name}: drift and gradients", subject.history.rows)
    log.figure(risks, "figures/risks.png")
    if before := _ancestors(tracking, subject.parent):
        chain = chain_curves([*before, (subject.stage.number, subject.history)])
        log.figure(chain, "figures/chain.png")


def _ancestors(tracking: Tracking, run: RunView | None) -> list[tuple[int, History]]:
    """The stages before, first stage first, as far as the store still has them."""
    before: list[tuple[int, History]] = []
    with suppress(LineageError):
        for one in chain_of(tracking, run) if run else ():
            if history := read_history(tracking, one, keys.CURVES):
                before.insert(0, (one.number(keys.STAGE), history))
    return before


def parent_of(tracking: Tracking, run: RunView) -> RunView | None:
    """The run that a stage run continued from; None where there is none, or none any more."""
    try:
        return next(islice(chain_of(tracking, run), 1, None), None)
    except LineageError:
        return None


def sentences(signals: Sequence[Signal]) -> str:
    """The signals as a Markdown list, one line each: what people read, then its tag."""
    return "\n".join(f"- **{s.mark}** {s.sentence} (`{s.name}` {s.state})" for s in signals)


def _as_earlier(signal: Signal) -> str:
    """The line of a signal in descriptions of earlier versions."""
    return f"- `{signal.name}` **{signal.state}**: {signal.sentence}"


def read_predictions(path: Path) -> pd.DataFrame:
    """The table of `stage_log.predictions_csv`; class names `null`, `NA` and `nan` stay text."""
    return pd.read_csv(
        path, dtype=str, keep_default_na=False, na_values={"nll": [""]}, lineterminator="\n"
    )


def scores_of(tracking: Tracking, run: RunView) -> Scored | None:
    """A finished run's result on each validation image; None if the artifact is lost."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            table = read_predictions(tracking.fetch(run, PREDICTIONS, Path(folder)))
        labels, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
        nll = np.asarray(table["nll"], dtype=np.float64)
        images = tuple(table["image_sha256"])
        return Scored(images=images, labels=labels, predicted=predicted, nll=nll)
    except (LineageError, KeyError, ValueError):
        return None


def siblings_of(tracking: Tracking, recipe: str) -> dict[str, RunView]:
    """Finished runs of one recipe, the latest of each draw and seed, by run id."""
    latest: dict[tuple[int, int], RunView] = {}
    for run in tracking.find({keys.KIND: "stage", keys.RECIPE_KEY: recipe}):
        with suppress(LineageError):  # damaged since: it is nobody's sibling
            if run.settings and keys.SELECTED_EPOCH in run.metrics:
                latest[run.number(keys.DRAW), run.number(keys.SEED)] = run
    return {run.run_id: run for run in latest.values()}


def siblings_of_run(tracking: Tracking, run: RunView) -> dict[str, RunView]:
    """Finished runs of this run's recipe, itself included, as in `siblings_of`.

    Runs of an earlier version knew their data set by its folder's name alone: of them only those
    with the same `data` count.
    """

    def data_of(run: RunView) -> object:
        return run.settings.get("data")

    found = siblings_of(tracking, run.tags[keys.RECIPE_KEY])
    if keys.POOL in run.tags:
        return found
    return {
        i: r for i, r in found.items() if keys.POOL not in r.tags and data_of(r) == data_of(run)
    }


def instability_now(tracking: Tracking, recipe: str, thresholds: Thresholds) -> Signal:
    """The reading of instability over all finished runs of a recipe; nothing is written."""
    return _instability(siblings_of(tracking, recipe), thresholds)


def refresh_siblings(tracking: Tracking, say: Callable[[str], None]) -> None:
    """Bring instability up to date on all runs of the recipes that this command has met.

    Only runs with another reading are written to. Once more where siblings have finished
    meanwhile: of two processes that do this at once, the one with the older list may write last.
    """
    while tracking.recipes_met:
        recipe, seen = tracking.recipes_met.pop(), set[str]()
        while not (runs := siblings_of(tracking, recipe)).keys() <= seen:
            seen |= runs.keys()
            for run in runs.values():
                with as_far_as_allowed(run, say):
                    signal = _instability(runs, thresholds_of(run))
                    _refresh(tracking, run, signal, sorted(runs))


def _instability(runs: Mapping[str, RunView], thresholds: Thresholds) -> Signal:
    siblings = []
    for run in runs.values():
        with suppress(LineageError):
            accuracies = run.metrics[keys.at_best(keys.VAL_ACC)], run.metrics[keys.PARENT_VAL_ACC]
            siblings.append(Sibling(*accuracies, run.tags[keys.PARENT_CHECKPOINT_SHA256]))
    return instability(siblings, thresholds)


def thresholds_of(run: RunView) -> Thresholds:
    """The thresholds that a stage run's signals were read with."""
    logged = run.settings
    return Thresholds(**{key: logged[key] for key in THRESHOLD_KEYS if key in logged})


@contextmanager
def as_far_as_allowed(run: RunView, say: Callable[[str], None]) -> Iterator[None]:
    """Write to a run, perhaps another person's; files that cannot be written are a note."""
    try:
        yield
    except (StorageError, LineageError) as err:
        say(f"note: run {run.run_id} ({run.name}) is not brought up to date: {err}")


def _refresh(tracking: Tracking, run: RunView, signal: Signal, siblings: Sequence[str]) -> None:
    """Put a reading in place of the one before: tags, metrics, description, evidence.

    A description in which a person has changed the sentence of that reading stays as it is.
    """
    note, tags = run.tags.get(keys.NOTE, ""), _tags([signal])
    metrics = {key: rounded(value) for key, value in _metrics([signal]).items()}  # as stored
    told = tags.items() <= run.tags.items() and metrics.items() <= run.metrics.items()
    if told and sentences([signal]) in note:
        return
    content = _evidence_of(tracking, run)
    former = next((s for s in _signals_in(content) if s.name == signal.name), None)
    if told and former == signal:
        return
    for line in (sentences([former]), _as_earlier(former)) if former else ():
        if line in note:
            tags[keys.NOTE] = note.replace(line, sentences([signal]))
    log = tracking.writing(run.run_id)
    log.tags(tags)
    log.metrics(metrics)
    if not content:
        return
    content["signals"][signal.name] = asdict(signal)
    content["inputs"]["siblings"] = siblings
    log.text(_as_json(content), EVIDENCE)


def has_pictures(run: RunView) -> bool:
    """Whether a run has its pictures: a trial's has none until it is completed."""
    made_without = {keys.IS_TRIAL, keys.WITHOUT_PICTURES} & set(run.tags)
    return not made_without or keys.COMPLETED in run.tags


def signals_of(tracking: Tracking, run: RunView) -> list[Signal]:
    """A finished run's signals as they were last read; none where its evidence is lost."""
    return _signals_in(_evidence_of(tracking, run))


def _signals_in(evidence: Mapping[str, Any]) -> list[Signal]:
    return [Signal(**values) for values in evidence.get("signals", {}).values()]


def _evidence_of(tracking: Tracking, run: RunView) -> dict[str, Any]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = tracking.fetch(run, EVIDENCE, Path(folder))
            return dict(json.loads(path.read_text(encoding="utf-8")))
    except (LineageError, ValueError):
        return {}
