"""Entry point clean: what the project occupies on this disk, and taking parts of that back.

In: what to remove, if anything. Out: a table on the terminal. Without `remove` nothing is touched:
the table says what each removal would free. What is removed can be computed or trained again, and
runs are marked as deleted in MLflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.data.cache import cache_folder
from pipeline.entries.command_line.plans import CleanPlan
from pipeline.runs.command import Command
from pipeline.runs.resuming import stopped
from pipeline.system.disk.files import storage_faults
from pipeline.system.progress import doing
from pipeline.system.text import count_of, in_columns
from pipeline.tracking import Tracking
from pipeline.tracking.disk import DELETED, FAILED, KEPT, TRIALS, StoredRun, size_of
from pipeline.training.prefix.cache import clear


def clean_entry(command: Command, plan: CleanPlan) -> pd.DataFrame:
    """Entry point clean.

    Raises:
        StorageError: files cannot be removed.
    """
    tracking = Tracking.connect("clean", files=False)
    with tracking.explained():
        cache = cache_folder(plan.settings)
        with doing("adding up files"):
            runs = tracking.on_disk()
            table = _table(cache, runs)
        command.say(f"{in_columns(table)}\n")
        command.say(
            "runs without files are not counted; a run's files lie where its experiment keeps "
            "artifacts: by default in mlruns, in the folder where the experiment was made. A new "
            "experiment keeps the files of its runs elsewhere: "
            "mlflow experiments create -n NAME --artifact-location FOLDER"
        )
        if not plan.remove:
            command.say("nothing was removed: -P remove=cache, trials, failed, or several: a,b")
        with storage_faults("changes", cache):
            if "cache" in plan.remove:
                command.say(f"cache: removed {_size(clear(cache / 'prefix'))}")
            if FAILED in plan.remove:  # as long as their runs are there to be asked
                freed = stopped.clear(stopped.unfinished_folder(plan.settings), tracking)
                command.say(f"states of stopped trainings: removed {_size(freed)}")
            for what in (TRIALS, FAILED):
                if what in plan.remove:
                    command.say(f"{what}: removed {_discard(tracking, runs, what)}")
    return table


def _discard(tracking: Tracking, runs: Sequence[StoredRun], what: str) -> str:
    """Remove the runs of a kind; returns what that has freed, in words."""
    chosen = [run for run in runs if run.what == what]
    before = sum(run.size_bytes for run in chosen)
    for run in chosen:
        tracking.discard(run)
    after = sum(run.size_bytes for run in chosen)
    return f"{_size(before - after)} of {count_of(len(chosen), 'run')} marked as deleted in MLflow"


def _table(cache: Path, runs: Sequence[StoredRun]) -> pd.DataFrame:
    """What there is, where, its size, and how to remove it."""
    import torch

    of_kind = {what: [run for run in runs if run.what == what] for what in (TRIALS, FAILED)}
    of_kind |= {what: [run for run in runs if run.what == what] for what in (DELETED, KEPT)}
    says = {
        TRIALS: ("trials of studies", "-P remove=trials"),
        FAILED: ("failed and stopped runs", "-P remove=failed"),
        DELETED: ("runs deleted in MLflow", "mlflow gc"),
        KEPT: ("other runs", "delete them in MLflow, then mlflow gc"),
    }
    rows: list[tuple[str, object, int, str]] = [
        ("frozen outputs", cache / "prefix", size_of(cache / "prefix"), "-P remove=cache"),
        ("data sets", cache / "data", size_of(cache / "data"), "by hand"),
    ]
    states = cache / stopped.FOLDER
    rows.append(("states of stopped trainings", states, size_of(states), "-P remove=failed"))
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    rows.append(("weights", hub, size_of(hub), "by hand"))
    for what, (name, how) in says.items():
        size = sum(run.size_bytes for run in of_kind[what])
        rows.append((f"{name} ({len(of_kind[what])})", _place(of_kind[what]), size, how))
    return pd.DataFrame(
        [(name, _size(size), str(where), how) for name, where, size, how in rows],
        columns=["what", "size", "where", "to remove"],
    )


def _place(runs: Sequence[StoredRun]) -> str:
    """The folder that holds the artifacts of these runs."""
    tops = {str(folder.parents[1]) for run in runs for folder in run.folders[:1]}
    return ", ".join(sorted(tops)[:2]) or "-"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
