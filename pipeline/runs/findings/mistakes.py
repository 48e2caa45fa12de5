"""What a run gets wrong, to be looked at: a table with pictures, the worst errors, each class.

In: images and the logits of a finished run. Out, on an MLflow run: `predictions.json`, which the
Artifacts tab shows as a table, errors first and the surest of them first, with a thumbnail in each
of its `THUMBNAILS` rows; `all_predictions.json`, up to `MOST_ROWS` rows without; `by_class.txt`;
pictures in `figures/`. A thumbnail costs a file and a request, and makes a row five lines high.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.data.augment import pick_views, render_views
from pipeline.data.image_set import ImageSet
from pipeline.data.pixels import Pixels
from pipeline.reporting.figures import best_effort
from pipeline.reporting.image_grids import Row, image_grid, reliability_diagram, small
from pipeline.settings.augmentation import mixing_of, of_images
from pipeline.settings.run import Settings
from pipeline.stats.calibration import Bins
from pipeline.system.text import count_of, in_columns
from pipeline.tracking import RunLog

TABLE, EVERY, BY_CLASS = "predictions.json", "all_predictions.json", "by_class.txt"
ERRORS, RELIABILITY = "figures/worst_errors.jpg", "figures/reliability.png"
BATCH, CHANGES = "figures/batch.jpg", "figures/mended_and_broken.jpg"
MOST_ROWS, THUMBNAILS, THUMBNAIL = 2000, 48, 64
SHOWN_ERRORS, SHOWN_BATCH, SHOWN_CHANGES = 24, 24, 12


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a run answers about images; `part` says which: validation or test.

    `logits`: (N, classes).
    """

    images: ImageSet
    logits: Tensor
    class_names: Sequence[str]
    part: str

    @cached_property
    def top(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The largest probability of each image, and the class that has it, (N,) each."""
        probability, predicted = self.logits.double().softmax(1).max(1)
        return probability.nan_to_num().numpy(), predicted.numpy()

    @property
    def labels(self) -> NDArray[np.int64]:
        """The true class of each image, (N,)."""
        labels: NDArray[np.int64] = self.images.labels.numpy()
        return labels

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which images are recognised, (N,)."""
        right: NDArray[np.bool_] = self.top[1] == self.labels
        return right

    @property
    def worst_first(self) -> NDArray[np.int64]:
        """Rows: errors from the surest on, then what is right from the least sure on."""
        probability = self.top[0]
        order = np.where(self.correct, probability, -1 - probability)
        return np.argsort(order, kind="stable")


def log_mistakes(
    log: RunLog, answers: Answers, say: Callable[[str], None], data: str = ""
) -> None:
    """The table, the classes and the pictures; what cannot be drawn or stored is a note.

    `data`: the setting, whose folder is left out of the names of files.
    """
    with best_effort("the table of predictions", say):
        frame = table_of(answers, data)
        worst = torch.from_numpy(answers.worst_first[:THUMBNAILS])
        pictures = small(answers.images.pixels[worst], THUMBNAIL)
        log.table(frame[:THUMBNAILS], TABLE, [*map(_png, pictures)])
        if len(frame) > THUMBNAILS:
            log.table(frame, EVERY)
        log.text(f"{by_class_text(answers)}\n", BY_CLASS)
    with best_effort("a picture of errors", say):
        if figure := errors_picture(answers):
            log.figure(figure, ERRORS)
        bins = Bins.of(answers.top[0], answers.correct)
        log.figure(reliability_diagram(f"{answers.part} images", bins), RELIABILITY)


def _png(picture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def table_of(answers: Answers, data: str = "") -> pd.DataFrame:
    """The table without pictures, worst first."""
    rows = answers.worst_first[:MOST_ROWS]
    names = np.array(answers.class_names, dtype=object)
    probability, predicted = answers.top
    files = answers.images.names or [""] * len(answers.images)
    return pd.DataFrame(
        {
            "true": names[answers.labels[rows]],
            "predicted": names[predicted[rows]],
            "probability": probability[rows].round(4),
            "correct": answers.correct[rows],
            "file": [_below(files[row], data) for row in rows],
            "probability of true": _of_true(answers)[rows].round(4),
            "image_sha256": [answers.images.digests[row].tobytes().hex() for row in rows],
        }
    )


def _of_true(answers: Answers) -> NDArray[np.float64]:
    shares = answers.logits.double().softmax(1).nan_to_num()
    found: NDArray[np.float64] = shares[torch.arange(len(shares)), answers.images.labels].numpy()
    return found


def _below(name: str, data: str) -> str:
    """A file's name below the folder of the data."""
    folder = str(Path(data).expanduser().absolute()) if data else ""
    return name.removeprefix(f"{data}/").removeprefix(f"{folder}/") if data else name


def by_class(answers: Answers) -> pd.DataFrame:
    """Precision, recall, F1 and images of each class; NaN where undefined.

    Precision is undefined for a class that no image is taken for, recall for one that no image is
    of, and F1 where both are. The mean of F1 over the others is the metric `macro_f1`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        answers.labels,
        answers.top[1],
        labels=[*range(len(answers.class_names))],
        zero_division=np.nan,
    )
    named = dict(zip(("precision", "recall", "F1", "images"), columns, strict=True))
    return pd.DataFrame({"class": np.array(answers.class_names, dtype=object), **named})


def by_class_text(answers: Answers, most: int | None = None) -> str:
    """`by_class` as text, with the mean over classes; of more than `most` those of lowest F1."""
    frame = by_class(answers)
    mean = frame.drop(columns="class").mean().to_dict()
    last = {**mean, "class": "mean", "images": frame["images"].sum()}
    head = f"{answers.part} images by class"
    if most is not None and len(frame) > most:
        head = f"the {most} of {len(frame)} classes with the lowest F1, {answers.part} images"
        frame = frame.sort_values("F1", kind="stable")[:most]
    frame = pd.concat([frame, pd.DataFrame([last])])
    for column in ("precision", "recall", "F1"):
        frame[column] = frame[column].map(lambda value: "-" if np.isnan(value) else f"{value:.1%}")
    frame["images"] = frame["images"].astype(int)
    return f"{head} (-: undefined)\n\n{in_columns(frame)}"


def errors_picture(answers: Answers) -> Figure | None:
    """The errors that a run is surest of; None where there are none."""
    rows = answers.worst_first[: min(SHOWN_ERRORS, int((~answers.correct).sum()))]
    if not len(rows):
        return None
    probability, predicted = answers.top
    captions = [
        f"{answers.class_names[answers.labels[row]]}\n"
        f"taken for {answers.class_names[predicted[row]]} ({probability[row]:.0%})"
        for row in rows
    ]
    title = f"{len(rows)} of {int((~answers.correct).sum())} errors among {len(answers.images)} "
    pixels = answers.images.pixels[torch.from_numpy(rows)]
    return image_grid(
        f"{title}{answers.part} images, the surest first", [Row("", pixels, captions)]
    )


def batch_picture(
    images: ImageSet, settings: Settings, number: int, names: Sequence[str]
) -> Figure:
    """The first training images of stage `number` as the network sees them in its first epoch.

    Rendered as for training and denormalised. Mixup and CutMix act behind the frozen blocks, where
    there are no pictures.
    """
    augment = settings.training(number).augment
    rows = np.random.default_rng([settings.seed, number]).permutation(len(images))[:SHOWN_BATCH]
    views = pick_views(
        images.keys,
        seed=settings.seed,
        epoch=0,
        augment=augment,
        stored_views=settings.views,
    )
    prepared = images.preparation
    seen = render_views(
        images.pixels[torch.from_numpy(rows)],
        images.keys[rows],
        views[rows],
        of_images(augment),
        prepared,
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (prepared.mean, prepared.std))
    pixels = ((seen * std + mean) * 255).round().clamp(0, 255).byte()
    captions = [names[label] for label in images.labels[torch.from_numpy(rows)].tolist()]
    mixed = f"; {mixing_of(augment)} is not drawn" if mixing_of(augment) else ""
    size = images.pixels.shape[-1]
    title = f"training images as the network sees them: {size} px, augment={augment}{mixed}"
    return image_grid(title, [Row("", pixels, captions)])


@dataclass(frozen=True, kw_only=True)
class Change:
    """An image on which two models differ: its row, and what stands below it."""

    row: int
    caption: str


def changes_picture(
    title: str, pixels: Tensor | Pixels, mended: Sequence[Change], broken: Sequence[Change]
) -> Figure | None:
    """Mended images above, broken ones below; None where there are none of either."""
    rows = []
    for what, changes in (("mended", mended), ("broken", broken)):
        shown = changes[:SHOWN_CHANGES]
        if shown:
            chosen = pixels[torch.tensor([change.row for change in shown])]
            heading = f"{what}: {count_of(len(changes), 'image')}" + f", {len(shown)} shown" * (
                len(shown) < len(changes)
            )
            rows.append(Row(heading, chosen, [change.caption for change in shown]))
    return image_grid(title, rows) if rows else None


def changes_between(
    answers: Answers, before: Sequence[str], names: tuple[str, str]
) -> Figure | None:
    """What a run mends and breaks of what another answered (`before`, names of classes)."""
    now = [answers.class_names[label] for label in answers.top[1]]
    true = [answers.class_names[label] for label in answers.labels]
    found: dict[str, list[Change]] = {"mended": [], "broken": []}
    for row in answers.worst_first[::-1].tolist():
        if (now[row] == true[row]) != (before[row] == true[row]):
            kind = "mended" if now[row] == true[row] else "broken"
            other = before[row] if kind == "mended" else now[row]
            word = "was" if kind == "mended" else "now"
            caption = f"{true[row]}\n{word} {other}"
            found[kind].append(Change(row=row, caption=caption))
    title = f"what {names[0]} mends and breaks of {names[1]}: {answers.part} images"
    pixels = answers.images.pixels
    return changes_picture(title, pixels, found["mended"], found["broken"])
