"""Variables of our own: their defaults, and values that are none."""

from __future__ import annotations

import pytest

from pipeline.cli import main
from pipeline.errors import SettingsError
from pipeline.system.variables import (
    BEAT,
    KEEP_SHARE,
    KERNELS,
    LEASE,
    SERVER_WAIT,
    check_variables,
    number,
    word,
)

NUMBERS = {BEAT: 15, LEASE: 60, SERVER_WAIT: 600, KEEP_SHARE: 0.02}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_has_a_default_and_a_range(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, value in ((" ", NUMBERS[name]), ("2.5", 2.5), (" 1e1 ", 10)):
        monkeypatch.setenv(name, text)
        assert number(name) == value
    for text in ("-1", "nan", "inf", "much"):
        monkeypatch.setenv(name, text)
        with pytest.raises(SettingsError, match=f"{name}={text}: .*unset it"):
            check_variables()


def test_nobody_waits_for_no_time_between_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEEP_SHARE, "0")
    monkeypatch.setenv(SERVER_WAIT, "0")
    check_variables()
    monkeypatch.setenv(BEAT, "0")
    with pytest.raises(SettingsError, match=f"{BEAT}=0: write a number above 0"):
        check_variables()


def test_a_lease_is_longer_than_two_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE, "5")
    with pytest.raises(SettingsError, match=f"{LEASE}=5 is less than two .*write 30 or more"):
        check_variables()
    monkeypatch.setenv(BEAT, "2")
    check_variables()


def test_a_word_is_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert word(KERNELS) == "fast"
    monkeypatch.setenv(KERNELS, "plain")
    assert word(KERNELS) == "plain"


@pytest.mark.parametrize("name", [*NUMBERS, KERNELS])
def test_a_command_refuses_before_it_does_anything(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "abc")
    assert main(["clean", "--cache_dir=nowhere"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: {name}=abc: ")
    assert err.count("\n") == 1
