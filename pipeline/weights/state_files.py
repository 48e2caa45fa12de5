"""What a weights file holds, whatever its name says and without running code from it.

In: a path. Out: the file's content as plain mappings and tensors. The kind of file is seen from
its first bytes, not from its ending. Only what torch's `weights_only` unpickler builds is built,
and a few plain values of the standard library and NumPy that training scripts store beside the
weights; anything else is refused by name.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pipeline.errors import WeightsError, first_line
from pipeline.system.text import first_of

SAVE = "save one with torch.save(model.state_dict(), path) or as .safetensors"
_HEAD_BYTES = 512
_LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, by its format."""
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""How files of torch.save began before version 1.6."""
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"\x1f\x8b": "an archive packed with gzip",
    b"BZh": "an archive packed with bzip2",
    b"\xfd7zXZ\x00": "an archive packed with xz",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"PAR1": "a Parquet file",
}
"""Kinds of file by their first bytes."""
_scalar: Any = np.float64(0).__reduce__()[0]
_PLAIN_VALUES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
"""Values beside the weights that are built when a file holds them; none of them runs code."""


def read_content(path: Path, weights: str) -> Any:  # noqa: ANN401 - whatever was saved
    """The content of a .safetensors or torch file. `weights`: what the setting says.

    Raises:
        WeightsError: the file is of another kind, damaged, or holds objects of other classes.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as err:
        raise WeightsError(
            f"weights={weights}: {path.name} cannot be read ({err.strerror}): check its "
            "permissions and its disk"
        ) from None
    if kind := _foreign_kind(path, head):
        todo = "unpack it and pass the file in it" if "archive" in kind else SAVE
        raise WeightsError(f"weights={weights}: not a readable state dict ({kind}): {todo}")
    try:
        if _is_safetensors(head):
            return load_file(path)
        # an open file: torch takes a path that ends in .safetensors for one
        with (
            torch.serialization.safe_globals(_PLAIN_VALUES),
            path.open("rb") as file,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of kinds of tensors, which are told in one line
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as err:  # noqa: BLE001 - what a damaged pickle raises is not bounded
        raise WeightsError(
            f"weights={weights}: not a readable state dict ({_why(err, head)}): {SAVE}"
        ) from None


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes with the length of a JSON object, then the object."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LONGEST_HEADER


def _foreign_kind(path: Path, head: bytes) -> str | None:
    """What a file is that holds no weights; None: it may hold some."""
    if not head:
        return "the file is empty"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<(!doctype|html|head|body|!--|\?xml)", text, re.IGNORECASE):
        return "a web page: fetch the file itself, not the page that shows or refuses it"
    if kind := next((k for magic, k in _FOREIGN.items() if head.startswith(magic)), None):
        return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith(b"PK"):
        return _zip_kind(path)
    if text and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        line = text.splitlines()[0][:40].decode(errors="replace")
        return f"a text file, which begins {line!r}"
    return None


def _zip_kind(path: Path) -> str | None:
    """As `_foreign_kind`, of a ZIP archive: a torch file is one that holds `…/data.pkl`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if broken := archive.testzip():
                raise zipfile.BadZipFile(broken)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError):
        return "a torch file that is damaged or cut short: fetch it again"
    parts = {name.partition("/")[2] for name in names}
    if "constants.pkl" in parts:
        return "a TorchScript program, which is not run"
    if "data.pkl" in parts:
        return None
    return f"a ZIP archive that holds {first_of(names, 3) or 'nothing'}"


def _why(err: Exception, head: bytes) -> str:
    """Why safetensors or torch could not read the file, in a few words."""
    if found := re.search(r"GLOBAL (\S+)", str(err)):
        return f"it holds an object of {found[1]}, whose code is not run"
    if _is_safetensors(head):
        return f"damaged or cut short: {first_line(err)}"
    if head.startswith((b"PK", _OLD_TORCH)):
        return "a torch file that is damaged or cut short"
    if head.startswith(b"\x80"):
        return "a pickle that torch.save did not write, whose code is not run"
    return "neither a .safetensors nor a torch file, or damaged"
