"""The served network as an ONNX file: pixels in, probabilities out.

In: a network and its preparation. Out: `onnx/model.onnx` with one input `pixels`, uint8
(N, 3, S, S), and one output `probabilities`, float32 (N, classes); beside it the labels in the
order of the output, and how a picture becomes pixels. What onnxruntime computes with the file is
compared with PyTorch before the file is logged. onnx, onnxscript and onnxruntime are an extra.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.data.image_set import ImageSet
from pipeline.data.images import Preparation
from pipeline.data.sampling.draws import Draw
from pipeline.errors import first_line
from pipeline.system.text import one_line
from pipeline.tracking import RunLog
from pipeline.training.prefix.cache import images_at_once

FOLDER = "onnx"
DIFFERENCE = "onnx/max_difference"
TOLERANCE = 1e-4
COMPARED = 64
"""Images on which both are compared."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class _FromPixels(nn.Module):
    """A network with its normalisation before it and softmax behind it."""

    def __init__(self, network: nn.Module, preparation: Preparation) -> None:
        super().__init__()
        self.network, self.preparation = network, preparation

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, S, S) to probabilities (N, classes)."""
        logits: Tensor = self.network(self.preparation.normalise(pixels))
        return logits.softmax(1)


def log_onnx(
    log: RunLog,
    network: nn.Module,
    draw: Draw,
    images: ImageSet,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Export a network, compare the file with it on some of `images`, and log both.

    Where that cannot be done the run goes on without a file: a note says why.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        say(f"note: no ONNX file, {', '.join(missing)} is not installed: pip install '.[onnx]'")
        return
    path, preparation = folder / FOLDER / "model.onnx", draw.train.preparation
    path.parent.mkdir()
    model = _FromPixels(copy.deepcopy(network).cpu().float(), preparation).eval()
    try:
        _export(model, images.pixels[:2].cpu(), path)
        difference = largest_difference(model, images.pixels[:COMPARED].cpu(), path)
    except Exception as err:  # noqa: BLE001 - the exporter and its libraries raise their own
        say(f"note: no ONNX file: {type(err).__name__}: {first_line(err)}")
        return
    if not difference <= TOLERANCE:
        say(
            f"note: no ONNX file: its probabilities differ from PyTorch's by {difference:.2g}, "
            f"more than {TOLERANCE:g}"
        )
        return
    (path.parent / "labels.txt").write_text(
        "".join(f"{one_line(name)}\n" for name in draw.class_names), encoding="utf-8"
    )
    about = {"class_names": draw.class_names, "image_size": images.pixels.shape[-1]}
    about |= {"ranges": draw.ranges} if draw.ranges else {}
    content = {**about, **asdict(preparation), "input": "pixels", "output": "probabilities"}
    (path.parent / "about.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    for file in sorted(path.parent.iterdir()):
        log.file(file, FOLDER)
    log.metrics({DIFFERENCE: difference})
    say(f"{FOLDER}/model.onnx gives PyTorch's probabilities to {difference:.1g}")


def _export(model: nn.Module, example: Tensor, path: Path) -> None:
    loud = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loud]
    try:
        for logger in loud:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (example,),
                str(path),
                input_names=["pixels"],
                output_names=["probabilities"],
                dynamo=True,
                external_data=False,
                dynamic_shapes={"pixels": {0: torch.export.Dim("images")}},
                verbose=False,
            )
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def largest_difference(model: nn.Module, pixels: Tensor, path: Path) -> float:
    """By how much a probability in a file's output differs from the model's, at most."""
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for some in torch.split(pixels, images_at_once(pixels.shape[-1])):
        (found,) = session.run(None, {"pixels": some.numpy()})
        differences.append((torch.from_numpy(found) - model(some)).abs().max())
    return float(torch.stack(differences).max())  # no number, where one is none
