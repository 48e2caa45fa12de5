"""The words of the command line: one subcommand for each entry point of MLproject.

In: `--key value` for every setting of `settings.run`. Out: the entry point, and what was said for
it. Help is made from the settings' own descriptions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from pydantic import BaseModel

from pipeline.errors import SettingsError
from pipeline.settings.entry import (
    TUNE_KEYS,
    CompareSettings,
    DecideSettings,
    PretrainSettings,
    TuneSettings,
    describe_field,
    model_of,
)
from pipeline.settings.layers import nearest, preset_names
from pipeline.settings.run import (
    MAX_STAGES,
    PLACE_KEYS,
    RUN_KEYS,
    STAGE_KEYS,
    THRESHOLD_KEYS,
    TRAIN_KEYS,
)
from pipeline.system.text import is_unicode, printable

ENTRY_POINTS = {
    "main": "every stage of the schedule, and a run that sums them up",
    **{
        f"stage{n}": f"stage {n}; missing parent stages are trained first"
        for n in range(1, MAX_STAGES + 1)
    },
    "tune": "Optuna studies of each stage's settings; any number of these commands share them",
    "decide": "is stage 3 justified? paired runs, look by look, to a verdict and its report",
    "compare": "which schedule, on which backbone? paired draws at equal optimizer steps",
    "pretrain": "weights from scratch on labelled images, for those who have none",
    "evaluate": "accuracy of a finished stage run on the test split",
    "gate": "has stage 3 been earned? read from finished stage-2 runs, or from result lines",
}
STUDY_ENTRIES = ("tune", "decide", "compare")
OWN_GROUPS: dict[str, type[BaseModel]] = {
    "decide": DecideSettings,
    "compare": CompareSettings,
    "pretrain": PretrainSettings,
}
"""Settings that one entry point alone has, beside those of `tune`."""
STAGE_ENTRIES = tuple(f"stage{n}" for n in range(1, MAX_STAGES + 1))
OWN_WORDS = ("config", "parent_run_id", "run_id", "lines", "tuned", "storage", "joins")
"""What the command itself takes, beside settings."""
STORAGE = "OPTUNA_STORAGE"
"""Environment variable for `storage`, which Optuna's own command line knows too. Other users of a
machine see the words of a command, passwords among them, and not its environment."""
STORAGE_HELP = (
    "an Optuna URL: sqlite:///, postgresql://, or journal:/// before a file in a shared folder "
    f"(default: {STORAGE}, or optuna.db beside MLflow's)"
)
TUNED_HELP = (
    "take the best settings of the finished study (on/off)",
    "tune every arm first, on draws of its own (on/off)",
)
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
            _add_places(command)
            for key in ("device", "precision", "cache_dir"):
                command.add_argument(f"--{key}", help=_help(key))
            continue
        if name == "gate":
            command.add_argument("--run_id", help="a finished stage-2 run; siblings are found")
            command.add_argument("--lines", help="or a file with the lines `Stage-k Best results`")
            _add_places(command)
            for key in ("cache_dir", *THRESHOLD_KEYS):
                command.add_argument(f"--{key}", help=_help(key))
            continue
        _add_own_words(command, name)
        _add_settings(command, name)
    return parser


def _add_places(command: argparse.ArgumentParser) -> None:
    for key in PLACE_KEYS:
        command.add_argument(f"--{key}", help=f"{describe_field(key)}: as it is now, if it moved")


def _add_own_words(command: argparse.ArgumentParser, name: str) -> None:
    """What the command takes beside the settings of a run."""
    command.add_argument("--config", help="a YAML file of settings, weaker than the options")
    if name in STUDY_ENTRIES:
        _add_study(command, name)
    else:
        _add_own(command, name)
    if name != "pretrain":
        command.add_argument("--storage", help=f"where studies are kept: {STORAGE_HELP}")
    if name in ("main", "compare", *STAGE_ENTRIES):
        command.add_argument("--tuned", help=TUNED_HELP[name == "compare"])
    if name in STAGE_ENTRIES[1:]:
        command.add_argument(
            "--parent_run_id",
            help="the stage run to continue from; auto: found by content or trained",
        )


def _add_study(command: argparse.ArgumentParser, entry_point: str) -> None:
    _add_own(command, entry_point)
    left_out = set() if entry_point == "tune" else {"stage", "space", "timeout"}
    left_out |= {"draws"} if entry_point == "compare" else set()
    study = command.add_argument_group("the study, if there is one")
    for key in TUNE_KEYS:
        if key not in left_out:
            study.add_argument(f"--{key}", help=_help(key, TuneSettings))
    command.add_argument("--joins", help=argparse.SUPPRESS)


def _add_own(command: argparse.ArgumentParser, entry_point: str) -> None:
    if own := OWN_GROUPS.get(entry_point):
        group = command.add_argument_group(f"what {entry_point} does")
        for key in own.model_fields:
            group.add_argument(f"--{key}", help=_help(key, own))


def _add_settings(command: argparse.ArgumentParser, entry_point: str) -> None:
    run = command.add_argument_group("what is run")
    for key in RUN_KEYS:
        extra = f" [{', '.join(preset_names())}]" if key == "preset" else ""
        run.add_argument(f"--{key}", help=_help(key) + extra)
    target = "every stage" if entry_point in ("main", *STUDY_ENTRIES) else entry_point
    train = command.add_argument_group(
        f"how {target} is trained", "the same for one stage: --stage1.lr, --stage2.epochs, ..."
    )
    for key in TRAIN_KEYS:
        train.add_argument(f"--{key}", help=_help(key))
    for key in STAGE_KEYS:
        train.add_argument(f"--{key}", help=argparse.SUPPRESS)


def _help(key: str, model: type[BaseModel] | None = None) -> str:
    model = model or model_of(key)
    default = model.model_fields[key].default
    shown = (
        {True: "on", False: "off"}.get(default, default) if isinstance(default, bool) else default
    )
    return f"{describe_field(key, model)} (default {'empty' if shown == '' else shown})".replace(
        "%", "%%"
    )


def parse(argv: Sequence[str] | None) -> tuple[str, dict[str, str]]:
    """The entry point and what was said for it, key -> text.

    Raises:
        SettingsError: an option that is not known.
    """
    known, unknown = build_parser().parse_known_args(argv)
    options = {key: value for key, value in vars(known).items() if key != "entry_point"}
    for key, value in options.items():
        if not is_unicode(value):
            raise SettingsError(
                f"{key}={printable(value)} (command line) is not UTF-8 text: rename what it names"
            )
    if unknown:
        extra = [word[2:].partition("=")[0] for word in unknown if word.startswith("--")]
        lines = [_unknown(key, known.entry_point) for key in dict.fromkeys(extra)]
        raise SettingsError(
            "\n".join(lines)
            or f"unexpected words on the command line: {' '.join(unknown)}: see --help"
        )
    return known.entry_point, options


def _unknown(key: str, entry_point: str) -> str:
    """Why a setting is refused, and what was probably meant."""
    others = [name for name in ENTRY_POINTS if key in _words_of(name)]
    if others:
        return f"setting {key} (command line) is one of {', '.join(others)}, not of {entry_point}"
    hint = nearest(key, _words_of(entry_point)) or ": --help lists every setting"
    return f"unknown setting {key} (command line){hint}"


def _words_of(entry_point: str) -> set[str]:
    commands = next(
        a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    actions = commands.choices[entry_point]._actions
    return {word.removeprefix("--") for action in actions for word in action.option_strings}
