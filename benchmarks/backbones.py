"""One network of every family through a chain of stages, against a plain loop.

    python benchmarks/backbones.py --out backbones.csv --options data=CIFAR_FOLDER image_size=64
    python benchmarks/backbones.py --only resnet18 --weights FILE ...

For each network: every stage of the schedule by the pipeline (its own MLflow store in a temporary
folder), the score on the test split, and for each stage the processor seconds, with what computes
and keeps the frozen prefix and with logging, beside those of a plain loop of as many epochs: all
images through all blocks, the frozen ones without gradients, in the same precision.
`agreement`: the largest difference of logits, float32, between the cached prefix with its suffix
and the network itself. `served`: the largest difference of probabilities between the
network here and the logged model in a fresh process. A row is written as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.data.augment import pick_views, render_views
from pipeline.entries.command_line.table import ENTRY_POINTS, perform
from pipeline.model.backbones import Backbone
from pipeline.model.freezing import set_trainable
from pipeline.runs.session import Session
from pipeline.settings.schedules import Stage
from pipeline.tracking import Tracking
from pipeline.training.device import compute_copy, run_segments
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.trainer import split_batches

NETWORKS = (
    *("resnet18", "mobilenet_v2", "regnet_y_400mf", "densenet121", "efficientnet_v2_s"),
    *("convnext_tiny", "swin_t", "timm:vit_tiny_patch16_224", "timm:convnextv2_atto"),
    *("timm:tf_efficientnet_lite0", "timm:mobilenetv4_conv_small"),
    *("timm:vit_small_patch14_dinov2",),
)
BEGINS, ENDS = "stage {}: no finished run", "Stage-{} Best results"
"""How the lines of a command begin that a stage is between."""
PREDICT = """
import sys
sys.modules["pipeline"] = None  # as where it is not installed
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
image = open(sys.argv[2], "rb").read()
answer = model.predict(pd.DataFrame({"image": [image]})).drop(columns=["label", "error"])
print(answer.iloc[0].to_json())
"""


def plain_loop_s(session: Session, backbone: Backbone, stage: Stage, epochs: int) -> float:
    """Processor seconds for the stage's epochs, and its validation, without any cache."""
    settings, draw = session.settings, session.draw
    training = settings.training(stage.number)
    started = time.process_time()
    segments = compute_copy(backbone.segments, session.dtype, session.device)
    set_trainable(segments, stage.trainable, training.norm)
    first = backbone.frozen_segments(stage.trainable)
    weights = [p for s in segments for p in s.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.lr, fused=True)
    rng = np.random.default_rng(0)
    for epoch in range(epochs):
        views = pick_views(
            draw.train.keys,
            seed=0,
            epoch=epoch,
            augment=training.augment,
            stored_views=settings.views,
        )
        for rows in split_batches(rng.permutation(len(draw.train)), training.batch_size):
            pixels, labels = draw.train.pixels[rows], draw.train.labels[rows]
            prepared = draw.train.preparation
            x = render_views(
                pixels, draw.train.keys[rows], views[rows], training.augment, prepared
            )
            with torch.no_grad():
                x = run_segments(segments[:first], x, session.dtype)
            loss = F.cross_entropy(run_segments(segments[first:], x, session.dtype), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for pixels in torch.split(draw.val.pixels, 500):
                run_segments(segments, draw.val.preparation.normalise(pixels), session.dtype)
    return time.process_time() - started


@torch.no_grad()
def agreement(session: Session, backbone: Backbone, folder: Path) -> float:
    """Largest difference of logits, cached against direct, float32, over all borders."""
    images, cache = session.draw.val, PrefixCache(folder, 10**10)
    rows = np.arange(min(64, len(images)))
    direct = backbone.model(images.preparation.normalise(images.pixels[rows]))
    found = 0.0
    for prefix in range(1, len(backbone.segments)):
        features = cache.features(
            backbone,
            prefix,
            images,
            augment="none",
            views=1,
            dtype=torch.float32,
            device=session.device,
        )
        suffix = compute_copy(backbone.segments[prefix:], torch.float32, session.device)
        logits = run_segments(suffix, features.batch(rows, np.zeros_like(rows)), torch.float32)
        found = max(found, float((logits - direct).abs().max()))
    return found


@torch.no_grad()
def served_difference(session: Session, backbone: Backbone, uri: str, folder: Path) -> str:
    """How far probabilities of the logged model, in a process without this repository, are off."""
    pixels, picture = session.draw.val.pixels[:1], folder / "picture.png"
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(picture)
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, uri, str(picture)],
        cwd=folder,
        env={"PATH": "", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"failed: {done.stderr[-200:]}"
    served = list(json.loads(done.stdout.splitlines()[-1]).values())
    here = backbone.model(session.draw.val.preparation.normalise(pixels)).softmax(1)[0]
    return f"{np.abs(here.numpy() - served).max():.1e}"


def rows_of(name: str, options: dict[str, str], folder: Path) -> Iterator[dict[str, Any]]:
    """A row a stage."""
    lines: dict[str, float] = {}

    def say(line: str) -> None:
        lines[line] = time.process_time()

    def said(beginning: str) -> float:
        return next(at for line, at in lines.items() if line.startswith(beginning))

    given = {**options, "backbone": name, "cache_dir": str(folder / "cache")}
    summaries = perform("main", given, say)
    scores = perform("evaluate", {"run_id": summaries[-1].run_id}, say)
    tracking = Tracking.connect()
    settings = ENTRY_POINTS["main"].read(given).settings()
    session = Session.open(settings, tracking, say)
    last = tracking.get(summaries[-1].run_id)
    backbone = session.restore(last)
    difference = agreement(session, backbone, folder / "agreement")
    served = served_difference(session, backbone, last.tags["model_uri"], folder)
    sizes = {name: tensor.numel() for name, tensor in backbone.model.named_parameters()}
    for summary in summaries:
        stage = session.settings.stage(summary.number)
        epochs = settings.training(summary.number).epochs
        frozen = backbone.frozen_segments(stage.trainable)
        border = backbone.segments[frozen - 1].shape if frozen else ()
        seconds = said(ENDS.format(summary.number)) - said(BEGINS.format(summary.number))
        plain = plain_loop_s(session, backbone, stage, epochs)
        yield {
            "backbone": name,
            "blocks": len(backbone.order),
            "segments": len(backbone.segments),
            "stage": summary.number,
            "trained": sum(sizes.get(n, 0) for n in backbone.tensor_names(stage.trainable)),
            "border": " x ".join(map(str, border)) or "none",
            "val_acc": round(summary.val_acc, 4),
            "test_acc": round(scores["acc"], 4) if summary is summaries[-1] else "",
            "stage_s": round(seconds, 1),
            "plain_s": round(plain, 1),
            "agreement": f"{difference:.1e}",
            "served": served,
        }


def main() -> None:
    """Write a row a stage of each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=NETWORKS)
    parser.add_argument("--weights", default="none")
    parser.add_argument("--options", nargs="*", default=[])
    asked = parser.parse_args()
    options = {"weights": asked.weights, **dict(one.split("=", 1) for one in asked.options)}
    for name in asked.only:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
            for row in rows_of(name, options, Path(folder)):
                found = pd.DataFrame([row])
                found.to_csv(asked.out, mode="a", header=not asked.out.exists(), index=False)
                print(row, flush=True)


if __name__ == "__main__":
    main()
