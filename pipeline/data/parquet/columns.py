"""What the schemas of parquet files say: the columns of images and labels, and class names.

In: the schemas of all files, and the columns that a person named, if any. Out: one name for the
images and one for the labels of the whole data set. A column goes by a usual name, or by the type
that Hugging Face's metadata gives the column, and is one that all files have. Of several
candidates `img`, `image` or `label` is taken and the others are told, else a person has to choose.
Metadata of any but the known form counts as none: exporters write all sorts of things there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.base import what_it_is
from pipeline.errors import DataError, first_line
from pipeline.system.text import first_of

Schemas = Mapping[Path, Any]
"""Of pyarrow, which has no types."""
_LABEL = re.compile(r"\w+_labels?")
_USUAL = {
    "image_column": ("img", "image", "images", "picture", "photo", "jpg", "png"),
    "label_column": ("label", "labels", "class", "category", "target"),
}
_TAKEN = ("img", "image", "label")
"""Names that need no choice where other columns could be meant, too."""


@dataclass(frozen=True)
class Columns:
    """The columns that are read, and what was assumed."""

    label: str
    image: str
    notes: list[str]


def choose_columns(
    schemas: Schemas, labelled: Sequence[Path], label_column: str, image_column: str
) -> Columns:
    """The columns of a data set; `labelled`: files that need labels, training files first.

    Raises:
        DataError: no column is in all files, several could be meant, or the images are not
            encoded.
    """
    asked = {"image_column": image_column, "label_column": label_column}
    found: dict[str, str] = {}
    notes: list[str] = []
    for key, paths in (("image_column", schemas), ("label_column", labelled)):
        by_file = {path: _candidates(schemas[path], key, asked[key]) for path in paths}
        names = list(dict.fromkeys(name for columns in by_file.values() for name in columns))
        if key == "label_column" and not label_column:
            names = [name for name in names if name != found["image_column"]]
        common = [name for name in names if all(name in columns for columns in by_file.values())]
        if not common:
            lacks = next(p for p, columns in by_file.items() if not {*names[:1]} & {*columns})
            raise _missing(lacks, schemas[lacks].names, asked, names)
        if len(common) > 1 and common[0] not in _TAKEN:
            what = "classes" if key == "label_column" else "images"
            raise DataError(
                f"{labelled[0]} has several columns that may hold the {what}, {first_of(common)}: "
                f"choose one with -P {key}={common[0]}"
            )
        found[key] = common[0]
        for path, schema in schemas.items():
            _check_column(path, schema, key, common[0])
        if others := [name for name in names if name != common[0]]:
            notes.append(
                f"column {common[0]} is read, not {first_of(others)}: -P {key}= chooses another"
            )
    return Columns(found["label_column"], found["image_column"], notes)


def holds_image_column(path: Path, image_column: str) -> bool:
    """Whether a parquet file has the column of images, or any where none is named."""
    return bool(_candidates(parquet_schema(path), "image_column", image_column))


def parquet_schema(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The schema of a parquet file.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as err:
        why = what_it_is(path) or first_line(err)
        raise DataError(f"cannot read {path} ({why}): replace it") from None


def class_names(schema: Any, column: str) -> dict[int, str] | None:  # noqa: ANN401
    """The class names by number that the metadata of a file lists for a column."""
    names = _features(schema).get(column, {}).get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(n, str | int) for n in names.values()):
        return None
    try:
        numbered = {int(number): str(name) for number, name in names.items()}
    except ValueError:
        return None
    same = len(numbered) < len(names)  # `0` and `00` are one number
    return None if same else dict(sorted(numbered.items())) or None


def _features(schema: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401
    """What Hugging Face's metadata holds about each column."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    columns = found.items() if isinstance(found, dict) else ()
    return {name: about for name, about in columns if isinstance(about, dict)}


def _candidates(schema: Any, key: str, asked: str) -> list[str]:  # noqa: ANN401
    """The columns of a file that may hold images, or labels."""
    if asked:
        return [asked] if asked in schema.names else []
    of_images = key == "image_column"
    kind = "Image" if of_images else "ClassLabel"
    typed = [name for name, about in _features(schema).items() if about.get("_type") == kind]
    ending = [name for name in schema.names if _LABEL.fullmatch(name) and not of_images]
    names = dict.fromkeys((*_USUAL[key], *typed, *ending))
    return [name for name in names if name in schema.names]


def _check_column(path: Path, schema: Any, key: str, name: str) -> None:  # noqa: ANN401
    if schema.names.count(name) > 1:
        raise DataError(
            f"{path} has {schema.names.count(name)} columns named {name}: rename or remove "
            f"all but one, or choose another column with -P {key}="
        )
    if key == "image_column" and not _holds_bytes(kind := schema.field(name).type):
        raise DataError(
            f"{path}: column {name} holds {kind}, no encoded images: store the bytes of PNG "
            "or JPEG files there, or choose another column with -P image_column="
        )


def _holds_bytes(kind: Any) -> bool:  # noqa: ANN401
    from pyarrow import types

    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        kind = kind.field(at).type if at >= 0 else kind
        return at >= 0 and (types.is_null(kind) or _holds_bytes(kind))
    tests = (
        types.is_binary,
        types.is_large_binary,
        types.is_fixed_size_binary,
        types.is_binary_view,
    )
    return any(test(kind) for test in tests)


def _missing(
    path: Path, columns: Sequence[str], asked: Mapping[str, str], elsewhere: Sequence[str]
) -> DataError:
    """A file lacks a column; `elsewhere`: the candidates in other files."""
    wanted = " ".join(f"-P {key}={name}" for key, name in asked.items() if name)
    but = f", asked for {wanted}" if wanted else ""
    if elsewhere and not wanted:
        but = f", while other files have {first_of(elsewhere)}"
    return DataError(
        f"{path} has columns {first_of(columns, 20)}{but}: name the images `img` or "
        "`image` and the classes `label` in all files, or choose with -P image_column= and "
        "-P label_column="
    )
