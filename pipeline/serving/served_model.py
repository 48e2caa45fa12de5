"""The model that MLflow serves: encoded images in, class names and probabilities out.

MLflow stores this file, `data/images.py` and a factory's source files beside the weights, and runs
them in an environment of their own: training and service prepare an image by the same code and
make the network by the same function. In: a column `image` with PNG, JPEG, ... bytes, or base64
of them. Out: a row an image: `label`, one column of probability for each class, and `error`, a
sentence where an image cannot be answered. A request is refused if no image can be answered.

Memory is bounded: images are read and computed a few at a time, whatever the request holds and how
many requests come at once; images of too many pixels or bytes are refused before they are decoded.
A server's work on a request ends before the server tells the client that time is up.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import sys
import threading
import time
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file

try:
    from pipeline.data.images import Preparation, is_deep, to_rgb
except ImportError:  # in a server: images.py stands alone on the path
    from images import Preparation, is_deep, to_rgb  # type: ignore[import-not-found, no-redef]

ROWS = 5_000
"""Most rows of one request to a server."""
MEBIBYTES, MEGAPIXELS, DEEP_MEGAPIXELS = 64, 50, 10
"""Most of one image: its encoded bytes in MiB; its pixels, fewer with over 8 bits a channel."""
BATCH = 8
"""Images that are read and computed together."""
_READING, _COMPUTING = threading.Semaphore(2), threading.Lock()
"""Of all requests at once: how many are decoding, and how many have the network."""
_DATA_URL = "base64,"
_HOW = (
    'send {"dataframe_split": {"columns": ["image"], "data": [["<base64 of a PNG, JPEG, ... '
    'file>"]]}}'
)


def _built(function: str, arguments: dict[str, Any], code: Path) -> Any:  # noqa: ANN401
    """The network that a function makes, from the files logged with the model if it has such.

    Modules of the same names that are loaded already, of another model, stay what they are.
    """
    module, _, name = function.partition(":")
    logged = {path.stem for path in code.glob("*")} if code.is_dir() else set()
    if module.partition(".")[0] not in logged:
        return getattr(import_module(module), name)(**arguments)
    others = {n: m for n, m in sys.modules.items() if n.partition(".")[0] in logged}
    for each in others:
        del sys.modules[each]
    sys.path.insert(0, str(code))
    invalidate_caches()
    try:
        return getattr(import_module(module), name)(**arguments)
    finally:
        sys.path.remove(str(code))
        sys.modules.update(others)


class RefusedRequest(MlflowException, ValueError):
    """A request without an answer, in one sentence: MLflow's server answers with no traceback.

    MLflow's server would put the whole request before the message: the first message is kept.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Keep the first message."""
        if name != "message" or "message" not in vars(self):
            super().__setattr__(name, value)

    def __init__(self, message: str, error_code: int = INVALID_PARAMETER_VALUE) -> None:
        super().__init__(message, error_code=error_code)


def _served() -> bool:
    """Whether this is MLflow's server, and not a program that loaded the model."""
    return os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT") == "true"


class _Time:
    """What a server allows for a request, less a twentieth to answer in; elsewhere without end."""

    def __init__(self) -> None:
        allowed = os.environ.get("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT") or "60"
        self.allowed_s = float(allowed) * 0.95 if _served() else threading.TIMEOUT_MAX / 2
        self.end = time.monotonic() + self.allowed_s

    def left_s(self, done: int, rows: int) -> float:
        """Seconds left; raises where there are none."""
        left = self.end - time.monotonic()
        if left > 0:
            return left
        raise RefusedRequest(
            f"{done} of {rows} images were computed in {self.allowed_s:.0f} s, which is what this "
            "server allows: send fewer at a time, or start it with a longer --timeout",
            TEMPORARILY_UNAVAILABLE,
        )

    def wait_for(self, lock: threading.Lock | threading.Semaphore, done: int, rows: int) -> None:
        """Have the lock; raises where the time ends before."""
        while not lock.acquire(timeout=self.left_s(done, rows)):
            pass


def _content(row: Any) -> bytes:  # noqa: ANN401 - whatever was sent
    """The bytes of a file, given them or base64 of them; raises ValueError with the reason."""
    if isinstance(row, str):
        text = row.partition(_DATA_URL)[2] if row.startswith("data:") else row
        try:
            row = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as err:
            raise ValueError(f"it is no base64: {err}") from None
    if row is None or row != row:  # pandas gives nan where a cell is empty
        raise ValueError("it is missing")
    if not isinstance(row, bytes):
        raise ValueError(f"it is a {type(row).__name__}, not bytes or base64 of bytes")
    if not row:
        raise ValueError("it is empty")
    if len(row) > MEBIBYTES << 20:
        raise ValueError(f"it has {len(row) / 2**20:.0f} MiB, {MEBIBYTES} are the most")
    return row


def _opened(row: Any) -> Image.Image:  # noqa: ANN401 - whatever was sent
    """The image, not decoded yet; raises ValueError with the reason."""
    content = _content(row)
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MEGAPIXELS} megapixels") from None
    most = DEEP_MEGAPIXELS if is_deep(image) else MEGAPIXELS
    if image.width * image.height > most * 10**6:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, {most} megapixels are the most"
        )
    return image


def _why(err: Exception) -> str:
    """Why a row of a request is no image."""
    if isinstance(err, UnidentifiedImageError):
        return "no image that Pillow knows"
    return str(err).partition("\n")[0] or type(err).__name__


class ImageClassifier(PythonModel):  # type: ignore[misc, unused-ignore]
    """A classifier with its class names and preprocessing."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the logged files."""
        self.about = json.loads(Path(context.artifacts["about"]).read_text(encoding="utf-8"))
        code = Path(context.artifacts["about"]).parents[1] / "code"
        self.network = _built(self.about["function"], self.about["arguments"], code)
        weights = load_file(context.artifacts["weights"])
        for name, tensor in self.network.state_dict().items():
            tensor.copy_(weights[name])
        self.network.eval()

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Class name and probabilities of each image in column `image`, or its error.

        Raises:
            RefusedRequest: no column `image`, too many rows, no row with an image, or no time.
                To a server a request without rows is a mistake of the client's; from Python a
                table without rows has an answer without rows.
        """
        if "image" not in model_input:
            raise RefusedRequest(f"the request has no column named image: {_HOW}")
        rows, names = list(model_input["image"]), list(self.about["class_names"])
        if _served() and not rows:
            raise RefusedRequest(f"the request has no row, so no image: {_HOW}")
        if _served() and len(rows) > ROWS:
            raise RefusedRequest(f"{len(rows)} rows: send {ROWS} at most in one request")
        time_left = _Time()
        found = np.full((len(rows), len(names)), np.nan)
        errors: list[str | None] = [None] * len(rows)
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            time_left.wait_for(_READING, start, len(rows))
            try:
                images, errors[part] = self._read(rows[part], start)
            finally:
                _READING.release()
            if not images:
                continue
            time_left.wait_for(_COMPUTING, start, len(rows))
            try:
                good = [start + i for i, error in enumerate(errors[part]) if error is None]
                found[good] = self._probabilities(images)
            finally:
                _COMPUTING.release()
        if rows and None not in errors:
            raise RefusedRequest(f"{errors[0]}: {_HOW}" if _served() else str(errors[0]))
        return self._table(found, errors)

    def _read(
        self, rows: list[Any], first: int
    ) -> tuple[list[np.ndarray[Any, Any]], list[str | None]]:
        """What the network sees of the rows that are images, and an error or none for each row."""
        prepared, ranges, size = self._prepared, self.about.get("ranges"), self.about["image_size"]
        images: list[np.ndarray[Any, Any]] = []
        errors: list[str | None] = []
        for number, row in enumerate(rows, first):
            try:
                images.append(prepared.fit_square(to_rgb(_opened(row), ranges), size))
                errors.append(None)
            except Exception as err:  # noqa: BLE001 - each format of Pillow raises its own
                errors.append(
                    f"the image in row {number} (rows from 0) cannot be read ({_why(err)})"
                )
        return images, errors

    @property
    def _prepared(self) -> Preparation:
        return Preparation(
            **{key: self.about[key] for key in ("interpolation", "crop", "mean", "std")}
        )

    @torch.no_grad()
    def _probabilities(self, images: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        batch = self._prepared.normalise(torch.from_numpy(np.stack(images)))
        probabilities: np.ndarray[Any, Any] = self.network(batch).softmax(1).numpy()
        return probabilities

    def _table(self, found: np.ndarray[Any, Any], errors: list[str | None]) -> pd.DataFrame:
        """The answer. JSON has no `nan`: numbers that are missing are none."""
        names = list(self.about["class_names"])
        good = np.array([error is None for error in errors], dtype=bool)
        numbers = found if good.all() else found.astype(object)
        numbers[~good] = None
        table = pd.DataFrame(numbers, columns=names)
        best = np.nan_to_num(found).argmax(1)
        labels = [names[i] if ok else None for i, ok in zip(best, good, strict=True)]
        table.insert(0, "label", pd.Series(labels, dtype=object))
        table[self.about["error_name"]] = pd.Series(errors, dtype=object)
        return table


set_model(ImageClassifier())
