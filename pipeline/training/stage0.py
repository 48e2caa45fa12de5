"""Stage 0: what the frozen features are worth before anything is trained, the floor of tables.

In: a backbone with its pretrained weights, training images, and images to score. Out: the accuracy
of two classifiers on what enters the head: the k nearest neighbours, and logistic regression. The
features are standardised; k and C are chosen from short lists by cross-validation on training
images alone, in the order of their digests: the same images give the same numbers. The features
come from the prefix cache, from the entry that stage 1 is fed from where that holds plain images.
Not covered: more than `MOST` training images, of which the first by digest are taken, and more of
a class that has next to none among them.

Kornblith, Shlens & Le 2019 (arXiv 1805.08974): how well features transfer is read off logistic
regression on them.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.image_set import ImageSet
from pipeline.data.images import IntArray
from pipeline.data.sampling.few import TWO, few_with_every_class
from pipeline.model.backbones import Backbone
from pipeline.model.grouping import HEAD
from pipeline.settings.augmentation import Augment, of_images
from pipeline.system.threads import one_thread
from pipeline.training.device import compute_copy, joined, run_to_head
from pipeline.training.prefix.cache import PrefixCache, images_at_once

KNN, LOGREG = "knn", "logreg"
NEIGHBOURS = (1, 3, 5, 9, 15, 25)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS, SEED = 5, 0
MOST, MOST_TO_CHOOSE = 5000, 1000
"""Training images that are fitted, and those among them that k and C are chosen on.

Of many classes two images each are chosen on, however many these are.
"""
PLAIN = ("none", "light")
"""Augmentations whose first view is the image itself."""

Points = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Stage0:
    """What both classifiers came to.

    Attributes:
        chosen: k of `knn`, C of `logreg`.
        scores: accuracy (0 to 1) by part (`val`, `test`), then by classifier.
        balanced: the same with every class counted alike.
        images: how many training images were fitted.
    """

    chosen: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]
    balanced: Mapping[str, Mapping[str, float]]
    images: int
    seconds: float


@torch.no_grad()
def head_inputs(
    backbone: Backbone,
    images: ImageSet,
    cache: PrefixCache,
    dtype: torch.dtype,
    device: torch.device,
    *,
    augment: Augment = "none",
    views: int = 1,
) -> Points:
    """What enters the head for each image as it is, (N, C).

    `augment` and `views`: those of a stage that trains the head alone, whose cache entry then
    serves; where its first view is no plain image, `none` is taken.
    """
    if of_images(augment) not in PLAIN or not views:
        augment, views = "none", 1
    prefix = backbone.frozen_segments((HEAD,))
    features = cache.features(
        backbone, prefix, images, augment=augment, views=views, dtype=dtype, device=device
    )
    segments = compute_copy(backbone.segments[prefix:], dtype, device, frozen=True)
    size = images_at_once(images.pixels.shape[-1])
    batches = np.array_split(np.arange(len(images)), math.ceil(len(images) / size))
    parts = (
        run_to_head(segments, features.batch(rows, np.zeros_like(rows)), dtype) for rows in batches
    )
    points: Points = joined(parts, len(images)).numpy()
    return points


def fit_and_score(
    train: ImageSet, points: Points, others: Mapping[str, tuple[Points, IntArray]]
) -> Stage0 | None:
    """Both classifiers; None where the features are not finite numbers.

    `train`: images of two classes or more. `others`: features and labels to score, by part.
    """
    started = time.perf_counter()
    every = (points, *(values for values, _ in others.values()))
    if not all(np.isfinite(values).all() for values in every):
        return None
    from sklearn.preprocessing import StandardScaler

    order = np.argsort(train.keys, kind="stable")
    by_digest = train.labels.numpy()[order]
    rows = order[few_with_every_class(by_digest, MOST)]
    labels = train.labels.numpy()[rows]
    most = max(MOST_TO_CHOOSE, TWO * len(np.unique(labels)))
    chosen_on = few_with_every_class(labels, most, TWO)
    scale = StandardScaler().fit(points[rows])
    fitted = scale.transform(points[rows])
    scaled = {part: (scale.transform(x), y) for part, (x, y) in others.items()}
    chosen: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {part: {} for part in others}
    balanced: dict[str, dict[str, float]] = {part: {} for part in others}
    for name, (make, key, values) in _classifiers().items():
        with one_thread():
            model, chosen[name] = _best(make, key, values, fitted, labels, chosen_on)
        for part, (x, y) in scaled.items():
            right = model.predict(x) == y
            scores[part][name] = float(right.mean())
            there = np.unique(y)
            balanced[part][name] = float(np.mean([right[y == label].mean() for label in there]))
    seconds = time.perf_counter() - started
    return Stage0(
        chosen=chosen, scores=scores, balanced=balanced, images=len(rows), seconds=seconds
    )


def _classifiers() -> dict[str, tuple[Any, str, tuple[float, ...]]]:
    """How each is made, what is chosen, and from which values."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    return {
        KNN: (partial(KNeighborsClassifier, algorithm="brute"), "n_neighbors", NEIGHBOURS),
        LOGREG: (partial(LogisticRegression, max_iter=200, tol=1e-3), "C", STRENGTHS),
    }


def _best(
    make: Any,  # noqa: ANN401 - scikit-learn has no types
    key: str,
    values: tuple[float, ...],
    points: Points,
    labels: IntArray,
    chosen_on: IntArray,
) -> tuple[Any, float]:
    """A classifier fitted with the value that cross-validation chooses, the smallest of equals.

    `chosen_on`: the rows that cross-validation sees. Where a class has one image there, or there
    are fewer images than neighbours, or these are of one class, the value is the first that can be
    used.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    few, few_labels = points[chosen_on], labels[chosen_on]
    sizes = np.unique(few_labels, return_counts=True)[1]
    folds = min(FOLDS, int(sizes.min())) if len(sizes) > 1 else 1
    value = values[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        if folds > 1:
            smallest = len(few) - math.ceil(len(few) / folds)
            usable = [v for v in values if key == "C" or v <= smallest]
            dealt = StratifiedKFold(folds, shuffle=True, random_state=SEED)
            search = GridSearchCV(make(), {key: usable}, cv=dealt, refit=False)
            value = search.fit(few, few_labels).best_params_[key]
        return make(**{key: value}).fit(points, labels), float(value)
