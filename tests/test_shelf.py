"""The cache's folder: never more than its limit, and what somebody uses stays."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.data.cache import cache_folder
from pipeline.system.disk import shelf as shelves
from pipeline.system.disk.shelf import NoRoomError, Shelf, new_command
from pipeline.system.progress import shown
from pipeline.system.variables import LEASE
from tests.helpers import load_settings
from tests.test_leases import until

ROOT = Path(__file__).resolve().parent.parent
USES = """
import sys
from pathlib import Path
from pipeline.system.disk.shelf import Shelf
shelf = Shelf(Path(sys.argv[1]), 1000)
use = shelf.use(shelf.folder / "old.bin")
scratch = shelf.scratch("pixels", 300, "tests")
print("used", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("given", "caches", "place"),
    [
        ("", "", "~/.cache/unfreeze"),
        ("", "/scratch/ann", "/scratch/ann/unfreeze"),
        ("", "scratch", "~/.cache/unfreeze"),  # the convention asks for a whole path
        ("~/mine", "/scratch/ann", "~/mine"),
    ],
)
def test_the_cache_lies_where_people_keep_caches(
    given: str, caches: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", caches)
    folder = cache_folder(load_settings({"cache_dir": given}))
    assert folder == Path(place).expanduser()


def entry(folder: Path, name: str, size: int, used_at: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.bin").write_bytes(b"x" * size)
    (folder / f"{name}.json").write_text("{}")
    os.utime(folder / f"{name}.json", (used_at, used_at))


def entries(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.bin")}


def total(folder: Path) -> int:
    """Every file that is no lock or description, at its size to be."""
    kinds = (".bin", ".tmp")
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in kinds)


@contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A living process that uses the entry `old`, and has a scratch file of 300 bytes."""
    words = [sys.executable, "-c", USES, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT, **pipes) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "used\n"
            yield process
        finally:
            process.kill()


def test_what_was_used_longest_ago_goes_first_and_no_more_than_must(tmp_path: Path) -> None:
    for name, used_at in (("newest", 300), ("oldest", 100), ("middle", 200)):
        entry(tmp_path, name, 300, used_at)
    part = tmp_path / f"new.{os.getpid()}.tmp"
    Shelf(tmp_path, 1000).make_room({part: 400}, "tests")
    assert entries(tmp_path) == {"newest", "middle"}
    assert part.stat().st_size == 400
    assert total(tmp_path) == 1000


def test_what_a_living_process_uses_stays_and_counts_until_it_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    entry(folder, "old", 300, used_at=100)
    entry(folder, "new", 300, used_at=200)
    shelf = Shelf(folder, 1000)
    with other_process(folder) as process:
        with pytest.raises(NoRoomError, match=r"would need 1.1 kB") as refused:
            shelf.make_room({folder / "a.tmp": 500}, "tests")
        assert refused.value.needed_bytes == 300 + 300 + 500
        assert entries(folder) == {"old", "new"}  # nothing goes for what does not fit
        room = shelf.scratch("mine", 400, "tests")
        assert entries(folder) == {"old"}
        assert total(folder) == 1000
        process.kill()
        process.wait()
        later = shelf.scratch("mine", 600, "tests")
    assert entries(folder) == set()
    assert {path for path in folder.iterdir() if path.suffix == ".tmp"} == {room.path, later.path}


def test_a_use_and_its_scratch_file_go_with_the_last_who_holds_them(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 1000)
    first, second = (shelf.use(tmp_path / "key.bin") for _ in range(2))
    scratch = shelf.scratch("pixels", 10, "tests")
    assert first.path == second.path
    assert scratch.path.stat().st_size == 10
    del first, scratch
    gc.collect()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == [
        second.path.name
    ]
    second.end()
    assert not second.path.exists()


def test_marks_from_elsewhere_count_as_long_as_they_are_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE, "0.1")
    entry(tmp_path, "key", 600, used_at=100)
    mark = tmp_path / f"key.{'0' * 16}-1-1.use"
    mark.touch()
    shelf = Shelf(tmp_path, 1000)

    def makes_room() -> bool:
        try:
            shelf.make_room({tmp_path / "a.tmp": 500}, "tests")
        except NoRoomError:
            return False
        return True

    assert not makes_room()
    os.utime(mark)
    assert not makes_room()
    until(makes_room)
    assert entries(tmp_path) == set()


def test_the_first_wanted_counts_most_and_others_fill_what_is_left(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 1000)
    first, large, small = (tmp_path / f"{name}.bin" for name in ("first", "large", "small"))
    assert shelf.fitting({first: 600, large: 500, small: 400}) == [first, small]
    with pytest.raises(NoRoomError, match=r"need 1.1 kB, the limit is 1 kB \(") as refused:
        shelf.fitting({first: 1100, small: 1})
    assert "would need 5 kB" in refused.value.words(5000)


def test_a_disk_that_is_nearly_full_has_room_for_what_it_has(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    everything = free.f_bavail * free.f_frsize
    with pytest.raises(NoRoomError, match="the disk has room for"):
        Shelf(tmp_path, 10 * everything).make_room({tmp_path / "a.tmp": everything}, "tests")
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    new_command()
    with shown():
        yield lambda: capsys.readouterr().out.splitlines()
    new_command()


def test_what_will_be_taken_is_stated_before_it_is_and_again_where_it_doubles(
    tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    shelf = Shelf(tmp_path, 10**9)

    def take(number: int, size: int) -> list[str]:
        shelf.make_room({tmp_path / f"{number}.tmp": size}, "frozen outputs")
        return told()

    size = shelves.TOLD_BYTES
    assert take(0, size - 1) == []
    (line,) = take(1, size)
    assert "disk: 10 MB more for frozen outputs in" in line
    assert "with that 20.0 MB by this command" in line
    assert "of 1 GB (cache_limit)" in line
    assert take(2, size - 10) == []  # told again when there is twice as much
    (line,) = take(3, size + 20)
    assert "with that 40.0 MB by this command" in line
    new_command()
    (line,) = take(4, 2 * size)
    assert line.startswith(f"disk: 20 MB for frozen outputs in {tmp_path}, of 1 GB")
    with pytest.raises(NoRoomError, match="would need"):  # nothing is stated
        take(5, 10**9)
    assert told() == []
