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
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.comparing.arms import comparison_of
from pipeline.comparing.grid import grid_of
from pipeline.entries.plans import pretrain_plan, rank_plan
from pipeline.errors import PipelineError, SettingsError
from pipeline.settings.layers import load_settings
from pipeline.settings.parser import OWN_WORDS, STAGE_ENTRIES, STORAGE, UNSET, parse
from pipeline.settings.search_space import plan_of
from pipeline.system.addresses import without_password
from pipeline.system.interrupts import end_with_parent, stopped_by_signals
from pipeline.system.text import printable
from pipeline.tracking.keys import TRAIN_ACC, TRAIN_LOSS, VAL_ACC, VAL_LOSS

if TYPE_CHECKING:
    from pipeline.settings.schedules import Stage
    from pipeline.tracking.history import History

CHECKS: dict[str, Callable[[dict[str, str], str | None], object]] = {
    "tune": plan_of,
    "decide": comparison_of,
    "compare": grid_of,
    "rank_blocks": rank_plan,
    "pretrain": pretrain_plan,
}
"""What understands an entry point's settings, before anything slow is imported."""
ENTRIES = {
    "tune": ("pipeline.tuning.work", "tune_entry"),
    "decide": ("pipeline.entries.decide", "decide_entry"),
    "compare": ("pipeline.entries.compare", "compare_entry"),
    "rank_blocks": ("pipeline.entries.rank_blocks", "rank_entry"),
    "pretrain": ("pipeline.entries.pretrain", "pretrain_entry"),
}
"""Where an entry point's work is done."""


class Progress:
    """An epoch's numbers: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, stage: Stage, history: History) -> None:
        """Show the last epoch."""
        row, epoch, epochs = history.rows[-1], len(history), history.planned
        numbers = (
            f"train loss {row[TRAIN_LOSS]:.4f} acc {row[TRAIN_ACC]:.2%} | "
            f"val loss {row[VAL_LOSS]:.4f} acc {row[VAL_ACC]:.2%}"
        )
        if not sys.stderr.isatty():
            print(f"stage {stage.number} epoch {epoch}/{epochs} | {numbers}", flush=True)
            return
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=epochs, desc=f"stage {stage.number}", unit="epoch", leave=False)
        self._bar.update(epoch - self._bar.n)
        self._bar.set_postfix_str(numbers)
        if epoch == epochs:
            self.close()

    def close(self) -> None:
        """Remove the bar, so that a line can be printed."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def run(entry_point: str, options: dict[str, str]) -> None:
    """Do what the entry point says; settings are checked before anything slow is imported."""
    own = {key: options.pop(key, "") for key in OWN_WORDS}
    given = {key: "" if value in UNSET else value for key, value in own.items()}
    if options.get("preset") in UNSET:
        del options["preset"]
    progress = Progress()

    def say(line: str) -> None:
        progress.close()
        print(printable(line), flush=True)

    config = given["config"] or None
    if entry_point == "evaluate":
        from pipeline.runs.scoring import evaluate_entry

        evaluate_entry(given["run_id"], options, say)
        return
    if entry_point == "gate":
        from pipeline.entries.gate import gate_entry

        gate_entry(given["run_id"], given["lines"], options, say)
        return
    target = int(entry_point.removeprefix("stage")) if entry_point in STAGE_ENTRIES else None
    tuned = _switch("tuned", own["tuned"])
    if check := CHECKS.get(entry_point):
        check(options, config)
    else:
        load_settings(options, config=config, target=None if given["parent_run_id"] else target)

    if os.environ.get("MLFLOW_RUN_ID") and without_password(given["storage"]) != given["storage"]:
        say(
            "note: `mlflow run` has written storage= with its password into the run's parameters: "
            f"name it in {STORAGE} instead of on the command line"
        )

    from pipeline.entries.chain import main_entry, stage_entry
    from pipeline.runs.command import Command

    command = Command(
        options,
        config,
        given["parent_run_id"] or None,
        tuned,
        given["storage"],
        given["joins"],
        given["run_id"],
        say,
        progress,
    )
    if command.joins:
        end_with_parent()
    if entry_point in ENTRIES:
        module, name = ENTRIES[entry_point]
        getattr(import_module(module), name)(command)
    elif target is None:
        main_entry(command)
    else:
        stage_entry(command, target)


def _switch(key: str, word: str) -> bool:
    """What an on/off option says; off where it was not given."""
    states = {"": False, "off": False, "false": False, "0": False, "none": False}
    states |= {"on": True, "true": True, "1": True}
    if word.lower() not in states:
        raise SettingsError(f"{key} is on or off, got {word!r} (command line)")
    return states[word.lower()]


def _notes(err: BaseException) -> str:
    return "".join(f" ({note})" for note in getattr(err, "__notes__", []))


def main(
    argv: Sequence[str] | None = None, *, handle_signals: Callable[..., Any] = signal.signal
) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows another
            stream.reconfigure(errors="replace")
    try:
        with stopped_by_signals(handle_signals):
            run(*parse(argv))
    except PipelineError as err:
        for line in str(err).splitlines():
            print(printable(f"error: {line}{_notes(err)}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our lines has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as err:
        said = _notes(err) or ": what ran is marked KILLED"
        print(f"stopped{said}; the same command reuses what is finished", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
