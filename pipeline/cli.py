"""The command line: one subcommand for each entry point of MLproject.

    python -m pipeline stage3 --data ./my-images --epochs 20 --stage1.lr 0.01

In: `--key value` for every setting. Exit codes: 0 done, 2 a fault that the user can mend (one line
on stderr, no traceback), 130 stopped by Ctrl-C or SIGTERM. torch and MLflow are imported only once
the settings are known to be good.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.entries.command_line.parser import parse
from pipeline.entries.command_line.table import perform
from pipeline.errors import PipelineError
from pipeline.settings.entry import STORAGE
from pipeline.system import progress
from pipeline.system.disk.scratch import own_temporary_folder, sweep_folders
from pipeline.system.disk.shelf import new_command
from pipeline.system.interrupts import asked_early, stopped_by_signals
from pipeline.system.network.addresses import without_password
from pipeline.system.text import fixed, printable
from pipeline.system.variables import check_variables
from pipeline.tracking.keys import TRAIN_ACC, TRAIN_LOSS, VAL_ACC, VAL_LOSS

if TYPE_CHECKING:
    from pipeline.settings.schedules import Stage
    from pipeline.tracking.history import History


def _epoch_in_words(stage: Stage, history: History) -> str:
    row = history.rows[-1]
    return (
        f"stage {stage.number} epoch {len(history)}/{history.planned} | "
        f"train loss {fixed(row[TRAIN_LOSS], 4)} acc {row[TRAIN_ACC]:.2%} | "
        f"val loss {fixed(row[VAL_LOSS], 4)} acc {row[VAL_ACC]:.2%}"
    )


def run(name: str, options: Mapping[str, str]) -> None:
    """Do what an entry point does, its lines on the terminal."""
    check_variables()
    sweep_folders()
    new_command()
    with own_temporary_folder(), progress.shown() as print_line:
        _run(name, options, lambda line: print_line(printable(line)))


def _run(name: str, options: Mapping[str, str], say: Callable[[str], None]) -> None:
    storage = options.get("storage", "")
    if os.environ.get("MLFLOW_RUN_ID") and without_password(storage) != storage:
        say(
            "note: `mlflow run` has written storage= with its password into the run's parameters: "
            f"name it in {STORAGE} instead of on the command line"
        )
    perform(name, options, say, lambda *epoch: say(_epoch_in_words(*epoch)))


def _notes(err: BaseException) -> str:
    return "".join(f" ({note})" for note in getattr(err, "__notes__", []))


def main(
    argv: Sequence[str] | None = None, *, handle_signals: Callable[..., Any] = signal.signal
) -> int:
    """Run the command line; returns the exit code."""
    or_failed = ", or FAILED by `mlflow run`" if os.environ.get("MLFLOW_RUN_ID") else ""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows another
            stream.reconfigure(errors="replace")
    try:
        with stopped_by_signals(handle_signals):
            try:
                run(*parse(argv))
            except Exception as err:
                if isinstance(err, PipelineError) or not asked_early():
                    raise
                raise KeyboardInterrupt from err
    except PipelineError as err:
        for line in str(err).splitlines():
            print(printable(f"error: {line}{_notes(err)}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our lines has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as err:
        state = _notes(err) or f": what ran is marked KILLED{or_failed}"
        print(f"stopped{state}; the same command goes on", file=sys.stderr)
        return 130
    return 0
