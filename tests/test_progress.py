"""What a command shows while it works: on a terminal, elsewhere, and nowhere."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from pipeline.system import progress

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import time
from pipeline.system import progress
progress.STILL_S, progress.QUIET_S, progress.SILENT_S = 0.05, 0.15, 0.2
with progress.shown() as say:
    time.sleep(0.6)
    with progress.bar("pairs", 4, done=1) as step:
        say("a result")
        with progress.doing("loading"):
            time.sleep(0.6)
        step(1)
        time.sleep(0.4)
    say("open for visitors")
    with progress.waiting():
        time.sleep(0.6)
"""


def on_a_terminal() -> str:
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=writing, stderr=writing,
    ) as process:  # fmt: skip
        os.close(writing)
        shown = b""
        while True:
            try:
                part = os.read(reading, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(reading)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


@pytest.fixture(scope="module")
def outputs() -> tuple[str, str]:
    """What is shown on a terminal, and elsewhere; the two sleep at the same time."""
    words = [sys.executable, "-c", SCRIPT]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as elsewhere:
        shown = on_a_terminal()
        output, errors = elsewhere.communicate()
    assert (elsewhere.returncode, errors) == (0, "")
    return shown, output


def test_a_terminal_shows_what_is_done_and_keeps_the_lines(outputs: tuple[str, str]) -> None:
    shown, _ = outputs
    assert "working" in shown  # before there is anything to count
    assert "a result\r\n" in shown
    assert "loading" in shown
    assert "working" not in shown[shown.index("a result") :]


def test_without_a_terminal_a_line_comes_after_silence_and_says_how_far_it_is(
    outputs: tuple[str, str],
) -> None:
    others = outputs[1].splitlines()
    assert others[0] == "… working"  # before there is anything to count
    assert "a result" in others
    assert any(line.startswith("… pairs: 25% after") and "loading" in line for line in others)
    assert any("left" in line for line in others)
    assert others[-1] == "open for visitors"


def test_a_library_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.bar("work", 2) as step:
        step(1)
        time.sleep(0.01)
    assert list(progress.counted([1, 2], "work", 2)) == [1, 2]
    assert capfd.readouterr() == ("", "")


def test_the_first_words_come_before_a_library_is_imported() -> None:
    script = """
import sys
from pipeline.system import progress
with progress.shown():
    for module in ("turtledemo", "json"):
        with progress.loading(module, module):
            assert module == "json" or module not in sys.modules
"""
    words = [sys.executable, "-c", "import json\n" + script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["… loading turtledemo"]


def test_the_time_that_is_left_gets_less_while_a_step_is_under_way() -> None:
    bar = progress._new_bar("pairs", 4, progress._Nowhere())
    assert "left" not in progress._in_words(bar)
    bar.start_t, bar.last_print_t = bar.start_t - 100, bar.last_print_t - 100
    bar.update(2)
    assert progress._in_words(bar) == "pairs: 50% after 100 s, about 100 s left"
    for waited, left in ((60, ", about 40 s left"), (160, "")):
        bar.start_t, bar.last_print_t = time.time() - 100 - waited, time.time() - waited
        assert progress._in_words(bar) == f"pairs: 50% after {100 + waited} s{left}"
    bar.close()
