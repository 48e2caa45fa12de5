"""The page: a picture in, what the models say and look at out, and a way to keep a picture.

In: panels, examples and a folder. Out: a Gradio app, not launched. Files are read as in training:
what cannot be read gets one sentence. Nothing on the page comes from another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from pipeline.app.keep import checked_label, keep_picture, next_command
from pipeline.app.panels import Panel, coarse_note
from pipeline.data.base import Unreadable, decode_image
from pipeline.data.images import DOUBT
from pipeline.errors import PipelineError
from pipeline.system.text import as_markdown

READ = "Upload a picture, take one with the camera, or choose an example."
THEME = gr.themes.Default(
    font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)


def _path_of(payload: Any) -> str | None:  # noqa: ANN401 - Gradio's own
    """The file that was sent, as it was sent."""
    return payload.path if payload else None


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows and does.

    Attributes:
        own: the model that is used.
        stages: what it is compared with, first stage first.
        keep: where pictures are kept.
        about: what is known of the model, as Markdown.
        beside: what the stages were trained on.
    """

    own: Panel
    stages: Sequence[Panel]
    keep: Path
    about: str
    beside: str

    def read(self, path: str) -> Image.Image | Unreadable:
        """An uploaded file as RGB, as in training."""
        return decode_image(Path(path), "", self.own.classifier.ranges or {})

    def classify(self, path: str | None) -> list[object]:
        """A message, then for each panel its probabilities and what it looks at."""
        panels = [self.own, *self.stages]
        nothing: list[object] = [None] * (2 * len(panels))
        if not path:
            return [READ, *nothing]
        picture = self.read(path)
        if isinstance(picture, Unreadable):
            why = as_markdown(picture.reason)
            message = f"This file cannot be read ({why}): choose a picture, such as a PNG or JPEG."
            return [message, *nothing]
        shown: list[object] = []
        for panel in panels:
            answer = panel.answer(picture)
            looks = gr.update(value=answer.looks, label=f"looks at ({answer.looked_at})")
            shown += [answer.probabilities, looks]
        doubt = picture.info.get(DOUBT, "")
        return [f"Note: this picture {as_markdown(doubt)}" if doubt else "", *shown]

    def _changed(self, path: str | None, refused: int) -> list[object]:
        """`classify`, and how many pictures could not be read so far: these are taken away."""
        found = self.classify(path)
        if not path:  # the message on why it was taken away stays
            return [gr.update(), *found[1:], refused]
        return [*found, refused + isinstance(self.read(path), Unreadable)]

    def keep_it(self, path: str | None, label: str | None) -> str:
        """Keep the picture with its right label; says where, and what to type next."""
        if not path:
            return READ
        if not label:
            return "Choose the right class, or type a new one."
        picture = self.read(path)
        if isinstance(picture, Unreadable):
            return f"This file cannot be read ({as_markdown(picture.reason)})."
        try:
            name = checked_label(label, self.own.classifier.class_names)
            kept = keep_picture(picture, name, self.keep)
            return f"Kept as {as_markdown(str(kept))}. {as_markdown(next_command(self.keep))}"
        except PipelineError as err:
            return as_markdown(f"Not kept: {err}")

    def build(self, examples: Sequence[tuple[Path, str]]) -> gr.Blocks:
        """The page as a Gradio app; `examples`: files, and what they show."""
        own = self.own
        with gr.Blocks(title="How far should I unfreeze?", analytics_enabled=False) as app:
            gr.Markdown(f"## {as_markdown(own.title)}\n\n{self.about}")
            with gr.Row():
                with gr.Column():
                    picture = gr.Image(
                        label="your picture", sources=["upload", "webcam", "clipboard"], height=280
                    )
                    # Gradio itself would decode the file; a subclass makes it write a .pyi here
                    setattr(picture, "preprocess", _path_of)  # noqa: B010
                    message = gr.Markdown(READ)
                    if examples:
                        self._offer(examples, picture)
                with gr.Column():
                    outputs: list[Any] = self._show(own, "this model")
                    if coarse := coarse_note(own):
                        gr.Markdown(as_markdown(coarse))
                    right = gr.Dropdown(
                        own.classifier.class_names,
                        value=None,
                        label="wrong? the right class, or a new one",
                        allow_custom_value=True,
                    )
                    button = gr.Button("keep it for the next training")
                    kept = gr.Markdown()
            if self.stages:
                gr.Markdown(f"### {as_markdown(self.beside)}")
                with gr.Row():
                    for panel in self.stages:
                        with gr.Column(min_width=200):
                            outputs += self._show(panel, panel.title)
            refused = gr.State(0)
            shown = [message, *outputs, refused]
            picture.change(self._changed, [picture, refused], shown, api_name="classify")
            # a plain value, as an update would make the component anew, without `_path_of`
            refused.change(lambda: None, None, picture, api_visibility="private")
            picture.clear(lambda: READ, None, message, api_visibility="private")
            button.click(self.keep_it, [picture, right], kept, api_name="keep")
        return app  # type: ignore[no-any-return, unused-ignore]

    @staticmethod
    def _offer(examples: Sequence[tuple[Path, str]], picture: gr.Image) -> None:
        """Thumbnails, of which one that is clicked becomes the picture."""
        files = [str(path) for path, _ in examples]
        gallery = gr.Gallery(
            [(file, label) for file, (_, label) in zip(files, examples, strict=True)],
            label="examples from the test split",
            columns=4,
            height=170 if len(files) <= 4 else 310,
            allow_preview=False,
            interactive=False,
            buttons=[],
        )

        def chosen(clicked: gr.SelectData) -> str:
            return files[int(clicked.index)]

        # a plain value: with `gr.Examples`, Gradio makes the component anew, without `_path_of`
        gallery.select(chosen, None, picture, api_visibility="private")

    @staticmethod
    def _show(panel: Panel, label: str) -> list[Any]:
        return [
            gr.Label(num_top_classes=3, label=label),
            gr.Image(label="looks at", interactive=False, height=200, buttons=[]),
        ]
