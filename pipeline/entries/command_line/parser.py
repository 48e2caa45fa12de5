"""The words of the command line: one subcommand for each row of the table of entry points.

In: `--key value`, or `-P key=value`, for every setting. Out: the entry point's name, and its
options, key -> text. Help is made from the settings' own descriptions.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel

from pipeline.entries.command_line.entry_point import EntryPoint
from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.errors import SettingsError
from pipeline.settings.describe import RUN_GROUPS, default_in_words, meaning
from pipeline.settings.entry import CommandSettings, TuneSettings
from pipeline.settings.layers import control_key, hint_for, split_stage_key
from pipeline.settings.run import TRAIN_KEYS, ExperimentSettings, TrainSettings
from pipeline.settings.thresholds import Thresholds
from pipeline.system.disk.yaml_file import did_you_mean
from pipeline.system.text import is_unicode, printable


class _Parser(argparse.ArgumentParser):
    """argparse, its faults in this project's form."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}: see `{self.prog} --help`")


def build_parser(stage_keys: Iterable[str] = ()) -> argparse.ArgumentParser:
    """The parser of the whole command line; `stage_keys`: settings of single stages to take."""
    parser = _Parser(
        prog="unfreeze" if Path(sys.argv[0]).name == "unfreeze" else "python -m pipeline",
        description="How far should a pretrained image classifier be unfrozen?",
    )
    commands = parser.add_subparsers(dest="entry_point", required=True, metavar="entry point")
    for row in ENTRY_POINTS.values():
        command = commands.add_parser(
            row.name,
            help=row.help,
            description=row.help,
            epilog=_without_effect(row),
            usage="%(prog)s [--setting VALUE ...]",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        if row.trains:
            command.add_argument(
                "--config", metavar="FILE", help="a YAML file of settings, weaker than options"
            )
            for key in _taken(row, stage_keys):
                command.add_argument(f"--{key}", help=argparse.SUPPRESS)
        left = set(row.keys)
        for title, model in _groups(row):
            keys = [key for key in model.model_fields if key in left]
            left -= set(keys)
            if not keys:
                continue
            group = command.add_argument_group(title)
            if model is TrainSettings:
                group.description = _of_single_stages(row)
            for key in keys:
                shown = _help(key, model, row) if key in row.offered else argparse.SUPPRESS
                group.add_argument(f"--{key}", metavar="VALUE", help=shown)
        for key in row.refused:
            if key not in row.keys:
                command.add_argument(f"--{key}", help=argparse.SUPPRESS)
    return parser


def _taken(row: EntryPoint, stage_keys: Iterable[str]) -> Iterator[str]:
    """The settings of single stages that an entry point takes; a control has only `decide`."""
    return (key for key in stage_keys if row.has_control or not control_key(key))


def _of_single_stages(row: EntryPoint) -> str:
    control = "; for the control's last stage: --control.lr, ..." if row.has_control else ""
    return f"for one stage alone: --stage1.lr, --stage2.epochs, ...{control}"


def _without_effect(row: EntryPoint) -> str:
    return f"taken, but without an effect on {row.name}: {', '.join(row.silent)}" * bool(
        row.silent
    )


def _groups(row: EntryPoint) -> Iterator[tuple[str, type[BaseModel]]]:
    """The settings of an entry point in the order of its help: title and model."""
    if row.own:
        yield f"what {row.name} does", row.own
    for title, model in RUN_GROUPS:
        if model is Thresholds:
            if row.study:
                yield "the studies, where arms are tuned", TuneSettings
            yield "where studies are kept", CommandSettings
        if model is TrainSettings:
            title = f"how {row.trains} is trained"
        elif model is ExperimentSettings and "run_id" in row.keys:
            title = "where the run's images and weights are now"
        yield title, model


def _help(key: str, model: type[BaseModel], row: EntryPoint) -> str:
    default = row.defaults.get(key, default_in_words(key, model))
    return f"{meaning(key, model)}{f' (default: {default})' if default else ''}".replace("%", "%%")


def parse(argv: Sequence[str] | None) -> tuple[str, dict[str, str]]:
    """The entry point's name and its options, key -> text.

    Raises:
        SettingsError: an entry point or an option that is not known.
    """
    words = list(_as_options(sys.argv[1:] if argv is None else argv))
    named = words[0] if words and not words[0].startswith("-") else None
    if named is not None and named not in ENTRY_POINTS:
        hint = did_you_mean(named, ENTRY_POINTS) or ": name one of these"
        raise SettingsError(
            f"unknown entry point {printable(named)} (there are {', '.join(ENTRY_POINTS)}){hint}"
        )
    typed = Counter(word[2:].partition("=")[0] for word in words if word.startswith("--"))
    if twice := [key for key, times in typed.items() if times > 1]:
        raise SettingsError(
            f"{', '.join(twice)} (command line) is given more than once: leave all but one out"
        )
    known, unknown = build_parser(_stage_keys(words)).parse_known_args(words)
    options = dict(vars(known))
    entry_point = options.pop("entry_point")
    for key, value in options.items():
        if not is_unicode(value):
            raise SettingsError(
                f"{key}={printable(value)} (command line) is not UTF-8 text: rename what it names"
            )
    if unknown:
        lines = [_unknown(key, entry_point) for key in _keys_among(unknown)]
        stray = f"unexpected words on the command line: {printable(' '.join(unknown))}: "
        pair = next((word for word in unknown if "=" in word), None)
        stray += f"write -P {printable(pair)}" if pair else "see --help"
        raise SettingsError("\n".join(lines) or stray)
    return entry_point, options


def _as_options(given: Iterable[str]) -> Iterator[str]:
    """`-P key=value`, as `mlflow run` takes it and as messages put it, as `--key=value`.

    So is `--key value`, as `mlflow run` passes it on: a value may begin with a dash.
    """
    words = deque(given)
    while words:
        word = words.popleft()
        if not word.startswith("-P"):
            takes = word.startswith("--") and "=" not in word and word != "--help"
            apart = takes and words and not words[0].startswith(("--", "-P"))
            yield f"{word}={words.popleft()}" if apart else word
            continue
        pair = word[2:] or (words.popleft() if words else "")
        key, has_value, _ = pair.partition("=")
        if not (key and has_value) or key.startswith("-"):
            got = printable(f"-P {pair}".strip())
            raise SettingsError(f"{got} (command line) is no setting: write -P key=value")
        yield f"--{pair}"


def _keys_among(words: Iterable[str]) -> list[str]:
    keys = (word[2:].partition("=")[0] for word in words if word.startswith("--"))
    return list(dict.fromkeys(keys))


def _stage_keys(words: Iterable[str]) -> list[str]:
    """The settings of single stages, of any number or of the control, among these words."""
    split = {key: split_stage_key(key) for key in _keys_among(words)}
    of_stages = [key for key, (number, name) in split.items() if number and name in TRAIN_KEYS]
    return of_stages + [key for key in split if control_key(key)]


def _unknown(key: str, entry_point: str) -> str:
    """Why an option is refused, and what was probably meant."""
    others = [row.name for row in ENTRY_POINTS.values() if key in row.offered]
    if control_key(key):
        others = [row.name for row in ENTRY_POINTS.values() if row.has_control]
    if others:
        return (
            f"setting {key} (command line) is one of {', '.join(others)}, not of {entry_point}: "
            "leave it out"
        )
    number, name = split_stage_key(key)
    if number and name in TRAIN_KEYS:
        return f"{key} (command line) has no effect, {entry_point} trains no stage: leave it out"
    hint = hint_for(key, ENTRY_POINTS[entry_point].keys)
    return f"unknown setting {key} (command line){hint}"
