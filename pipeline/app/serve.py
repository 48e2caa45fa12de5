"""Entry point app: the page on 127.0.0.1, until Ctrl-C.

In: a model, by run or from the registry. Out: nothing but pictures that a person keeps. The page
asks no other machine for anything, and tells none.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.app.panels import compared_run, examples_of, panel_of, stages_up_to
from pipeline.errors import SettingsError, first_line
from pipeline.runs.command import Command
from pipeline.runs.session import Say
from pipeline.serving.chosen import chosen_run
from pipeline.settings.entry import AppSettings
from pipeline.settings.fields import AUTO
from pipeline.system.disk.files import typed_path
from pipeline.system.interrupts import at_once, check
from pipeline.system.progress import doing, loading, waiting
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.keys import DRAW, KIND, NOTE, REFIT, TEST

HOST = "127.0.0.1"
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
LOOK_S = 0.2


def app_entry(command: Command, plan: AppSettings) -> None:
    """Entry point app.

    Raises:
        SettingsError: Gradio is not installed, or the port is taken.
        LineageError: no such model.
    """
    if find_spec("gradio") is None:
        raise SettingsError("gradio is not installed: pip install '.[app]'")
    tracking = Tracking.connect("app", files=False)
    with tracking.explained(), tempfile.TemporaryDirectory() as folder:
        run = tracking.get(chosen_run(tracking, plan.run_id, plan.model))
        compared = compared_run(tracking, run, command.say)
        with doing("loading the models"):
            own = panel_of(tracking, run, run.name)
            stages = list(stages_up_to(tracking, compared, command)) if compared else []
        examples = examples_of(run, command, Path(folder) / "examples")
        tracking.name_launched(f"app · {run.name}", "app")
        os.environ.update(_QUIET | {"GRADIO_TEMP_DIR": folder})
        with loading("Gradio", "gradio"):
            from pipeline.app.page import Page  # after the variables, which Gradio reads

        page = Page(
            own=own,
            stages=stages,
            keep=typed_path(plan.keep, "keep"),
            about=about(run),
            beside=_beside(compared) if compared else "",
        )
        _serve(page.build(examples), plan.port, command.say)
    command.say("the app has ended")


def _serve(app: Any, port: int, say: Say) -> None:  # noqa: ANN401 - Gradio's, an extra
    """Show the page until Ctrl-C.

    Raises:
        SettingsError: the port is taken.
    """
    from pipeline.app.page import THEME

    try:
        app.launch(
            server_name=HOST,
            server_port=port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            max_file_size="100mb",
            theme=THEME,
        )
    except OSError as err:
        raise SettingsError(
            f"port={port} is in use: pass another -P port=, or leave it out"
            if port
            else f"the page cannot be served ({first_line(err)}): pass -P port=<one that is free>"
        ) from None
    say(f"the app is at {app.local_url} (Ctrl-C ends it)")
    try:
        with suppress(KeyboardInterrupt), at_once(), waiting():
            while True:
                time.sleep(LOOK_S)
                check()
    finally:
        app.close(verbose=False)


def about(run: RunView) -> str:
    """What is known of a model; of a refit the verdict, too, which follows its card's heading."""
    score = run.metrics.get(TEST["acc"], math.nan)
    known = "never scored" if math.isnan(score) else f"test accuracy {score:.1%}"
    card = run.tags.get(NOTE, "") if run.tags.get(KIND) == REFIT else ""
    verdict = re.search(r"^# .*\n\n.+", card, re.MULTILINE)
    told = [verdict[0].rpartition("\n")[2]] if verdict else []
    return "\n\n".join([f"Run {run.run_id}, {known}.", *told])


def _beside(run: RunView) -> str:
    """What the stages that are compared were trained on."""
    asked = run.settings["train_per_class"]
    images = "the images" if asked == AUTO else f"{asked} images a class"
    return (
        f"Stage after stage, each trained on {images} of draw {run.tags[DRAW]} (run "
        f"{run.run_id[:8]}…)"
    )
