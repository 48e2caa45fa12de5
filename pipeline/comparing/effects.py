"""What one arm does to each test image that another does not: mended and broken images.

In: pairs, with the images that either arm recognises. Out: tables of differences image by image,
which gains and their posterior rest on, and what they come to by class. Pure data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.comparing.pairs.results import ArmResult, Pair
from pipeline.data.image_set import ImageSet
from pipeline.runs.findings.mistakes import Change
from pipeline.stats.crossed import Table
from pipeline.system.text import count_of


def differences_of(pairs: Sequence[Pair], seeds: int = 1) -> Table:
    """For each draw and test image: 1 if the treatment alone is right, -1 the control, else 0.

    Shape (draws, images); with several seeds a draw, their means.
    """
    table = np.array([minus(pair.treatment, pair.control) for pair in pairs])
    return table if seeds == 1 else table.reshape(-1, seeds, table.shape[1]).mean(axis=1)


def minus(one: ArmResult, other: ArmResult) -> NDArray[np.int8]:
    """For each test image: 1 if `one` alone is right, -1 if the other alone is, else 0."""
    return one.correct.astype(np.int8) - other.correct.astype(np.int8)


def effects_of(
    pairs: Sequence[Pair], images: ImageSet, class_names: Sequence[str]
) -> pd.DataFrame:
    """What the treatment does to each test image on which the arms ever disagree.

    A row an image, what is mended most often first: its digest and class; `mended`, in how many
    pairs the treatment alone is right, `broken`, in how many the control alone is.
    """
    table = np.array([minus(pair.treatment, pair.control) for pair in pairs])
    frame = pd.DataFrame(
        {
            "image_sha256": [row.tobytes().hex() for row in images.digests],
            "label": np.array(class_names, dtype=object)[images.labels.numpy()],
            "mended": (table > 0).sum(axis=0),
            "broken": (table < 0).sum(axis=0),
        }
    )
    touched = frame[frame["mended"] + frame["broken"] > 0]
    order = (touched["broken"] - touched["mended"]).sort_values(kind="stable").index
    return touched.loc[order].reset_index(drop=True)


def changes_of(
    pairs: Sequence[Pair], images: ImageSet, class_names: Sequence[str]
) -> tuple[list[Change], list[Change]]:
    """The test images that the treatment mends and those that it breaks, most often first.

    Below each stands its class, what the wrong arm takes it for most often, and in how many pairs.
    """
    table = np.array([minus(pair.treatment, pair.control) for pair in pairs])
    found: list[list[Change]] = [[], []]
    for kind, (sign, word) in enumerate(((1, "was"), (-1, "now"))):
        times = (table == sign).sum(axis=0)
        for row in np.argsort(-times, kind="stable")[: int((times > 0).sum())].tolist():
            wrong = Counter(
                None if arm.predicted is None else int(arm.predicted[row])
                for pair, change in zip(pairs, table[:, row], strict=True)
                if change == sign
                for arm in [pair.control if sign > 0 else pair.treatment]
            )
            answer = wrong.most_common(1)[0][0]
            name = "nothing" if answer is None else class_names[answer]
            label = class_names[int(images.labels[row])]
            often = f"in {times[row]} of {count_of(len(pairs), 'pair')}"
            found[kind].append(Change(row=row, caption=f"{label}\n{word} {name}\n{often}"))
    return found[0], found[1]


def by_class(effects: pd.DataFrame, pairs: int) -> pd.DataFrame:
    """How many test images are mended and broken in a pair, on average, from `effects_of`.

    Rows by class name: `mended`, `broken`, and `always_mended` and `always_broken`, how many
    images come out that way in three quarters of the pairs or more. The sum is the last row.
    """
    often = 0.75 * pairs
    columns = {
        "mended": effects["mended"] / pairs,
        "broken": effects["broken"] / pairs,
        "always_mended": effects["mended"] >= often,
        "always_broken": effects["broken"] >= often,
    }
    sums = pd.DataFrame(columns).groupby(effects["label"], sort=True).sum()
    return pd.concat([sums, sums.sum().to_frame("all").T])
