"""The models on the page: the one that is used, and the stages that it is compared with.

In: a run with a model. Out: a `Panel` for the model and one for each stage of a chain. A stage
run that logged no model, as those of a decision, is given one from its checkpoint where images and
weights are still there. Examples are images of the test split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.app.attention import block_map, occlusion_map, overlay, places_a_side, third_block
from pipeline.errors import PipelineError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.runs.command import Command
from pipeline.runs.find_or_run import add_pictures_and_model
from pipeline.runs.lineage import settings_of
from pipeline.runs.session import Say, Session
from pipeline.runs.sources import source_of
from pipeline.serving.classifier import Classifier
from pipeline.settings.run import Settings
from pipeline.tracking import RunView, Tracking, keys
from pipeline.tracking.history import chain_of

EXAMPLES = 8
TOP = 3
FEWEST_PLACES = 7
"""A side, below which a map points at nothing smaller than a quarter of the picture or so."""


@dataclass(frozen=True)
class Answer:
    """What a model makes of a picture: the most probable classes first, and where it looks."""

    probabilities: dict[str, float]
    looks: Image.Image
    looked_at: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A model on the page.

    Attributes:
        backbone: the network as blocks; None where it cannot be made here, as a factory that is
            gone or has been edited since.
    """

    title: str
    classifier: Classifier
    backbone: Backbone | None

    def answer(self, picture: Image.Image) -> Answer:
        """Classify an RGB picture, and show where the network looks for its first class."""
        classifier = self.classifier
        pixels = classifier.pixels([picture])
        best = classifier.probabilities(pixels)[0].topk(min(TOP, len(classifier.class_names)))
        labels = best.indices.tolist()
        names = [classifier.class_names[label] for label in labels]
        found, what = None, "occlusion"
        if self.backbone:
            block, prepared = third_block(self.backbone), classifier.preparation
            what = f"HiResCAM after {block}"
            found = block_map(self.backbone, prepared.normalise(pixels), labels[0], block)
        if found is None:
            what = "occlusion, of the whole network"
            found = occlusion_map(classifier.probabilities, pixels[0], labels[0])
        probabilities = dict(zip(names, best.values.tolist(), strict=True))
        return Answer(probabilities, overlay(pixels[0], found), what)


def coarse_note(panel: Panel) -> str:
    """A sentence where the map has too few places to point at anything; else empty."""
    block = third_block(panel.backbone) if panel.backbone else ""
    side = places_a_side(panel.backbone, block) if panel.backbone else None
    if side is None or side >= FEWEST_PLACES:
        return ""
    size = panel.classifier.image_size
    return (
        f"After {block} this network has {side} x {side} places for a picture of {size} x {size} "
        "pixels: the map is too coarse to point at an object. A model trained with a larger "
        "image_size has a finer one."
    )


def panel_of(tracking: Tracking, run: RunView, title: str) -> Panel:
    """The model of a run.

    Raises:
        LineageError: the run has no model.
    """
    classifier = Classifier.of_run(tracking, run.run_id)
    return Panel(title=title, classifier=classifier, backbone=_as_blocks(run, classifier))


def _as_blocks(run: RunView, classifier: Classifier) -> Backbone | None:
    """The network of a run's model, made here; None where another or none is made here now."""
    about, size = classifier.served.about, classifier.image_size
    blocks, count = str(run.settings.get("blocks", "auto")), len(classifier.class_names)
    try:
        backbone = build_backbone(about["backbone"], count, size, 0, blocks)
    except (PipelineError, KeyError):
        return None
    was, logged = run.tags.get(keys.NETWORK_SHA256), classifier.network.state_dict()
    if was is not None and was != backbone.identity:
        return None
    if _shapes(backbone.model.state_dict()) != _shapes(logged):  # earlier runs have no digest
        return None
    backbone.put(logged)
    return backbone


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def compared_run(tracking: Tracking, run: RunView, say: Say) -> RunView | None:
    """The stage run whose chain is shown beside a model; None, with a note, where it is gone."""
    if run.tags.get(keys.KIND) == "stage":
        return run
    try:
        return tracking.get(run.tags[keys.COMPARED_RUN_ID])
    except PipelineError as err:
        say(f"note: no stages are shown beside it: {err}")
        return None


def stages_up_to(tracking: Tracking, last: RunView, command: Command) -> Iterator[Panel]:
    """The stages up to a run, first stage first; a note where one cannot be shown."""
    session: Session | None = None
    found: list[RunView] = []
    try:
        for run in chain_of(tracking, last):
            found.append(run)
    except PipelineError as err:
        command.say(f"note: stages before stage {found[-1].number(keys.STAGE)}: {err}")
    for run in reversed(found):
        number = run.number(keys.STAGE)
        try:
            if keys.MODEL_URI not in run.tags:
                session = session or _session(tracking, last, command)
                add_pictures_and_model(session, number, run.run_id)
                run = tracking.get(run.run_id)
            title = f"stage {number}: {run.tags[keys.TRAINS].replace(' ', ' + ')}"
            yield panel_of(tracking, run, title)
        except PipelineError as err:
            command.say(f"note: stage {number} is not shown: {err}")


def settings_now(run: RunView, command: Command) -> Settings:
    """A run's settings, its images and weights where the command says that they are."""
    return command.request.settings(settings_of(run), run.run_id)


def _session(tracking: Tracking, run: RunView, command: Command) -> Session:
    settings = settings_now(run, command).to_be_shown()
    session = Session.open(settings, tracking, lambda _: None)
    session.check_images(run)
    session.say = command.say
    return session


def examples_of(run: RunView, command: Command, folder: Path) -> list[tuple[Path, str]]:
    """Test images of as many classes as there is room for, as files, and what they show."""
    try:
        source = source_of(settings_now(run, command))
    except PipelineError as err:
        command.say(f"note: no examples: {err}")
        return []
    if source.test is None:
        command.say("note: no examples: the data has no test split")
        return []
    labels = source.test.labels
    firsts = [np.flatnonzero(labels == label)[:1] for label in np.unique(labels)]
    rows = np.concatenate(firsts)[:EXAMPLES] if firsts else np.zeros(0, dtype=np.int64)
    found = []
    folder.mkdir(parents=True, exist_ok=True)
    for row, picture in zip(rows.tolist(), source.test.read(rows.tolist()), strict=True):
        if isinstance(picture, Image.Image):
            path = folder / f"{row}.png"
            picture.save(path, icc_profile=None)
            found.append((path, source.class_names[labels[row]]))
    return found
