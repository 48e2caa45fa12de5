"""Names are shown as they are written, and never steer a terminal or a page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.system.text import (
    as_markdown,
    data_option,
    first_of,
    fixed,
    is_unicode,
    normalised,
    one_line,
    printable,
)


@pytest.mark.parametrize("text", ["", "cat", "naïve café", "中文", "🙂", "$10_$20", "a\tb\nc"])
def test_ordinary_text_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert is_unicode(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\rb", r"a\x0db"),
        ("nul\x00", r"nul\x00"),
        ("\x9b31m", r"\x9b31m"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
    ],
)
def test_what_would_steer_the_terminal_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert is_unicode(text) is ("caf" not in text)
    assert one_line(f"two\nlines\tand {text}") == rf"two\nlines\tand {shown}"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("three_stage, data_seed", "three_stage, data_seed"),
        ("gain +0.50 pp (95%): P(gain) > 0.9", r"gain +0.50 pp (95%): P(gain) \> 0.9"),
        ("*bold* _it_", r"\*bold\* \_it\_"),
        ("<b>x</b>", r"\<b\>x\</b\>"),
        ("[a](javascript:b)", r"\[a\](javascript:b)"),
        ("`tick` ~~x~~ &amp; $x$", r"\`tick\` \~\~x\~\~ \&amp; \$x\$"),
        ("two\nlines", "two lines"),
        ("back\\slash", r"back\\slash"),
    ],
)
def test_nothing_in_a_name_is_markdown(text: str, escaped: str) -> None:
    assert as_markdown(text) == escaped


def test_the_first_of_many_are_named_and_the_others_counted() -> None:
    assert first_of(["a", "b"]) == "a, b"
    assert first_of([*"abcde"], 3) == "a, b, c and 2 more"


def test_a_folder_is_shown_as_it_is_to_be_typed() -> None:
    assert data_option(Path("/data/flowers")) == "-P data=/data/flowers"
    assert data_option(Path("/data/my flowers")) == "-P data='/data/my flowers'"


def test_a_mac_writes_the_same_name_in_two_characters() -> None:
    assert normalised("cafe\u0301") == normalised("café") != normalised("cafe")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.30261, "2.3026"), (0.0, "0.0000"), (999.9, "999.9000"), (1.686e29, "1.7e+29")],
)
def test_a_loss_that_explodes_is_shown_in_two_digits(value: float, shown: str) -> None:
    assert fixed(value, 4) == shown
    assert fixed(float("nan"), 4) == "nan"
