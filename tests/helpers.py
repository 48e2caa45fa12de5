"""What several test files share: small image sets, and features for them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.comparing.arms import Arm
from pipeline.data.base import Source, Split
from pipeline.data.image_set import ImageSet
from pipeline.data.images import USUAL, digest_image
from pipeline.data.open import open_source
from pipeline.data.sampling.draws import Draw, draw_in
from pipeline.data.stored import Stored
from pipeline.entries.command_line.parser import parse
from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.errors import DataError
from pipeline.model import factories
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.settings.request import Request
from pipeline.settings.run import Settings, TrainSettings
from pipeline.settings.schedules import SCHEDULES, Stage
from pipeline.system.disk import first_read
from pipeline.training.norm.stats import calibrate_norm_stats
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.prefix.features import Features
from pipeline.training.trainer import Trainer
from pipeline.weights.pretrained import Pretrained, read_weights
from tests.conftest import class_image

torch.set_num_threads(1)  # in programs that tests start, too
CPU = torch.device("cpu")
CLASSES = 3
SIZE = 32
DISTINCT_STAGES = {
    step.trainable: step for steps in reversed(SCHEDULES.values()) for step in steps.stages
}
"""One stage of every set of trainable blocks that any schedule has."""


def slow_after(count: int, values: Iterable[object]) -> list[Any]:
    """Parameters of a test: so many are in the fast check, the others are marked `slow`."""
    sets = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*one, marks=() if place < count else pytest.mark.slow)
        for place, one in enumerate(sets)
    ]


def request_of(
    entry_point: str, options: Mapping[str, str], config: Path | str | None = None
) -> Request:
    """The request behind an entry point's options and a YAML file."""
    file = {"config": str(config)} if config else {}
    return ENTRY_POINTS[entry_point].read({**options, **file})


def load_settings(
    options: Mapping[str, str],
    *,
    config: str = "none",
    target: int | None = None,
    inherited: Mapping[str, object] | None = None,
) -> Settings:
    """The settings behind the options of a run and a YAML file."""
    return Request.read({**options, "config": config}).for_stage(target).settings(inherited)


def typed_in(line: str) -> tuple[str, dict[str, str]]:
    """Entry point and options of a command line that is shown, as `mlflow run` would read it."""
    shown = line.partition("mlflow run . -e ")[2].replace(" --env-manager local", "")
    entry_point, options = parse(shlex.split(shown))
    return entry_point, dict(options)


def make_images(count: int, size: int = 32, start: int = 0) -> ImageSet:
    """Images of `CLASSES` classes in turn; another `start` gives other images."""
    labels = [number % CLASSES for number in range(count)]
    images = [class_image(label, start + number) for number, label in enumerate(labels)]
    return ImageSet(
        pixels=torch.from_numpy(np.stack([USUAL.fit_square(image, size) for image in images])),
        labels=torch.tensor(labels),
        digests=np.stack([np.frombuffer(digest_image(image), dtype=np.uint8) for image in images]),
    )


def fill(root: Path, *folders: str, count: int = 2, start: int = 0) -> Path:
    """Images of a class in each of these folders."""
    for label, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            class_image(label, number).save(root / folder / f"{number}.png")
    return root


def opened(root: Path, **columns: str) -> Source:
    """The source in a folder."""
    return open_source(str(root), root.parent / "cache", **columns)


def refused(root: Path, *words: str) -> None:
    """Assert that a folder is refused with these words, in this order."""
    with pytest.raises(DataError, match=".*".join(map(re.escape, words))):
        opened(root)


def split_of(
    labels: Sequence[int], read: Callable[[Sequence[int]], Iterable[Image.Image]]
) -> Split:
    """A split of images that `read` makes of row numbers."""

    def items(rows: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        return ((f"row {row}", np.asarray(i)) for row, i in zip(rows, read(rows), strict=True))

    numbers = np.array(labels, dtype=np.int64)
    stored = Stored(
        items=items,
        sizes=lambda: np.zeros(len(numbers), np.int64),
        sample=lambda: b"",
        digests=lambda: [image.tobytes() for _, image in items(range(len(numbers)))],
    )
    return Split(labels=numbers, stored=stored)


def make_draw(source: Source, **settings: object) -> Draw:
    """The draw that these settings name, which may be smaller than a person may ask for."""
    return draw_in(source, load_settings({}).model_copy(update=settings))


def calibrate(backbone: Backbone, images: ImageSet, cache_folder: Path | None = None) -> None:
    """`calibrate_norm_stats` in float32."""
    calibrate_norm_stats(backbone, images, torch.float32, CPU, cache_folder)


def calibrated_backbone(name: str, images: ImageSet, seed: int = 0) -> Backbone:
    """Random weights whose BatchNorm statistics fit: outputs of a healthy size in every block."""
    backbone = build_backbone(name, CLASSES, SIZE, seed)
    calibrate(backbone, images)
    return backbone


def edited_factory(folder: Path, layer: str, patch: pytest.MonkeyPatch) -> Backbone:
    """The network of a factory's file in that folder; `layer`: `stem[2] = nn.ReLU()`, for one."""
    (folder / "edited_network.py").write_text(
        "from torch import nn\nfrom tests.networks import Net\n\n\n"
        "def build(num_classes):\n    net = Net(num_classes)\n"
        f"    net.{layer}\n    return net\n"
    )
    patch.syspath_prepend(str(folder))
    as_in_a_new_process("edited_network")
    return build_backbone("edited_network:build", CLASSES, SIZE, seed=0)


def as_in_a_new_process(*modules: str) -> None:
    """Forget modules, and which files this process read first."""
    for name in [n for n in sys.modules if n.partition(".")[0] in modules]:
        del sys.modules[name]
    first_read._FIRST.clear()
    for kept in (factories._files_of, factories._imported_by, factories._loaded_at_first):
        kept.cache_clear()


def other_version_of(distribution: str, patch: pytest.MonkeyPatch) -> None:
    """Let an installed distribution be of another version."""
    patch.setattr(
        "pipeline.system.provenance.version",
        lambda name: "0.0.1" if name == distribution else version(name),
    )


def live_features(
    backbone: Backbone,
    stage: Stage,
    images: ImageSet,
    dtype: torch.dtype = torch.float32,
) -> Features:
    """The suffix's inputs, unaugmented and computed for each batch."""
    prefix = backbone.frozen_segments(stage.trainable)
    return PrefixCache(None, 0).features(
        backbone, prefix, images, augment="none", views=1, dtype=dtype, device=CPU
    )


def copy_state(backbone: Backbone) -> dict[str, Tensor]:
    """Every parameter and buffer as it is now."""
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def changed_names(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors whose bits differ."""
    return {
        name
        for name, tensor in before.items()
        if not torch.equal(
            tensor.contiguous().view(-1).view(torch.uint8),
            after[name].contiguous().view(-1).view(torch.uint8),
        )
    }


def planned_epochs(arm: Arm) -> int:
    """Planned epochs of all stages of an arm together."""
    return sum(arm.settings.training(number).epochs for number in range(1, arm.last + 1))


def load_pretrained(weights: str, backbone: Backbone) -> Pretrained:
    """The tensors of `weights` that fit `backbone`."""
    return read_weights(weights, backbone.name, SIZE).fitted(backbone)


def trainer_for(
    backbone: Backbone,
    stage: Stage,
    settings: TrainSettings,
    *,
    seed: int = 0,
    views: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Trainer:
    """A trainer on the CPU."""
    return Trainer(
        backbone=backbone,
        stage=stage,
        settings=settings,
        seed=seed,
        views=views,
        device=CPU,
        dtype=dtype,
    )
