"""Which settings should a stage have by default? Recipes from common parents, on tuning draws.

    python benchmarks/defaults.py --recipes benchmarks/defaults.yaml --out found.csv \
        --draws 15 16 --score_draws 18 19 --options preset=cifar10 data=CIFAR_FOLDER \
        weights=FILE

A recipe is a list of stages, each a mapping of training settings: `[{}, {augment: strong}]` is
stage 1 as it is and stage 2 with crops. Recipes that begin alike share these stages, which are
runs in MLflow like any other. Validation images select the epoch, as ever; what counts is the
accuracy on the images of `--score_draws`, which no recipe trains on or selects by. A row is
written as soon as a recipe has ended; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.data.image_set import ImageSet
from pipeline.data.sampling.draws import draw_in
from pipeline.runs.find_or_run import find_or_run
from pipeline.runs.scoring import logits_of
from pipeline.runs.session import Session
from pipeline.runs.sources import source_of
from pipeline.settings.request import Request
from pipeline.settings.run import Settings
from pipeline.stats.metrics import score_logits
from pipeline.tracking import Tracking

Recipe = Sequence[Mapping[str, object]]
SHOWN = ("backbone", "image_size", "train_per_class")


def images_of(settings: Settings, draws: Sequence[int]) -> ImageSet:
    """Training and validation images of these draws together."""
    source, parts = source_of(settings), []
    for number in draws:
        draw = draw_in(source, settings.model_copy(update={"draw": number}))
        parts += [draw.train, draw.val]
    return ImageSet(
        pixels=torch.cat([part.pixels for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        digests=np.concatenate([part.digests for part in parts]),
    )


def options_of(options: Mapping[str, str], draw: int, recipe: Recipe) -> dict[str, str]:
    """A recipe on a draw, as the command line would have it."""
    own = {f"stage{n}.{k}": str(v) for n, stage in enumerate(recipe, 1) for k, v in stage.items()}
    return {**options, "draw": str(draw), **own}


def run_recipe(
    session: Session, settings: Settings, stage: int, images: ImageSet
) -> dict[str, object]:
    """A recipe's last stage: found or trained, and scored."""
    own = replace(session, settings=session.resolved(settings), keys={}, done={}, is_trial=True)
    summary = find_or_run(own, stage)
    backbone = own.restore(own.tracking.get(summary.run_id))
    # one pass for all recipes
    prefix = min(backbone.frozen_segments(settings.stage(n).trainable) for n in (2, 3))
    logits = logits_of(own, backbone, images, prefix)
    scores = score_logits(logits, images.labels)
    return {
        "stage": stage,
        "epoch": summary.epoch,
        "val_acc": round(summary.val_acc, 4),
        "acc": round(scores["acc"], 4),
        "loss": round(scores["loss"], 4),
        "wall_s": round(summary.wall_s, 1),
    }


def main() -> None:
    """Every recipe on every draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, nargs="+", required=True)
    parser.add_argument("--score_draws", type=int, nargs="+", required=True)
    parser.add_argument("--options", nargs="*", default=[], help="settings as name=value")
    words = parser.parse_args()
    options = dict(word.split("=", 1) for word in words.options)
    recipes: list[Recipe] = yaml.safe_load(words.recipes.read_text(encoding="utf-8"))
    rows = pd.read_csv(words.out).to_dict("records") if words.out.exists() else []
    tracking = Tracking.connect()
    images = images_of(Request.read(options).settings(), words.score_draws)
    for draw in words.draws:
        session: Session | None = None
        for recipe in recipes:
            settings = Request.read(options_of(options, draw, recipe)).settings()
            about = {key: getattr(settings, key) for key in SHOWN}
            about |= {"draw": draw, "recipe": json.dumps(recipe)}
            if any(about.items() <= row.items() for row in rows):
                continue
            session = session or Session.open(settings, tracking, lambda _: None)
            rows.append(about | run_recipe(session, settings, len(recipe), images))
            pd.DataFrame(rows).to_csv(words.out, index=False)
            sys.stderr.write(f"{rows[-1]}\n")


if __name__ == "__main__":
    main()
