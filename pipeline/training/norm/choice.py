"""Which BatchNorm statistics a chain starts from: the weights' own, or those of the new images.

In: a backbone with its pretrained weights, and the draw's training images; validation and test
images play no part. Out: a `NormStatsChoice`, with the score of both candidates and the reason.

Each candidate is probed by a ridge classifier on the features that enter the head: standardised,
penalty `PENALTY` for each feature, `FOLDS` folds dealt by `SEED` over images in the order of their
digests. Of more than `MOST` images the first by digest are probed, and more of a class that has
next to none among them. Images are scored by the probe that has not seen them. `target` is taken
where its lead exceeds `NOISE_SE` paired standard errors, `source` otherwise: of two that score
alike, the one that changes nothing. The features of `target` come from the calibration pass
itself, so that a choice costs one unaugmented pass over the training images more than `target`
does; their statistics are those of each batch, which costs `target` 0 to 4 points against
its final ones (docs/reference.md).

Background: Li et al. 2016 (arXiv 1603.04779) found new statistics better across domains; with
ImageNet weights on small natural images they were measured to be worse (docs/reference.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.image_set import ImageSet
from pipeline.data.images import IntArray
from pipeline.data.sampling.few import TWO, few_with_every_class
from pipeline.errors import WeightsError
from pipeline.model.backbones import Backbone, batch_norms
from pipeline.system.disk.digests import digest_values
from pipeline.system.disk.files import keep_in_cache
from pipeline.system.progress import doing
from pipeline.system.threads import one_thread
from pipeline.training.device import compute_copy, joined, run_to_head
from pipeline.training.norm.stats import (
    PIXELS_PER_BATCH,
    keep_norm_stats,
    kept_at,
    recalibrate,
    statistics_of,
)

FOLDS = 5
SEED = 0
PENALTY = 1.0
NOISE_SE = 1.0
MOST = 20_000
FORMAT = 1
"""Raised whenever the same images and weights could be chosen for otherwise than before."""

Statistics = Literal["source", "target"]
Hits = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NormStatsChoice:
    """What was chosen, and why.

    Attributes:
        value: the statistics to start from.
        reason: one clause for people.
        scores: `source_acc`, `target_acc` (0 to 1), `lead` of target and its standard error
            `lead_se`; empty where nothing was probed.
    """

    value: Statistics
    reason: str
    scores: Mapping[str, float]

    @property
    def line(self) -> str:
        """What a command prints."""
        return f"norm_stats=auto: {self.value} ({self.reason})"


def choose_norm_stats(
    backbone: Backbone,
    images: ImageSet,
    dtype: torch.dtype,
    device: torch.device,
    cache_folder: Path | None = None,
) -> NormStatsChoice:
    """Probe both candidates on `images` (see the module's header); the backbone stays as it is.

    `dtype` is that of the features, as the frozen prefix will compute them. A choice, and the
    statistics found on the way, are kept in `cache_folder` under a digest of all that they depend
    on.

    Raises:
        WeightsError: under neither candidate are the features finite numbers.
    """
    reason, sizes = "", torch.bincount(images.labels)
    if not any(True for _ in batch_norms([backbone.model])):
        reason = f"{backbone.name} has no BatchNorm, there is nothing to choose"
    elif sizes.min() < TWO:
        reason = "a class has 1 training image, a probe needs 2 to be cross-validated"
    elif TWO * len(sizes) > MOST:
        reason = f"a probe sees {MOST} images, fewer than 2 of each class"
    if reason:
        return NormStatsChoice(value="source", reason=reason, scores={})
    if cache_folder is None:
        return _probe(backbone, images, dtype, device, None)
    statistics = kept_at(cache_folder, backbone, images, dtype, device)
    # beside the statistics that the choice is about; a choice needs labels, too
    rule: list[object] = [FORMAT, FOLDS, SEED, PENALTY, NOISE_SE]
    if len(images) > MOST:
        rule.append(MOST)
    if _pools_in_head(backbone):
        rule.append("means over positions")
    digest = digest_values([statistics.stem, images.fingerprint(), rule])
    path = statistics.with_name(f"{digest}.choice.json")
    if kept := _read(path):
        return kept
    choice = _probe(backbone, images, dtype, device, statistics)
    keep_in_cache(path, json.dumps(asdict(choice)).encode())
    return choice


def _read(path: Path) -> NormStatsChoice | None:
    try:
        kept = NormStatsChoice(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return kept if kept.value in ("source", "target") else None


def _probe(
    backbone: Backbone,
    images: ImageSet,
    dtype: torch.dtype,
    device: torch.device,
    statistics: Path | None,
) -> NormStatsChoice:
    with doing("choosing BatchNorm statistics"):
        return _compared(backbone, images, dtype, device, statistics)


def _pools_in_head(backbone: Backbone) -> bool:
    """Whether the head may be fed with maps: earlier versions probed all their positions."""
    return len(backbone.segments) < TWO or math.prod(backbone.segments[-2].shape[1:]) > 1


def _compared(
    backbone: Backbone,
    images: ImageSet,
    dtype: torch.dtype,
    device: torch.device,
    statistics: Path | None,
) -> NormStatsChoice:
    before = {name: t.clone() for name, t in statistics_of(backbone.model).items()}
    by_digest = np.argsort(images.keys, kind="stable")
    few = few_with_every_class(images.labels.numpy()[by_digest], MOST)
    rows = np.sort(by_digest[few])
    features = {"source": _features(backbone, images, rows, dtype, device)}
    features["target"] = recalibrate(backbone, images, dtype, device).numpy()[rows]
    if statistics:
        keep_norm_stats(statistics, backbone)
    backbone.put(before)
    usable = {name: bool(np.isfinite(values).all()) for name, values in features.items()}
    if not any(usable.values()):
        raise WeightsError(
            f"norm_stats=auto: with these weights the features that enter the head of "
            f"{backbone.name} are not finite numbers: use other weights, or -P precision=float32"
        )
    names: list[Statistics] = ["source", "target"]
    for value, other in (names, names[::-1]):
        if not usable[other]:
            reason = f"features under {other} statistics are not finite numbers"
            return NormStatsChoice(value=value, reason=reason, scores={})
    keys, labels = images.keys[rows], images.labels.numpy()[rows]
    return decide_by_hits(*(_hits(features[name], keys, labels) for name in names))


@torch.no_grad()
def _features(
    backbone: Backbone, images: ImageSet, rows: IntArray, dtype: torch.dtype, device: torch.device
) -> NDArray[np.float32]:
    """What enters the head for these rows under the backbone's own statistics, (N, C)."""
    segments = compute_copy(backbone.segments, dtype, device, frozen=True)
    size = max(1, PIXELS_PER_BATCH // images.pixels.shape[-1] ** 2)
    parts = (
        run_to_head(
            segments,
            images.preparation.normalise(images.batch(rows[start : start + size], device)),
            dtype,
        )
        for start in range(0, len(rows), size)
    )
    features: NDArray[np.float32] = joined(parts, len(rows)).numpy()
    return features


def _hits(features: NDArray[np.float32], keys: NDArray[np.uint64], labels: IntArray) -> Hits:
    """Which images (1 or 0, by digest) the cross-validated probe recognises, (N,)."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order = np.argsort(keys, kind="stable")
    labels = labels[order]
    folds = min(FOLDS, int(np.bincount(labels).min()))
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=PENALTY * features.shape[1]))
    dealt = StratifiedKFold(folds, shuffle=True, random_state=SEED)
    with one_thread():
        predicted = cross_val_predict(probe, features[order], labels, cv=dealt)
    hits: Hits = (predicted == labels).astype(np.float64)
    return hits


def decide_by_hits(source: Hits, target: Hits) -> NormStatsChoice:
    """The choice from which images each probe recognised (1 or 0), the same images in both."""
    difference = target - source
    lead, count = float(difference.mean()), len(difference)
    lead_se = float(difference.std(ddof=1) / np.sqrt(count))
    value: Statistics = "target" if lead > NOISE_SE * lead_se else "source"
    if value == "target":
        why = f"target leads by {100 * lead:.1f} pp"
    elif lead > 0:
        why = f"target's lead of {100 * lead:.1f} pp is within noise"
    else:
        why = f"source leads by {-100 * lead:.1f} pp" if lead else "both score alike"
    scores = {
        "source_acc": float(source.mean()),
        "target_acc": float(target.mean()),
        "lead": lead,
        "lead_se": lead_se,
    }
    reason = (
        f"probe on {count} training images: source {scores['source_acc']:.1%}, target "
        f"{scores['target_acc']:.1%}; {why}, s.e. {100 * lead_se:.1f}"
    )
    return NormStatsChoice(value=value, reason=reason, scores=scores)
