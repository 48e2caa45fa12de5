"""Entry point predict: what a model says of pictures, as a CSV file and a short table.

In: a folder, a pattern or a file, and a model. Out: a CSV with a row a picture: its file, the
classes with the highest probabilities, and why it could not be read where it could not. Pictures
are read and prepared as in training. Where folders name classes, the accuracy is told, too.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from pipeline.data.base import Unreadable, decode_image
from pipeline.data.folders.listing import image_endings, in_words, list_files
from pipeline.errors import DataError
from pipeline.runs.command import Command
from pipeline.serving.chosen import chosen_run
from pipeline.serving.classifier import Classifier
from pipeline.settings.entry import PredictSettings
from pipeline.system.disk.files import check_folder_of, seen, typed_path, write_atomically
from pipeline.system.interrupts import check
from pipeline.system.progress import bar, doing
from pipeline.system.text import as_text, first_of, in_columns, normalised, one_line
from pipeline.tracking import Tracking
from pipeline.training.prefix.cache import images_at_once

BATCH = 64
SHOWN = 10
PLACES = ("", "second_", "third_")
"""Of the classes with the highest probabilities, in the names of columns."""
COLUMNS = ("file", *(f"{p}{n}" for p in PLACES for n in ("label", "probability")))


def predict_entry(command: Command, plan: PredictSettings) -> pd.DataFrame:
    """Entry point predict; returns the table that the CSV file holds.

    Raises:
        DataError: no pictures there, or none that can be read; `out` is another file.
        LineageError: no such model.
    """
    say, out = command.say, typed_path(plan.out, "out")
    tracking = Tracking.connect("predict", files=False)
    with tracking.explained():
        _check_out(out)
        files, passed_over = pictures_at(plan.images)
        with doing("loading the model"):
            run_id = chosen_run(tracking, plan.run_id, plan.model)
            classifier = Classifier.of_run(tracking, run_id)
        name = tracking.get(classifier.run_id).name
        count = f"{len(files)} picture{'s' * (len(files) > 1)}"
        say(f"{count}{passed_over}; model of run {classifier.run_id} ({name})")
        table = predicted(classifier, files)
        tracking.name_launched(f"predict · {count}", "predict")
    if (table["error"] != "").all():
        raise DataError(
            f"images={plan.images}: none of {count} can be read "
            f"({first_of(_unread(table), 3)}): pass PNG, JPEG, ... files"
        )
    write_atomically(out, table.to_csv(index=False).encode())
    shown = table[table["error"] == ""].head(SHOWN)[["file", "label", "probability"]]
    shown = shown.assign(probability=[f"{value:.1%}" for value in shown["probability"]])
    say(in_columns(shown.map(one_line)))
    if len(table) > len(shown):
        say(f"… the first {len(shown)} of {count}")
    counts = table.loc[table["error"] == "", "label"].value_counts()
    say(f"in all: {first_of([f'{label}: {count}' for label, count in counts.items()])}")
    if unread := _unread(table):
        say(f"note: {len(unread)} cannot be read: {first_of(unread, 5)}")
    if line := _accuracy(table):
        say(line)
    say(f"every row, with the second and third class: {out.absolute()}")
    return table


def _check_out(out: Path) -> None:
    """Refuse to write over a file that is not of this command, or into a folder that is not."""
    if seen(out.exists) and not _is_ours(out):
        raise DataError(
            f"out={out}: is there already and was not written by predict: pass -P out=<a new file>"
        )
    if out.suffix.lower() != ".csv":
        raise DataError(
            f"out={out} does not end in .csv, and predict writes CSV: pass -P out=<path>.csv"
        )
    check_folder_of(out)


def _is_ours(out: Path) -> bool:
    if not out.is_file():  # a device, a pipe or a terminal would be waited for
        return False
    try:
        with out.open(encoding="utf-8", errors="replace", newline="") as file:
            return next(csv.reader(file), [])[:3] == [*COLUMNS[:3]]
    except (OSError, csv.Error):
        return False


def pictures_at(images: str) -> tuple[list[Path], str]:
    """The files at a path or pattern, and in words what else lies in a folder.

    Raises:
        DataError: there is none.
    """
    path = typed_path(images, "images")
    if seen(path.is_dir):
        files, others = list_files(path, image_endings())
        words = f" (files passed over: {in_words(others)})" if others else ""
    else:
        found = [path] if seen(path.exists) else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - of absolute patterns, too
        files, words = sorted(file for file in found if seen(file.is_file)), ""
    if not files:
        raise DataError(
            f"images={images}: no picture at {path.absolute()}: pass a folder, a pattern in "
            "quotes ('shots/*.jpg') or a file"
        )
    return files, words


def predicted(classifier: Classifier, files: Sequence[Path]) -> pd.DataFrame:
    """A row a file: `COLUMNS`, `true_label` where a folder names a class, and `error`."""
    names = classifier.class_names
    rows: list[dict[str, object]] = []
    with bar("pictures", len(files)) as step:
        for batch in _batches(files, min(BATCH, images_at_once(classifier.image_size))):
            check()
            rows += _rows(classifier, batch)
            step(len(batch))
    columns = [*COLUMNS[: 1 + 2 * min(len(PLACES), len(names))]]
    if any(map(partial(_class_of, names), files)):
        columns.append("true_label")
    return pd.DataFrame(rows, columns=[*columns, "error"])


def _batches(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    return (files[start : start + size] for start in range(0, len(files), size))


def _rows(classifier: Classifier, files: Sequence[Path]) -> list[dict[str, object]]:
    names = classifier.class_names
    seen = [_seen(classifier, file) for file in files]
    readable = [pixels for pixels in seen if not isinstance(pixels, Unreadable)]
    found = iter(classifier.probabilities(torch.stack(readable)) if readable else ())
    rows = []
    for file, pixels in zip(files, seen, strict=True):
        row: dict[str, object] = {"file": as_text(str(file)), "error": ""}
        row |= {f"{place}label": "" for place in PLACES}
        row["true_label"] = _class_of(names, file)
        if isinstance(pixels, Unreadable):
            row["error"] = one_line(pixels.reason)
        else:
            best = next(found).topk(min(len(PLACES), len(names)))
            ranked = zip(PLACES, best.indices.tolist(), best.values.tolist(), strict=False)
            for place, label, probability in ranked:
                row |= {f"{place}label": names[label], f"{place}probability": probability}
        rows.append(row)
    return rows


def _class_of(names: Sequence[str], file: Path) -> str:
    """The class that the folder of a file is named after, however both are composed; or ""."""
    folder = normalised(as_text(file.parent.name))
    return next((name for name in names if normalised(name) == folder), "")


def _seen(classifier: Classifier, file: Path) -> Tensor | Unreadable:
    """What the network sees of a picture, uint8, (3, S, S); the picture itself is let go."""
    picture = decode_image(file, "", classifier.ranges or {})
    return picture if isinstance(picture, Unreadable) else classifier.pixels([picture])[0]


def _unread(table: pd.DataFrame) -> list[str]:
    unread = table[table["error"] != ""]
    return [f"{f} ({e})" for f, e in zip(unread["file"], unread["error"], strict=True)]


def _accuracy(table: pd.DataFrame) -> str:
    """The share of pictures that are what the folder they lie in is called."""
    if "true_label" not in table:
        return ""
    known = table[(table["true_label"] != "") & (table["error"] == "")]
    right = int((known["label"] == known["true_label"]).sum())
    return (
        f"{right} of {len(known)} pictures are what their folder is called "
        f"({right / max(1, len(known)):.1%}); this says nothing of new pictures if the model was "
        "trained on these"
    )
