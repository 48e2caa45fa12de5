"""Temporary files of killed processes go with the next command; nobody else's are touched."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.system.disk.files import write_atomically
from pipeline.system.disk.scratch import own_temporary_folder, part_of, sweep_folders, sweep_parts
from pipeline.system.processes import owner_mark

ROOT = Path(__file__).resolve().parent.parent
STAY = """
import sys, tempfile
from pathlib import Path
from pipeline.system.processes import owner_mark
from pipeline.system.disk.scratch import own_temporary_folder, part_of

with own_temporary_folder():
    Path(tempfile.mkdtemp(), "checkpoint").write_bytes(b"12345")
    part_of(Path(sys.argv[1], "weights.safetensors")).write_bytes(b"12")
    print(owner_mark(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def other(place: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with temporary files, of which some are those of a library."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAY, str(place)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def sweep(place: Path) -> list[str]:
    """What is left afterwards."""
    sweep_folders()
    sweep_parts(place)
    return sorted(path.name for path in place.iterdir())


def test_a_killed_process_leaves_nothing_to_the_next_command(
    place: Path, other: subprocess.Popen[str]
) -> None:
    before = sorted(path.name for path in place.iterdir())
    assert len(before) == 2
    assert sweep(place) == before  # the process lives
    other.kill()
    other.wait()
    assert sweep(place) == []


def test_a_process_that_ends_by_itself_removes_its_own(
    place: Path, other: subprocess.Popen[str]
) -> None:
    other.communicate()
    assert other.returncode == 0
    assert [path.suffix for path in place.iterdir()] == [".part"]


def test_a_lock_tells_what_a_name_from_before_a_reboot_does_not(
    place: Path, other: subprocess.Popen[str]
) -> None:
    (folder,) = place.glob("unfreeze.*.*")
    mark = folder.name.split(".")[1]
    elsewhere = folder.rename(place / f"unfreeze.{'0' * 16}{mark[16:]}.abc")
    sweep_folders()
    assert elsewhere.exists()
    other.kill()
    other.wait()
    sweep_folders()
    assert not elsewhere.exists()


def test_what_is_not_known_to_be_a_dead_process_of_this_user_stays(
    place: Path, other: subprocess.Popen[str], tmp_path: Path
) -> None:
    (folder,) = place.glob("unfreeze.*.*")
    (part,) = place.glob("*.part")
    dead = folder.name.split(".")[1]
    kept = [f"unfreeze.{owner_mark()}.new", "unfreeze.notes.txt", f"unfreeze.{'0' * 16}-1-1.far"]
    for name in kept:
        (place / name).mkdir()
    linked = tmp_path / "linked"
    (linked / "inside").mkdir(parents=True)
    (place / f"unfreeze.{dead}.link").symlink_to(linked)
    kept.append(f"unfreeze.{dead}.link")
    if os.getuid() == 0:
        theirs = place / f"unfreeze.{dead}.theirs"
        theirs.mkdir()
        os.chown(theirs, 65534, 65534)
        os.chown(part, 65534, 65534)
        kept += [theirs.name, part.name]
    other.kill()
    other.wait()
    assert sweep(place) == sorted(kept)
    assert (linked / "inside").exists()


def test_a_command_sweeps_first_and_leaves_nothing(
    place: Path, other: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other.kill()
    other.wait()
    assert main(["blocks", "--backbone", "mobilenet_v3_small"]) == 0
    assert tempfile.tempdir == str(place)
    assert list(place.glob("unfreeze.*")) == []


def test_a_file_that_was_half_written_goes_when_it_is_written_again(
    place: Path, other: subprocess.Popen[str]
) -> None:
    other.kill()
    other.wait()
    write_atomically(place / "weights", b"new")  # another name
    assert len(list(place.glob("*.part"))) == 1
    write_atomically(place / "weights.safetensors", b"new")
    assert list(place.glob("*.part")) == []
    assert part_of(place / "a").name == f"a.{owner_mark()}.part"


def test_where_no_folder_can_be_made_the_temporary_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with own_temporary_folder():
        assert tempfile.tempdir == str(tmp_path / "file")
