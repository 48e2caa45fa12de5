"""Which columns of parquet files hold the images and the classes.

In: a file's schema, and the columns that a person named, if any. Out: their names. A column goes
by a usual name, or by the type that Hugging Face's metadata gives it; of several that could be
meant the one called `label` is taken and the others are told, else a person has to choose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.base import what_it_is
from pipeline.data.parquet.labels import columns_of_type
from pipeline.errors import DataError, first_line
from pipeline.system.text import first_of

USUAL_IMAGES = ("img", "image", "images", "picture", "photo", "jpg", "png")
USUAL_LABELS = ("label", "labels", "class", "category", "target")
_LABEL = re.compile(r"\w+_labels?")


@dataclass(frozen=True)
class Columns:
    """The columns that are read; `image` is empty where each file is looked at by itself."""

    label: str
    image: str
    notes: list[str]

    def image_in(self, path: Path) -> str:
        """The image column of a file.

        Raises:
            DataError: it has none, or one that holds no encoded images.
        """
        schema = parquet_schema(path)
        name = self.image or next(iter(_image_columns(schema)), "")
        if name not in schema.names:
            raise self.missing(path)
        kind = schema.field(name).type
        if not _holds_bytes(kind):
            raise DataError(
                f"{path}: column {name} holds {kind}, no encoded images: store the bytes of PNG "
                "or JPEG files there, or choose another column with -P image_column="
            )
        return name

    def missing(self, path: Path) -> DataError:
        """What to say of a file without one of the columns."""
        return _missing(path, self.label if self.label != USUAL_LABELS[0] else "", self.image)


def choose_columns(path: Path, label_column: str, image_column: str) -> Columns:
    """The columns of a data set whose first training file is `path`; empty: not named.

    Raises:
        DataError: there is none, or several could be meant.
    """
    schema = parquet_schema(path)
    for name in (label_column, image_column):
        if name and name not in schema.names:
            raise _missing(path, label_column, image_column)
    images = [image_column] if image_column else _image_columns(schema)
    labels = [label_column] if label_column else _label_columns(schema, images)
    if not images or not labels:
        raise _missing(path, label_column, image_column)
    notes = []
    for key, found, usual in (
        ("image_column", images, USUAL_IMAGES[:2]),
        ("label_column", labels, USUAL_LABELS[:1]),
    ):
        if len(found) < 2:
            continue
        if found[0] not in usual:
            what = "classes" if key == "label_column" else "images"
            raise DataError(
                f"{path} has several columns that may hold the {what}, {first_of(found)}: choose "
                f"one with -P {key}={found[0]}"
            )
        notes.append(
            f"column {found[0]} is read, not {first_of(found[1:])}: -P {key}= chooses another"
        )
    return Columns(labels[0], image_column, notes)


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


def _label_columns(schema: Any, images: Sequence[str]) -> list[str]:  # noqa: ANN401
    typed = columns_of_type((schema.metadata or {}).get(b"huggingface"), "ClassLabel")
    ending = [name for name in schema.names if _LABEL.fullmatch(name)]
    found = _in_order([*USUAL_LABELS, *typed, *ending], schema.names)
    return [name for name in found if name not in images]


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


def _missing(path: Path, label: str, image: str) -> DataError:
    columns = parquet_schema(path).names
    wanted = [f"-P {k}={v}" for k, v in (("label_column", label), ("image_column", image)) if v]
    asked = f", asked for {' '.join(wanted)}" if wanted else ""
    return DataError(
        f"{path} has columns {first_of(columns, 20)}{asked}: name the images `img` or `image` and "
        "the classes `label`, or choose with -P image_column= and -P label_column="
    )
