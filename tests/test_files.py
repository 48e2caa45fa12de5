"""Files appear whole or not at all; a disk that is full or closed is told in one line."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.system.disk.files import storage_faults, write_atomically
from tests import forked
from tests.conftest import words_of
from tests.helpers import fill

ROOT = Path(__file__).resolve().parent.parent
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


def run(script: str, *arguments: str) -> None:
    """Run a script in a process whose limits and rights it may give away."""
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_file_is_replaced_and_who_has_it_open_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"newer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"newer"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does, in the middle of writing."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    script = """
import resource, sys
from pathlib import Path
from pipeline.errors import StorageError
from pipeline.system.disk.files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), bytes(100_000))
except StorageError as err:
    assert "cannot write file.bin to " in str(err), err
    assert "(File too large): free some space" in str(err), err
else:
    raise AssertionError("no error")
"""
    run(script, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    script = """
import os, sys
from pathlib import Path
from pipeline.errors import StorageError
from pipeline.system.disk.files import write_atomically
if os.geteuid() == 0:  # root may write anywhere: become nobody
    os.setgid(65534)
    os.setuid(65534)
try:
    write_atomically(Path(sys.argv[1]) / "file.bin", b"content")
except StorageError as err:
    assert "(Permission denied): choose a folder you may write to" in str(err), err
else:
    raise AssertionError("no error")
"""
    run(script, str(folder))
    assert list(folder.iterdir()) == []


def without_all_rights() -> None:
    """Clear root's rights to read, write and search whatever others have closed (`capset`)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version, this process
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; once more for high bits
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, held) == 0, os.strerror(ctypes.get_errno())
    for place in range(3):
        held[place] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, held) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can close a folder to itself")
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("cache_dir=/cache", "may not be written"),
        ("labels=/labels.csv", "no such file"),
        ("weights=/weights.pth", "Permission denied"),
        ("storage=/optuna.db", "storage="),
    ],
)
def test_what_lies_in_a_folder_that_may_not_be_searched_is_one_line(
    option: str, words: str, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, 65534, 65534)
    key, _, place = option.partition("=")
    options = {
        "data": str(fill(tmp_path / "images", "a", "b", count=5)),
        "cache_dir": str(tmp_path / "cache"),
        key: f"{closed}{place}",
    }
    name = "tune" if key == "storage" else "main"
    done = forked.run(words_of(name, options), tmp_path, prepare=without_all_rights)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        *((code, "free some space, then run the same command again") for code in FULL),
        *((code, "choose a folder you may write to") for code in CLOSED),
    ],
)
def test_a_storage_fault_is_one_line_with_its_advice(code: int, advice: str) -> None:
    with (
        pytest.raises(
            StorageError, match=f"^cannot write it to there .*{advice}[^\n]*$"
        ) as caught,
        storage_faults("it", "there"),
    ):
        raise OSError(code, os.strerror(code))
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "other"), ValueError("other")])
def test_other_faults_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error), match="other") as caught, storage_faults("it", "there"):
        raise error
    assert caught.value is error


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write file\.bin to .*taken"):
        write_atomically(tmp_path / "taken" / "file.bin", b"content")
