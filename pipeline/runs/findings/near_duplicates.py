"""The images of a draw, and of the test split, that are nearly the same: counted, listed, shown.

In: a session before anything is trained. Out: two metrics, a table and a picture on a run, and a
line. The features are those that the head of the pretrained network is fed with: where a stage
trains the head alone, its own inputs, which are computed and cached anyway. Built-in data, whose
splits are as published, is not looked at. Nothing here fails a run or is part of its lineage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.data.augment import distinct_views
from pipeline.data.base import Split, preparation_of
from pipeline.data.cache import shelf_of
from pipeline.data.image_set import ImageSet
from pipeline.data.images import IntArray
from pipeline.data.inspection.near import NearDuplicates, NearPair, near_duplicates
from pipeline.data.open import NAMES
from pipeline.data.pixels import ChosenPixels
from pipeline.data.reading import read_images
from pipeline.errors import first_line
from pipeline.reporting.image_grids import pairs_of_pictures
from pipeline.runs.findings.pooled_features import pooled_features
from pipeline.runs.session import Session
from pipeline.system.progress import doing
from pipeline.system.text import count_of, one_line
from pipeline.tracking import RunLog
from pipeline.tracking.keys import NEAR_DUPLICATES

TABLE, PICTURE = "near_duplicates.csv", "figures/near_duplicates.png"
SHOWN = 12
"""Pairs in the picture."""
WORDS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class _Looked:
    """What was found in one draw, and its images."""

    session: Session
    images: dict[str, ImageSet]
    found: NearDuplicates

    @property
    def count(self) -> int:
        return sum(self.found.counts.values())


def log_near_duplicates(
    session: Session,
    log: RunLog,
    say: Callable[[str], None],
    others: Iterable[Session] = (),
    test_images: ImageSet | None = None,
) -> None:
    """Compare the images of a session's draw and of its test split; a note where that fails.

    `others`: sessions of further draws. The draw with the most near duplicates is logged.
    `test_images`: those of the test split, where the caller has read them.
    """
    share = session.settings.near_duplicates
    if not share or session.settings.data in NAMES:
        return
    try:
        with doing("looking for near duplicates"):
            test = _test(session, test_images)
            worst = _look(session, test, share)
            draws, affected = 1, int(worst.count > 0)
            for other in others:
                one = _look(other, test, share)
                draws, affected = draws + 1, affected + (one.count > 0)
                worst = max(worst, one, key=lambda looked: looked.count)
        session, images, found = worst.session, worst.images, worst.found
        log.metrics({NEAR_DUPLICATES[name]: count for name, count in found.counts.items()})
    except Exception as err:  # noqa: BLE001 - the training stands, whatever this came to
        say(f"note: near duplicates were not looked for ({first_line(err)})")
        return
    if not found.pairs:
        return
    say(f"note: {in_words(found, session.settings.group, draws, affected)}")
    try:
        log.text(_table(session, images, found).to_csv(index=False), TABLE)
        log.figure(_picture(session, images, found), PICTURE)
    except Exception as err:  # noqa: BLE001 - what was found is told
        say(f"note: {TABLE} or {PICTURE} could not be written ({first_line(err)})")


def _look(session: Session, test: dict[str, ImageSet], share: float) -> _Looked:
    images = {"train": session.draw.train, "val": session.draw.val, **test}
    features = {name: _features(session, part, name) for name, part in images.items()}
    return _Looked(session, images, near_duplicates(features, images, share))


def in_words(found: NearDuplicates, group: str = "", draws: int = 1, affected: int = 1) -> str:
    """What was found, in one line.

    `group`: the setting that keeps images together already. `draws`: how many draws were compared;
    `affected`: how many of these have near duplicates. `found` is of the draw with the most.
    """
    parts = [
        count_of(count, f"{WORDS[name]} image") for name, count in found.counts.items() if count
    ]
    exact = f", {found.copies} of them to the pixel" if found.copies else ""
    how = f"nearly the same as one of another part{exact} (cosine above {found.cosine:.2f})"
    if found.cosine >= 1:
        how = "the same as one of another part to the pixel"
    where = f"in {affected} of {draws} draws, at most " if draws > 1 else ""
    advice = (
        f"-P group={group} does not keep all of them together: group by something coarser, or "
        "remove them"
        if group
        else "keep such images together with -P group=, or remove them"
    )
    return (
        f"near duplicates: {where}{' and '.join(parts)} {how}, so that accuracies may be too "
        f"high: see {TABLE} and {PICTURE} of the run; {advice}"
    )


def _test(session: Session, read: ImageSet | None) -> dict[str, ImageSet]:
    """The test images, at most as many as the draw has; none where there is no test split."""
    test, settings, draw = session.source.test, session.settings, session.draw
    if test is None or not len(test.labels):
        return {}
    most = len(draw.train) + len(draw.val)
    rows = np.arange(len(test.labels))
    if len(rows) > most:
        rows = rows[:: -(-len(rows) // most)]
    if read is not None:
        return {"test": _some_of(read, np.flatnonzero(np.isin(read.rows, rows)))}
    size, prepared = settings.image_size, preparation_of(settings)
    shelf = shelf_of(settings)
    found = read_images(test, rows, size, prepared, skip_unreadable=True, shelf=shelf)
    return {"test": found}


def _some_of(images: ImageSet, places: IntArray) -> ImageSet:
    if len(places) == len(images):
        return images
    chosen, pixels = torch.from_numpy(places), images.pixels
    return replace(
        images,
        pixels=pixels[chosen] if isinstance(pixels, Tensor) else ChosenPixels(pixels, chosen),
        labels=images.labels[chosen],
        digests=images.digests[places],
        rows=images.rows[places],
        names=tuple(images.names[place] for place in places) if images.names else (),
    )


def _features(session: Session, images: ImageSet, name: str) -> Tensor:
    """What the head is fed with for each image as it is, (N, C)."""
    augment, views = session.settings.training(1).augment, session.settings.views
    as_trained = name == "train" and distinct_views(augment) and views
    return pooled_features(
        session.cache,
        session.backbone,
        images,
        session.dtype,
        session.device,
        augment=augment if as_trained else "none",  # its first view is the picture itself
        views=views if as_trained else 1,
        keep=name == "test",
    )


def _split_of(session: Session, part: str) -> Split:
    source = session.source
    split = {"train": source.pool, "val": source.val or source.pool, "test": source.test}[part]
    assert split
    return split


def _table(session: Session, images: dict[str, ImageSet], found: NearDuplicates) -> pd.DataFrame:
    """A row a pair: part, place and class of both images, and how near they are."""

    def places(part: str) -> dict[int, str]:
        wanted = {i for p in found.pairs for name, i in (p.first, p.second) if name == part}
        stored = _split_of(session, part).stored
        rows = images[part].rows[sorted(wanted)]
        order = stored.in_order(rows)
        items = stored.items(rows[order].tolist())
        places = np.array(sorted(wanted), dtype=np.int64)[order].tolist()
        return {i: one_line(where) for i, (where, _) in zip(places, items, strict=True)}

    where = {part: places(part) for part in images}
    return pd.DataFrame(
        [
            {
                f"{which}_{column}": value
                for which, (part, i) in (("first", pair.first), ("second", pair.second))
                for column, value in (
                    ("part", part),
                    ("image", where[part][i]),
                    ("class", session.draw.class_names[int(images[part].labels[i])]),
                )
            }
            | {"cosine": round(pair.cosine, 4), "same_pixels": pair.same_pixels}
            for pair in found.pairs
        ]
    )


def _picture(session: Session, images: dict[str, ImageSet], found: NearDuplicates) -> Figure:
    """The nearest pairs side by side."""
    names = session.draw.class_names

    def shown(pair: NearPair) -> tuple[str, Tensor, Tensor]:
        both = [
            (f"{part}: {names[int(images[part].labels[i])]}", images[part].pixels[i])
            for part, i in (pair.first, pair.second)
        ]
        words = " | ".join(text for text, _ in both) + f"\ncosine {pair.cosine:.3f}"
        left, right = (pixels.cpu() for _, pixels in both)
        return words, left, right

    more = f", the nearest {SHOWN}" if len(found.pairs) > SHOWN else ""
    title = (
        f"near duplicates: {count_of(len(found.pairs), 'pair')} of images that are nearly the "
        f"same and stand in two parts{more}"
    )
    return pairs_of_pictures(title, [shown(pair) for pair in found.pairs[:SHOWN]])
