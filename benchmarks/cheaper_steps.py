"""Does a stage lose accuracy with smaller images at first, or with frozen outputs kept in int8?

    python benchmarks/cheaper_steps.py --out found.csv --draws 10 11 12 13 14 \
        --score_draws 18 19 --options data=CIFAR_FOLDER preset=cifar10_small

Stages 2 and 3 of each draw are trained in every way from the same checkpoint, that of the usual
stage before, and scored on the images of `--score_draws`, which nothing trains on or selects by.
Smaller images: the first `--small_share` of the epochs see images of `--small_size` pixels. A row
is written as soon as a stage has ended; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import pandas as pd
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.defaults import images_of
from pipeline.data.image_set import ImageSet
from pipeline.model.freezing import FrozenProof
from pipeline.model.segments import Segment
from pipeline.runs.find_or_run import find_or_run
from pipeline.runs.run_stage import trainer_of
from pipeline.runs.scoring import logits_of
from pipeline.runs.session import Session
from pipeline.settings.request import Request
from pipeline.settings.schedules import Stage
from pipeline.stats.metrics import score_logits
from pipeline.tracking import Tracking
from pipeline.tracking.keys import TRAIN_S, VAL_LOSS
from pipeline.training.prefix.features import Features, IntRows, StoredFeatures
from pipeline.training.trainer import Trainer

STAGES = (2, 3)
USUAL, INT8, SMALLER = "as it is", "int8", "smaller first"
LARGEST = 127


@dataclass(frozen=True, kw_only=True)
class Varied:
    """Stored outputs, changed before a suffix sees them."""

    read: Callable[[IntRows, IntRows], Tensor]
    running: ClassVar[tuple[Segment, ...]] = ()

    def batch(self, rows: IntRows, views: IntRows) -> Tensor:
        """The outputs for view `views[i]` of image `rows[i]`, (B, ...)."""
        return self.read(rows, views)


def in_int8(features: StoredFeatures, scale: Tensor) -> Features:
    """Outputs as they come back from int8 with a scale, (C,), for each channel."""

    def read(rows: IntRows, views: IntRows) -> Tensor:
        outputs = features.batch(rows, views)
        by_channel = scale.view(1, -1, *[1] * (outputs.ndim - 2))
        return (outputs / by_channel).round().clamp(-LARGEST, LARGEST) * by_channel

    return cast("Features", Varied(read=read))


def scale_of(features: StoredFeatures) -> Tensor:
    """The largest value of each channel as 127 steps, (C,)."""
    flat = features.values.flatten(0, -2).abs().amax(0).float()
    return flat.clamp(min=1e-12) / LARGEST


def smaller_first(trainer: Trainer, small: Features, full: Features, epochs: int) -> Features:
    """The first epochs on small images."""

    def read(rows: IntRows, views: IntRows) -> Tensor:
        return (small if trainer.done < epochs else full).batch(rows, views)

    return cast("Features", Varied(read=read))


def inputs_of(session: Session, stage: Stage) -> tuple[StoredFeatures, StoredFeatures]:
    """A suffix's stored inputs for training and validation images."""
    proof = FrozenProof.take(session.backbone, stage.number, stage.trainable)
    train, val = session.prefix_features(session.backbone, stage, proof.digests)
    assert isinstance(train, StoredFeatures)
    assert isinstance(val, StoredFeatures)
    return train, val


def train(
    session: Session, small: Session, number: int, way: str, small_share: float, images: ImageSet
) -> dict[str, object]:
    """A stage in one way, from the weights that the session's backbone holds; scored."""
    stage = session.settings.stage(number)
    before = {name: t.clone() for name, t in session.backbone.model.state_dict().items()}
    trainer = trainer_of(session, session.backbone, stage)
    features, val = inputs_of(session, stage)
    used: tuple[Features, Features] = features, val
    if way == INT8:
        scale = scale_of(features)
        used = in_int8(features, scale), in_int8(val, scale)
    elif way == SMALLER:
        small.backbone.put(before)
        first = round(small_share * trainer.settings.epochs)
        used = smaller_first(trainer, inputs_of(small, stage)[0], features, first), val
    draw = session.draw
    rows = list(trainer.epochs(draw.train, used[0], draw.val, used[1]))
    session.backbone.put(trainer.best)
    # the frozen part of the scored images is computed once for all ways
    prefix = min(
        session.backbone.frozen_segments(session.settings.stage(n).trainable) for n in STAGES
    )
    scores = score_logits(logits_of(session, session.backbone, images, prefix), images.labels)
    session.backbone.put(before)
    return {
        "epoch": trainer.history.selected,
        "val_loss": round(trainer.history.best[VAL_LOSS], 4),
        "acc": round(scores["acc"], 4),
        "loss": round(scores["loss"], 4),
        "train_s": round(sum(row[TRAIN_S] for row in rows), 1),
    }


def main() -> None:
    """Every way on every draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, nargs="+", required=True)
    parser.add_argument("--score_draws", type=int, nargs="+", required=True)
    parser.add_argument("--small_size", type=int, default=48, help="pixels")
    parser.add_argument("--small_share", type=float, default=0.5, help="of the epochs")
    parser.add_argument("--options", nargs="*", default=[], help="settings as name=value")
    words = parser.parse_args()
    options = dict(word.split("=", 1) for word in words.options)
    rows = pd.read_csv(words.out).to_dict("records") if words.out.exists() else []
    tracking = Tracking.connect()
    images = images_of(Request.read(options).settings(), words.score_draws)
    for draw in words.draws:
        settings = Request.read({**options, "draw": str(draw)}).settings()
        session = replace(Session.open(settings, tracking, lambda _: None), is_trial=True)
        size = {"image_size": words.small_size}
        small = Session.open(session.settings.model_copy(update=size), tracking, lambda _: None)
        for number in STAGES:
            parent = find_or_run(session, number - 1)
            for way in (USUAL, INT8, SMALLER):
                about = {"draw": draw, "stage": number, "way": way}
                if any(about.items() <= row.items() for row in rows):
                    continue
                session.restore(tracking.get(parent.run_id))
                found = train(session, small, number, way, words.small_share, images)
                rows.append(about | found)
                pd.DataFrame(rows).to_csv(words.out, index=False)
                sys.stderr.write(f"{rows[-1]}\n")


if __name__ == "__main__":
    main()
