"""Text of users shown as text: names of classes, folders and columns are never read as anything.

In: any text, or a table of it. Out: the same for a terminal, for Markdown, or cut to its first
items.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*<>\[\]&~$|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8; a name on disk in another encoding cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def normalised(name: str) -> str:
    """The name by which two are one: `é` may be written as one character or, by a Mac, as two."""
    return unicodedata.normalize("NFC", name)


def printable(text: str) -> str:
    r"""The text as a terminal may show it: what would steer the terminal is written as `\x1b`.

    Line ends and tabs stay; bytes that are not UTF-8 become `\xe9`, other surrogates `\ud800`.
    """
    text = _SURROGATE.sub(_escaped, text)
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    is_byte = 0xDC80 <= number <= 0xDCFF  # of a file's name, as Python keeps it
    return f"\\x{number - 0xDC00:02x}" if is_byte else f"\\u{number:04x}"


def one_line(text: str) -> str:
    r"""`printable` without line ends and tabs, which become `\n` and `\t`."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def as_text(name: str) -> str:
    """A name that files and databases can hold: bytes that are not UTF-8 are spelled out."""
    return name if is_unicode(name) else one_line(name)


def as_markdown(text: str) -> str:
    """The text such that Markdown shows it letter by letter: no emphasis, link, tag, formula."""
    escaped = _MARKDOWN.sub(lambda found: f"\\{found[0]}", text)
    return escaped.replace("\r", " ").replace("\n", " ")


def in_columns(table: pd.DataFrame) -> str:
    """A table as aligned columns for a terminal."""
    return table.to_string(index=False, col_space=[len(str(name)) + 1 for name in table])


def data_option(path: Path) -> str:
    """What to type for a folder of images."""
    return f"-P data={shlex.quote(one_line(str(path)))}"


def first_of(items: Sequence[str], count: int = 10) -> str:
    """`a, b, c`, or the first `count` of them `and 5 more`."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(one_line(item) for item in items[:count]) + more


def natural(name: str) -> tuple[bool, float, str]:
    """A key by which numbers are sorted by size, before words."""
    is_number = name.isdecimal()  # `²` is a digit and no number
    return (not is_number, float(name) if is_number else 0.0, name)


def fixed(value: float, digits: int) -> str:
    """`2.3026`; two digits from a thousand on, as losses are that explode: `1.7e+29`."""
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.2g}"


def changed_by(value: float, digits: int, unit: str) -> str:
    """`rose by 1.8 points`, or `stayed the same` where no digit that is shown differs from 0."""
    size = fixed(abs(value), digits)
    if float(size) == 0:
        return "stayed the same"
    return f"{'rose' if value > 0 else 'fell'} by {size} {unit}"


def as_sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def numbered(what: str, numbers: Sequence[int]) -> str:
    """`draw 0`, `draws 0, 1, 2`."""
    return f"{what}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def count_of(number: int, what: str) -> str:
    """`1 image`, `2 images`, `2 classes`."""
    several = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number:,} {what if number == 1 else several}"
