"""Pictures that a model got wrong, kept under their right label: the next training images.

In: a picture and a class, known or new. Out: `<folder>/<class>/<digest>.png`, upright 8-bit RGB,
as a folder of image folders is read. Nothing is ever written over, and a file appears whole.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from pipeline.data.folders.listing import SYSTEM_NAMES, entries_of, list_files
from pipeline.data.images import digest_image
from pipeline.errors import DataError
from pipeline.runs.messages.command_line import command_line
from pipeline.system.disk.files import write_atomically
from pipeline.system.text import count_of, is_unicode, normalised, one_line

LONGEST = 100
FEWEST = 3
"""Pictures of each class without which a folder cannot be split for training."""


def checked_label(label: str, known: Collection[str]) -> str:
    """The class as a folder's name: one that is known as it is, a new one only if it is harmless.

    Raises:
        DataError: the text cannot be the name of a folder, or would be another place.
    """
    text = normalised(label)
    text = next((name for name in known if normalised(name) == text), text)
    if text in known and "/" not in text and not text.startswith(".") and text not in SYSTEM_NAMES:
        return text
    name = text.strip()
    is_text = is_unicode(name) and not any(unicodedata.category(c) == "Cc" for c in name)
    if not name or not is_text or len(name.encode()) > LONGEST:
        raise DataError(f"a class needs a name of 1 to {LONGEST} bytes of plain text in UTF-8")
    if set(name) & set('/\\:*?"<>|') or name.startswith((".", "~")) or name in SYSTEM_NAMES:
        raise DataError(
            f"{one_line(name)}: a class cannot be called so: it becomes a folder's name, without "
            '/ \\ : * ? " < > | and without a dot in front'
        )
    if name == "label":
        raise DataError("label: is the answer of the served model, no class: choose another name")
    return name


def keep_picture(picture: Image.Image, label: str, folder: Path) -> Path:
    """Keep a picture under a class that `checked_label` gave; one that is there stays.

    Raises:
        DataError: the same picture is kept under another class.
        StorageError: the folder cannot be written.
    """
    name = f"{digest_image(picture).hex()}.png"
    for other in folder.glob(f"*/{name}"):
        if normalised(other.parent.name) != normalised(label):
            raise DataError(
                f"this picture is kept as {one_line(other.parent.name)} already: delete {other} "
                "first"
            )
        return other
    content = io.BytesIO()
    picture.save(content, "PNG", icc_profile=None)  # one of 1 MiB would make it unreadable
    write_atomically(folder / label / name, content.getvalue())
    return folder / label / name


def next_command(folder: Path) -> str:
    """How many pictures are kept, and what to type to train with them."""
    counts = {one.name: len(list_files(one, {".png"})[0]) for one in entries_of(folder).folders}
    total = count_of(sum(counts.values()), "picture")
    total += f" of {count_of(len(counts), 'class')} in {folder.absolute()}"
    train = command_line("main", {"data": str(folder.absolute())})
    if len(counts) < 2 or min(counts.values()) < FEWEST:
        return (
            f"{total}: too few to train on alone. Copy the folders into those of your training "
            f"images; with {FEWEST} or more of each class, train with: {train}"
        )
    return f"{total}. Train with: {train}"
