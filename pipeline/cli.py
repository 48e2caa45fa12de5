"""The command line: one subcommand for each entry point of MLproject.

    python -m pipeline stage3 --data ./my-images --epochs 20 --stage1.lr 0.01

In: `--key value` for every setting of `config.py`. Exit codes: 0 done, 2 a fault that the user can
mend (one line on stderr, no traceback), 130 stopped by Ctrl-C or SIGTERM. torch and MLflow are
imported only once the settings are known to be good.
"""

from __future__ import annotations

import _thread
import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.arms import comparison_of
from pipeline.config import load_settings, nearest, preset_names
from pipeline.errors import PipelineError, SettingsError
from pipeline.search_space import plan_of
from pipeline.settings import (
    DECIDE_KEYS,
    MAX_STAGES,
    RUN_KEYS,
    STAGE_KEYS,
    THRESHOLD_KEYS,
    TRAIN_KEYS,
    TUNE_KEYS,
    describe_field,
    model_of,
)

if TYPE_CHECKING:
    from pipeline.stages import Stage
    from pipeline.training import EpochResult

ENTRY_POINTS = {
    "main": "every stage of the schedule, and a run that sums them up",
    **{
        f"stage{n}": f"stage {n}; missing parent stages are trained first"
        for n in range(1, MAX_STAGES + 1)
    },
    "tune": "Optuna studies of each stage's settings; any number of these commands share them",
    "decide": "is stage 3 justified? paired runs, look by look, to a verdict and its report",
    "evaluate": "accuracy of a finished stage run on the test split",
    "gate": "has stage 3 been earned? read from finished stage-2 runs, or from result lines",
}
STAGE_ENTRIES = tuple(f"stage{n}" for n in range(1, MAX_STAGES + 1))
OWN_WORDS = ("config", "parent_run_id", "run_id", "lines", "tuned", "storage", "joins")
"""What the command itself takes, beside settings."""
STORAGE_HELP = "an Optuna URL such as postgresql://host/db (default: optuna.db beside MLflow's)"
UNSET = {"", "auto", "none"}
"""What MLproject passes for a parameter that was not given."""


class _Parser(argparse.ArgumentParser):
    """argparse, its faults in this project's form."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}: see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """The parser, its help made from the settings' own descriptions."""
    parser = _Parser(
        prog="python -m pipeline",
        description="How far should a pretrained image classifier be unfrozen?",
    )
    commands = parser.add_subparsers(dest="entry_point", required=True, metavar="entry point")
    for name, about in ENTRY_POINTS.items():
        command = commands.add_parser(
            name,
            help=about,
            description=about,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        if name == "evaluate":
            command.add_argument("--run_id", required=True, help="the stage run to evaluate")
            for key in ("device", "precision", "cache_dir"):
                command.add_argument(f"--{key}", help=_help(key))
            continue
        if name == "gate":
            command.add_argument("--run_id", help="a finished stage-2 run; siblings are found")
            command.add_argument("--lines", help="or a file with the lines `Stage-k Best results`")
            for key in THRESHOLD_KEYS:
                command.add_argument(f"--{key}", help=_help(key))
            continue
        command.add_argument("--config", help="a YAML file of settings, weaker than the options")
        command.add_argument("--storage", help=f"where studies are kept: {STORAGE_HELP}")
        if name in ("tune", "decide"):
            _add_study(command, name)
        else:
            command.add_argument(
                "--tuned", help="take the best settings of the finished study (on/off)"
            )
        if name in ("stage2", "stage3"):
            command.add_argument(
                "--parent_run_id",
                help="the stage run to continue from; auto: found by content or trained",
            )
        _add_settings(command, name)
    return parser


def _add_study(command: argparse.ArgumentParser, entry_point: str) -> None:
    if entry_point == "decide":
        decision = command.add_argument_group("the decision")
        for key in DECIDE_KEYS:
            decision.add_argument(f"--{key}", help=_help(key))
    study = command.add_argument_group("the study, if there is one")
    for key in TUNE_KEYS:
        if entry_point == "tune" or key not in ("stage", "space", "timeout"):
            study.add_argument(f"--{key}", help=_help(key))
    command.add_argument("--joins", help=argparse.SUPPRESS)


def _add_settings(command: argparse.ArgumentParser, entry_point: str) -> None:
    run = command.add_argument_group("what is run")
    for key in RUN_KEYS:
        extra = f" [{', '.join(preset_names())}]" if key == "preset" else ""
        run.add_argument(f"--{key}", help=_help(key) + extra)
    target = "every stage" if entry_point in ("main", "tune", "decide") else entry_point
    train = command.add_argument_group(
        f"how {target} is trained", "the same for one stage: --stage1.lr, --stage2.epochs, ..."
    )
    for key in TRAIN_KEYS:
        train.add_argument(f"--{key}", help=_help(key))
    for key in STAGE_KEYS:
        train.add_argument(f"--{key}", help=argparse.SUPPRESS)


def _help(key: str) -> str:
    default = model_of(key).model_fields[key].default
    shown = (
        {True: "on", False: "off"}.get(default, default) if isinstance(default, bool) else default
    )
    return f"{describe_field(key)} (default {'empty' if shown == '' else shown})".replace(
        "%", "%%"
    )


def parse(argv: Sequence[str] | None) -> tuple[str, dict[str, str]]:
    """The entry point and what was said for it, key -> text.

    Raises:
        SettingsError: an option that is not known.
    """
    known, unknown = build_parser().parse_known_args(argv)
    options = {key: value for key, value in vars(known).items() if key != "entry_point"}
    if unknown:
        extra = {word[2:].partition("=")[0]: "?" for word in unknown if word.startswith("--")}
        if known.entry_point not in ("evaluate", "gate"):
            load_settings(extra)  # says which setting is not known, and the nearest that is
        hint = nearest(next(iter(extra), ""), _words_of(known.entry_point)) or ": see --help"
        raise SettingsError(f"unexpected words on the command line: {' '.join(unknown)}{hint}")
    return known.entry_point, options


def _words_of(entry_point: str) -> set[str]:
    commands = next(
        a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    actions = commands.choices[entry_point]._actions
    return {word.removeprefix("--") for action in actions for word in action.option_strings}


class Progress:
    """An epoch's numbers: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, stage: Stage, epochs: int, result: EpochResult) -> None:
        """Show one epoch."""
        numbers = (
            f"train loss {result.train.loss:.4f} acc {result.train.acc:.2%} | "
            f"val loss {result.val.loss:.4f} acc {result.val.acc:.2%}"
        )
        if not sys.stderr.isatty():
            print(f"stage {stage.number} epoch {result.epoch}/{epochs} | {numbers}", flush=True)
            return
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=epochs, desc=f"stage {stage.number}", unit="epoch", leave=False)
        self._bar.update(result.epoch - self._bar.n)
        self._bar.set_postfix_str(numbers)
        if result.epoch == epochs:
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
        print(line, flush=True)

    config = given["config"] or None
    if entry_point == "evaluate":
        from pipeline.evaluate import evaluate_entry

        evaluate_entry(given["run_id"], options, say)
        return
    if entry_point == "gate":
        from pipeline.gate_report import gate_entry

        gate_entry(given["run_id"], given["lines"], options, say)
        return
    target = int(entry_point.removeprefix("stage")) if entry_point in STAGE_ENTRIES else None
    tuned = _switch("tuned", own["tuned"])
    if entry_point == "tune":
        plan_of(options, config)
    elif entry_point == "decide":
        comparison_of(options, config)
    else:
        load_settings(options, config=config, target=None if given["parent_run_id"] else target)

    from pipeline.entry_points import Command, main_entry, stage_entry

    command = Command(
        options,
        config,
        given["parent_run_id"] or None,
        tuned,
        given["storage"],
        given["joins"],
        say,
        progress,
    )
    if entry_point == "tune":
        from pipeline.tuning.tune import tune_entry

        tune_entry(command)
    elif entry_point == "decide":
        from pipeline.decide import decide_entry

        decide_entry(command)
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


def _stop(number: int, frame: object) -> None:
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, signal.SIG_IGN)  # the run is being marked KILLED: let it finish
    raise KeyboardInterrupt


@contextmanager
def _ctrl_c_is_never_lost() -> Iterator[None]:
    """Stop again where Python dropped a KeyboardInterrupt because it came inside a finaliser."""
    before = sys.unraisablehook

    def look(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            signal.signal(signal.SIGINT, _stop)
            threading.Timer(0.05, _thread.interrupt_main).start()
        else:
            before(dropped)

    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = before


def main(
    argv: Sequence[str] | None = None, *, handle_signals: Callable[..., Any] = signal.signal
) -> int:
    """Run the command line; returns the exit code."""
    try:
        handle_signals(signal.SIGINT, _stop)
        handle_signals(signal.SIGTERM, _stop)
        with _ctrl_c_is_never_lost():
            run(*parse(argv))
    except PipelineError as err:
        notes = "".join(f" ({note})" for note in getattr(err, "__notes__", []))
        for line in str(err).splitlines():
            print(f"error: {line}{notes}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the run is marked KILLED, finished stages will be reused", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
