"""Folders are read to their ends, links included; what is passed over is counted."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.folders.listing import (
    BROKEN_LINK,
    NO_ENDING,
    holds_images,
    in_words,
    list_files,
)
from pipeline.data.open import open_source
from pipeline.errors import DataError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def listed(folder: Path, above: tuple[Path, ...] = ()) -> list[str]:
    found, _ = list_files(folder, {".png"}, above)
    return [str(path.relative_to(folder)) for path in found]


def test_files_of_any_depth_are_listed_in_order(tmp_path: Path) -> None:
    names = ["Recycler/a.png", "__img__/3.png", "a/b/c.png", "a/z.PNG", "b.png"]
    for name in (*names, "note.txt"):
        touch(tmp_path / name)
    assert listed(tmp_path) == names


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "lost+found", ".hidden", "__MACOSX"],
)
def test_folders_of_file_servers_and_systems_are_never_read(name: str, tmp_path: Path) -> None:
    """Synology keeps a thumbnail of every image under `@eaDir/<its name>/`."""
    touch(tmp_path / "a.png")
    touch(tmp_path / name / "a.png" / "SYNOPHOTO_THUMB_M.png")
    touch(tmp_path / "deep" / name / "b.png")
    assert listed(tmp_path) == ["a.png"]
    assert not holds_images(tmp_path / "deep")


def test_linked_folders_are_followed_and_read_once_by_their_own_name(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "a.png")
    touch(tmp_path / "store" / "deep" / "b.png")
    touch(tmp_path / "class" / "z" / "c.png")
    for link, to in (("batch", "store"), ("again", "store"), ("y", "class/z")):
        (tmp_path / "class" / link).symlink_to(tmp_path / to)
    assert listed(tmp_path / "class") == ["again/a.png", "again/deep/b.png", "z/c.png"]


def test_a_link_to_itself_or_to_what_lies_above_ends(tmp_path: Path) -> None:
    touch(tmp_path / "cats" / "a.png")
    touch(tmp_path / "dogs" / "b.png")
    (tmp_path / "cats" / "self").symlink_to(tmp_path / "cats")
    (tmp_path / "cats" / "up").symlink_to(tmp_path)
    (tmp_path / "cats" / "loop").symlink_to(tmp_path / "cats" / "loop")
    assert listed(tmp_path / "cats", above=(tmp_path,)) == ["a.png"]
    assert holds_images(tmp_path / "cats")


def test_what_is_passed_over_is_counted_by_ending(tmp_path: Path) -> None:
    names = ("1.HEIC", "2.heic", "deep/3.heic", "raw.CR2", "noending", "odd.2020 at home")
    for name in (*names, "a.jpg_large", "a.jpg:Zone.Identifier"):
        touch(tmp_path / name)
    for name in ("a.png", "notes.txt", "labels.csv", "Thumbs.db", ".DS_Store", "data.parquet"):
        touch(tmp_path / name)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    _, found = list_files(tmp_path, {".png"})
    long = dict.fromkeys((".jpg_large", ".identifier"), 1)
    assert found == Counter({".heic": 3, NO_ENDING: 2, ".cr2": 1, BROKEN_LINK: 1, **long})
    assert in_words(found).startswith("3 .heic, 2 without an ending, 1 ")
    assert in_words(Counter({BROKEN_LINK: 4})) == "4 broken links"


def test_a_folder_that_may_not_be_read_is_named() -> None:
    """Root may read everything: the folder is read as somebody else there."""
    me = os.geteuid()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name in ("cats/a.png", "cats/private/b.png", "dogs/a.png"):
            touch(root / name)
        private = root / "cats" / "private"
        private.chmod(0)
        os.seteuid(me or 65534)
        try:
            denied = re.escape(f"cannot read the folder {private} (Permission denied)")
            with pytest.raises(DataError, match=denied):
                open_source(folder, root)
            with pytest.raises(DataError, match=r"b\.png: cannot be read \(Permission denied\)"):
                open_source(str(private / "b.png"), root)
        finally:
            os.seteuid(me)
            private.chmod(0o755)
