"""A CSV file of labels as rows of text: which column is the image, which the class.

In: a file as spreadsheets, Kaggle and Roboflow write them, with commas, semicolons, tabs or bars
between fields, with or without a first line of names; a column of classes, or a column a class
that holds 0 and 1. Out: a `LabelRow` for each image. Not covered: several labels an image.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipeline.data.folders.listing import image_endings
from pipeline.errors import DataError, first_line
from pipeline.system.text import count_of, first_of, normalised, one_line

_FILE = (
    *("file", "filename", "file_name", "image", "image_name", "image_id", "imageid", "image_path"),
    *("img", "img_name", "path", "filepath", "file_path", "id", "name"),
)
_LABEL = ("label", "labels", "class", "class_name", "classname", "category", "target")
_SPLIT = ("split", "set", "subset", "partition")
_SEPARATORS = ",;\t|"
_END = "\x01"
"""A line behind the last: an open quotation mark takes it in."""


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One line of a CSV file; `split` and `group` are empty where there is no such column."""

    line: int
    file: str
    label: str
    split: str
    group: str


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The rows of a CSV file.

    Attributes:
        rows: an image each.
        has_group: whether the column of groups that was asked for is there.
        note: which column names the images, where several could; else empty.
    """

    rows: list[LabelRow]
    has_group: bool
    note: str


class ColumnsError(DataError):
    """No columns of images and of labels can be told apart."""


def read_label_rows(
    path: Path,
    is_image: Callable[[str], bool],
    *,
    label_column: str = "",
    image_column: str = "",
    group: str = "",
) -> LabelTable:
    """The rows of a CSV file; `group` may name a column of it.

    `is_image`: whether a text is the name of an image that is there.

    Raises:
        ColumnsError: no such columns, or several that could be meant.
        DataError: the file cannot be read, or a row is not whole.
    """
    table, numbers = _table(path, is_image)
    file, note = _file_column(path, table, is_image, image_column, label_column)
    split = _named(table, _SPLIT)
    others = [name for name in table if name not in (file, split, group)]
    labels = _labels(path, table, others, label_column)
    for number, *cells in zip(numbers, table[file], labels, strict=True):
        if any(map(_ends_a_line, cells)):
            raise _unclosed(path, number)
    blank = [""] * len(numbers)
    columns = table[file], labels, table.get(split, blank), table.get(group, blank)
    rows = [
        LabelRow(line=number, file=one, label=normalised(label), split=part, group=together)
        for number, one, label, part, together in zip(numbers, *columns, strict=True)
    ]
    for what in ("label", "file"):
        if empty := [str(row.line) for row in rows if not getattr(row, what)]:
            raise DataError(
                f"{path}: {len(empty)} of {len(rows)} rows have no {what} (line "
                f"{first_of(empty, 5)}): fill the {what}s in, or remove the rows"
            )
    return LabelTable(rows=rows, has_group=group in table, note=note)


def _table(path: Path, is_image: Callable[[str], bool]) -> tuple[dict[str, list[str]], list[int]]:
    """The columns of a CSV file by their names, and the number of each row's line.

    Raises:
        ColumnsError: two columns of one name.
        DataError: no rows, or one with more or fewer fields than the first line.
    """
    lines = _lines_of(path)
    header = [cell.strip() for cell in lines[0][1]]
    known = {name.casefold() for name in header} & {*_FILE, *_LABEL}
    has_header = not any(map(_has_image_ending, header)) and (
        bool(known) or not any(map(is_image, header))
    )
    if not has_header:
        header = [f"column {number}" for number in range(1, len(header) + 1)]
    body = lines[1:] if has_header else lines
    if not body:
        raise DataError(f"{path}: no line beside the names of the columns: add a line an image")
    for number, cells in body:
        if len(cells) != len(header):
            if any(map(_ends_a_line, cells)):
                raise _unclosed(path, number)
            todo = "put text with separators in quotes"
            if len(cells) < len(header):
                todo = "write what is missing, or remove the line"
            raise DataError(
                f"{path}: line {number} has {count_of(len(cells), 'field')}, the first line has "
                f"{len(header)}: {todo}"
            )
    columns = [[cells[at].strip() for _, cells in body] for at in range(len(header))]
    table = dict(zip(header, columns, strict=True))
    if len(table) < len(header):
        raise ColumnsError(f"{path}: two columns have one name ({first_of(header)}): rename one")
    return table, [number for number, _ in body]


def _has_image_ending(cell: str) -> bool:
    return PurePath(cell).suffix.lower() in image_endings()


def _lines_of(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, each with its number, split into fields."""
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except OSError as err:
        raise DataError(f"cannot read {path} ({err.strerror}): make it readable") from None
    except UnicodeDecodeError as err:
        raise DataError(
            f"{path} is not UTF-8 text ({first_line(err)}): save it as CSV UTF-8"
        ) from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(f"{text}\n{_END}"), delimiter=separator, skipinitialspace=True)
    lines: list[tuple[int, list[str]]] = []
    number = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                lines.append((number, cells))
            number = reader.line_num + 1
    except csv.Error as err:
        if "field limit" in str(err):  # thousands of lines in one field
            raise _unclosed(path, number) from None
        raise DataError(f"cannot read {path} ({first_line(err)}): save it as CSV") from None
    number, cells = lines.pop()
    if not (lines or "".join(cells).strip(f"{_END} \n")):  # a single quotation mark is no text
        raise DataError(f"{path} is empty: write a line an image, the file's name and its label")
    if cells != [_END]:
        raise _unclosed(path, number)
    if len(lines[0][1]) < 2:
        raise ColumnsError(
            f"{path} has one column ({one_line(first)}): write two, the file's name and its label"
        )
    return lines


def _ends_a_line(cell: str) -> bool:
    """Whether a field goes over the end of a line, which names of files and classes do not."""
    return "\n" in cell.strip()


def _unclosed(path: Path, number: int) -> DataError:
    return DataError(
        f"{path}: line {number}: a quotation mark is opened and not closed in that line, so that "
        "the lines behind belong to it: close or remove it"
    )


def _named(table: dict[str, list[str]], names: Sequence[str]) -> str:
    """The column by one of these names, the first of them first; empty: there is none."""
    by_name = {name.casefold(): name for name in table}
    return next((by_name[name] for name in names if name in by_name), "")


def _file_column(
    path: Path,
    table: dict[str, list[str]],
    is_image: Callable[[str], bool],
    asked: str,
    label: str,
) -> tuple[str, str]:
    """The column of images: as asked, else that with the most names of images that are there.

    Names with their endings come first, since a row's number may be an image's name without its
    ending. Also a line on the choice, where other columns hold names of images, too.
    `label`: the column of labels that was asked for.
    """
    if asked:
        return _asked(path, table, "image_column", asked), ""
    # a class called 1 may be an image's name without its ending
    others = {n: cells for n, cells in table.items() if n.casefold() not in _LABEL and n != label}
    hits = {name: sum(map(is_image, cells)) for name, cells in (others or table).items()}
    whole = {n: sum(is_image(c) and PurePath(c).suffix != "" for c in table[n]) for n in hits}
    usual = {name: -number for number, name in enumerate(_FILE)}

    def rank(name: str) -> tuple[int, int, int, int]:
        by_name = usual.get(name.casefold(), -len(_FILE))
        return whole[name], hits[name], by_name, len({*table[name]})

    best = max(hits, key=rank)
    if hits[best]:
        single = {name for name in hits if len({*table[name]}) == len(table[name])}  # no classes
        rest = [name for name in hits if hits[name] and name in single - {best}]
        doubt = f"column {best} of {path.name} names the images, not {first_of(rest)}"
        return best, f"{doubt}: choose another with -P image_column=" if rest else ""
    if known := _named(table, _FILE):
        raise ColumnsError(
            f"{path}: none of the {len(table[known])} files in column {known} is below the folder "
            f"({first_of(table[known], 3)}): put the images there, or choose another column with "
            "-P image_column="
        )
    raise ColumnsError(
        f"{path} has columns {first_of([*table])}, none of which names images below the folder: "
        "name the columns file and label, or choose with -P image_column= and -P label_column="
    )


def _labels(
    path: Path, table: dict[str, list[str]], others: Sequence[str], asked: str
) -> list[str]:
    """The label of each row."""
    if asked:
        return table[_asked(path, table, "label_column", asked)]
    if usual := _named({name: table[name] for name in others}, _LABEL):
        return table[usual]
    if len(others) == 1:
        return table[others[0]]
    marks = {"0": False, "1": True, "0.0": False, "1.0": True}
    if len(others) < 2 or not all(cell in marks for name in others for cell in table[name]):
        raise ColumnsError(
            f"{path} has columns {first_of([*table])}, of which none is named label: rename one, "
            "or choose it with -P label_column="
        )
    rows = [
        [name for name in others if marks[table[name][row]]]
        for row in range(len(table[others[0]]))
    ]
    if several := [names for names in rows if len(names) > 1]:
        raise DataError(
            f"{path}: {len(several)} of {len(rows)} rows are of several classes "
            f"({first_of(several[0])}): give each image one class"
        )
    return ["".join(names) for names in rows]


def _asked(path: Path, table: dict[str, list[str]], key: str, name: str) -> str:
    if name not in table:
        raise DataError(
            f"{path} has columns {first_of([*table])}, asked for {key}={name}: choose one of these"
        )
    return name
