"""Environment variables of our own: what each holds, its default, and a check of all of them.

In: the environment. Out: a value of the right kind, or a fault that names the variable; a command
checks them all before it does anything. Not covered: variables of MLflow, Optuna and PyTorch.
"""

from __future__ import annotations

import math
import os

from pipeline.errors import SettingsError

BEAT, LEASE = "UNFREEZE_BEAT_S", "UNFREEZE_LEASE_S"
"""Seconds between two signs of life, and without one until a process counts as dead. All commands
on a store need the same values."""
SERVER_WAIT = "UNFREEZE_SERVER_WAIT_S"
"""Seconds that a command waits for a server that is away."""
KEEP_SHARE = "UNFREEZE_KEEP_SHARE"
"""What keeping states may cost, as a share of the time trained; 0: none is kept."""
KERNELS = "UNFREEZE_KERNELS"
"""`plain`: every convolution by PyTorch's own kernel, to check ours against."""
_NUMBERS = {BEAT: 15.0, LEASE: 60.0, SERVER_WAIT: 600.0, KEEP_SHARE: 0.02}
_POSITIVE = {BEAT, LEASE}
_WORDS = {KERNELS: ("fast", "plain")}


def number(name: str) -> float:
    """The value of a variable that holds a number.

    Raises:
        SettingsError: the value is none, or out of range.
    """
    given, default = os.environ.get(name, "").strip(), _NUMBERS[name]
    try:
        value = float(given or default)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and name in _POSITIVE):
        least = "above 0" if name in _POSITIVE else "from 0 on"
        raise SettingsError(
            f"{name}={given}: write a number {least}, such as {default:g}, or unset it"
        )
    return value


def word(name: str) -> str:
    """The value of a variable that holds a word.

    Raises:
        SettingsError: the word is unknown.
    """
    default, other = _WORDS[name]
    given = os.environ.get(name, "").strip() or default
    if given not in (default, other):
        raise SettingsError(f"{name}={given}: write {default} or {other}, or unset it")
    return given


def check_variables() -> None:
    """Read all of them.

    Raises:
        SettingsError: one of them is none of its values.
    """
    for name in _NUMBERS:
        number(name)
    if number(LEASE) < 2 * number(BEAT):
        raise SettingsError(
            f"{LEASE}={number(LEASE):g} is less than two signs of life, every {number(BEAT):g} s: "
            f"write {2 * number(BEAT):g} or more, or unset {LEASE} and {BEAT}"
        )
    for name in _WORDS:
        word(name)
