"""Which columns of parquet files hold the images and the classes.

In: the schemas of all files, and the columns that a person named, if any. Out: one name for the
images and one for the labels of the whole data set. A column goes by a usual name, or by the type
that Hugging Face's metadata gives it, and is one that all files have; of several that could be
meant the one called `label` is taken and the others are told, else a person has to choose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.base import what_it_is
from pipeline.data.parquet.metadata import columns_of_type
from pipeline.errors import DataError, first_line
from pipeline.system.text import first_of

USUAL_IMAGES = ("img", "image", "images", "picture", "photo", "jpg", "png")
USUAL_LABELS = ("label", "labels", "class", "category", "target")
_LABEL = re.compile(r"\w+_labels?")


@dataclass(frozen=True)
class Columns:
    """The columns that are read."""

    label: str
    image: str
    notes: list[str]


def choose_columns(
    files: Sequence[Path], unlabelled: Sequence[Path], label_column: str, image_column: str
) -> Columns:
    """The columns of a data set; empty: not named.

    Args:
        files: those that have to have labels, training files first.
        unlabelled: the others.
        label_column: asked for.
        image_column: asked for.

    Raises:
        DataError: there is none that all files have, several could be meant, or the images are
            not encoded ones.
    """
    schemas = {path: parquet_schema(path) for path in (*files, *unlabelled)}
    found: dict[str, str] = {}
    notes: list[str] = []
    for key, asked, usual, paths in (
        ("image_column", image_column, USUAL_IMAGES[:2], [*schemas]),
        ("label_column", label_column, USUAL_LABELS[:1], files),
    ):
        by_file = {
            path: [asked]
            if asked in schemas[path].names
            else []
            if asked
            else _image_columns(schemas[path])
            if key == "image_column"
            else [n for n in _label_columns(schemas[path]) if n != found["image_column"]]
            for path in paths
        }
        names = list(dict.fromkeys(name for columns in by_file.values() for name in columns))
        common = [name for name in names if all(name in columns for columns in by_file.values())]
        if not common:
            lacks = next(p for p, columns in by_file.items() if not {*names[:1]} & {*columns})
            raise _missing(lacks, label_column, image_column, names)
        if len(common) > 1 and common[0] not in usual:
            what = "classes" if key == "label_column" else "images"
            raise DataError(
                f"{files[0]} has several columns that may hold the {what}, {first_of(common)}: "
                f"choose one with -P {key}={common[0]}"
            )
        found[key] = common[0]
        if others := [name for name in names if name != common[0]]:
            notes.append(
                f"column {common[0]} is read, not {first_of(others)}: -P {key}= chooses another"
            )
    for path, schema in schemas.items():
        _check_columns(path, schema, found)
    return Columns(found["label_column"], found["image_column"], notes)


def _check_columns(path: Path, schema: Any, found: Mapping[str, str]) -> None:  # noqa: ANN401
    for key, name in found.items():
        if schema.names.count(name) > 1:
            raise DataError(
                f"{path} has {schema.names.count(name)} columns named {name}: rename or remove "
                f"all but one, or choose another column with -P {key}="
            )
    name = found["image_column"]
    kind = schema.field(name).type
    if not _holds_bytes(kind):
        raise DataError(
            f"{path}: column {name} holds {kind}, no encoded images: store the bytes of PNG "
            "or JPEG files there, or choose another column with -P image_column="
        )


def holds_image_column(path: Path, image_column: str = "") -> bool:
    """Whether a parquet file has a column of images."""
    schema = parquet_schema(path)
    return image_column in schema.names if image_column else bool(_image_columns(schema))


def parquet_schema(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The schema of a parquet file.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as err:
        why = what_it_is(path) or first_line(err)
        raise DataError(f"cannot read {path} ({why}): replace it") from None


def _image_columns(schema: Any) -> list[str]:  # noqa: ANN401
    typed = columns_of_type((schema.metadata or {}).get(b"huggingface"), "Image")
    return _in_order([*USUAL_IMAGES, *typed], schema.names)


def _label_columns(schema: Any) -> list[str]:  # noqa: ANN401
    typed = columns_of_type((schema.metadata or {}).get(b"huggingface"), "ClassLabel")
    ending = [name for name in schema.names if _LABEL.fullmatch(name)]
    return _in_order([*USUAL_LABELS, *typed, *ending], schema.names)


def _in_order(names: Sequence[str], there: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name in there]


def _holds_bytes(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    types = pa.types
    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and (
            types.is_null(kind.field(at).type) or _holds_bytes(kind.field(at).type)
        )
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def _missing(path: Path, label: str, image: str, elsewhere: Sequence[str]) -> DataError:
    """What to say of a file without a column; `elsewhere`: what other files have."""
    columns = parquet_schema(path).names
    wanted = [f"-P {k}={v}" for k, v in (("label_column", label), ("image_column", image)) if v]
    asked = f", asked for {' '.join(wanted)}" if wanted else ""
    others = f", while other files have {first_of(elsewhere)}" if elsewhere and not asked else ""
    return DataError(
        f"{path} has columns {first_of(columns, 20)}{asked}{others}: name the images `img` or "
        "`image` and the classes `label` in all files, or choose with -P image_column= and "
        "-P label_column="
    )
