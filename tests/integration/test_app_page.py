"""The page as a person has it: a real upload in a browser, the same through Gradio's client."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.entries.command_line.table import perform
from tests.conftest import class_image, enter_store, inside, tiny, write_image_folder

if not importlib.util.find_spec("gradio"):  # importing takes seconds
    pytest.skip("the extra app is not installed", allow_module_level=True)
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
"""Pictures of the page that the browser cannot show."""


@dataclass
class Served:
    """A page that is up."""

    process: subprocess.Popen[str]
    address: str
    folder: Path
    said: list[str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Served]:
    """`python -m pipeline app` on a chain of two stages, in a process of its own."""
    root = tmp_path_factory.mktemp("page")
    images = write_image_folder(root / "images", 14)
    with pytest.MonkeyPatch.context() as patch:
        enter_store(root / "work", empty_database, patch)
    with inside(root / "work"):
        options = {"test_per_class": "4", "preset": "images", "log_model": "on"}
        stage = perform("stage2", tiny(images, root / "work", options), lambda _: None)
        words = [sys.executable, "-m", "pipeline", "app", "--run_id", stage.run_id]
        own = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*words, "--keep", str(root / "kept")],
            env=own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if "the app is at http://127.0.0.1:" in line:
                break
        else:
            pytest.fail("".join(said))
        yield Served(process, said[-1].split()[4], root, said)
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def test_gradios_client_is_answered(served: Served) -> None:
    import gradio_client

    client = gradio_client.Client(served.address, verbose=False, analytics_enabled=False)
    try:
        picture = gradio_client.handle_file(served.folder / "images" / "apple" / "01.png")
        message, probabilities, looks, *_ = client.predict(picture, api_name="/classify")
        assert message == ""
        assert {row["label"] for row in probabilities["confidences"]} == {
            "apple",
            "berry",
            "cherry",
        }
        assert looks["label"].startswith("looks at (")
        bad = served.folder / "text.png"
        bad.write_text("hello")
        sent = gradio_client.handle_file(bad)
        message, *_ = client.predict(sent, api_name="/classify")
        assert message.startswith("This file cannot be read (")
        answer = client.predict(picture, "../../out", api_name="/keep")
        assert answer.startswith("Not kept: ")
    finally:
        client.close()


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium; skipped where Playwright or Chromium is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("Chromium is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


def test_a_picture_is_uploaded_in_a_browser_and_kept(served: Served, browser: Any) -> None:  # noqa: ANN401
    page = browser.new_page(viewport={"width": 1400, "height": 1200})
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda asked: (
            elsewhere.append(asked.url)
            if not asked.url.startswith((served.address, "data:", "blob:"))
            else None
        ),
    )
    page.goto(served.address)
    page.wait_for_selector("input[type=file]", state="attached")
    new = served.folder / "new.png"
    class_image(1, 77).save(new)
    page.set_input_files("input[type=file]", str(new))
    page.get_by_text("looks at (").first.wait_for(timeout=30_000)
    text = page.inner_text("body")
    assert "this network has" in text  # 32 pixels: too few places to point at an object
    for words in ("stage 1: head", "stage 2: head + block4", "examples from the test split", "%"):
        assert words in text
    page.get_by_label("wrong? the right class").fill("a new class")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="keep it for the next training").click()
    page.get_by_text("Kept as").wait_for(timeout=30_000)
    (kept,) = (served.folder / "kept").rglob("*.png")
    assert kept.parent.name == "a new class"
    page.reload()
    page.locator("button.thumbnail-item").nth(2).click()  # an example
    page.get_by_text("looks at (").first.wait_for(timeout=30_000)
    page.get_by_label("Remove Image").wait_for(timeout=30_000)
    bad = served.folder / "bad.png"
    bad.write_text("hello")
    page.reload()
    page.wait_for_selector("input[type=file]", state="attached")
    page.set_input_files("input[type=file]", str(bad))
    page.get_by_text("This file cannot be read").wait_for(timeout=30_000)
    page.get_by_label("Remove Image").wait_for(state="detached", timeout=30_000)
    assert page.evaluate(BROKEN) == 0  # no icon of a picture that cannot be shown
    assert "This file cannot be read" in page.inner_text("body")
    assert elsewhere == []


def test_a_taken_port_is_one_line(served: Served) -> None:
    words = [sys.executable, "-m", "pipeline", "app", "--port", served.address.split(":")[-1][:-1]]
    run_id = next(iter(served.process.args[-3:-2]))  # type: ignore[arg-type]
    with inside(served.folder / "work"):
        done = subprocess.run(
            [*words, "--run_id", str(run_id)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "pass another -P port=" in line


def test_ctrl_c_ends_the_page_with_one_line(served: Served) -> None:
    served.process.send_signal(signal.SIGINT)
    assert served.process.stdout
    rest = served.process.stdout.read().splitlines()
    assert served.process.wait(timeout=30) == 0
    told = [line for line in rest if not line.startswith("… ")]  # of requests that took long
    assert told == ["the app has ended"]
