"""The model that MLflow serves: encoded images in, class names and probabilities out.

MLflow stores this file, `data/images.py` and a factory's source files beside the weights, and runs
them in an environment of their own: training and service prepare an image by the same code and
make the network by the same function. In: a column `image` with PNG, JPEG, ... bytes (base64
over HTTP). Out: a row an image: `label` and one column of probability for each class.
"""

from __future__ import annotations

import io
import json
import sys
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file

try:
    from pipeline.data.images import Preparation, to_rgb
except ImportError:  # in a server: images.py stands alone on the path
    from images import Preparation, to_rgb  # type: ignore[import-not-found, no-redef]


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


class UnreadableImage(MlflowException, ValueError):
    """A request that holds no image, in one sentence: MLflow's server answers with no traceback.

    The server puts the whole request before the message of such an error: that is not let happen.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Keep the first message."""
        if name != "message" or "message" not in vars(self):
            super().__setattr__(name, value)

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


def _why(content: Any, err: Exception) -> str:  # noqa: ANN401 - whatever was sent
    """Why a row of a request is no image."""
    if not isinstance(content, bytes):
        return f"it is a {type(content).__name__}, not bytes"
    if isinstance(err, UnidentifiedImageError):
        return "no image that Pillow knows" if content else "it is empty"
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
        """Class name and probabilities of each image in column `image`."""
        size, names = self.about["image_size"], self.about["class_names"]
        ranges = self.about.get("ranges")
        prepared = Preparation(
            **{key: self.about[key] for key in ("interpolation", "crop", "mean", "std")}
        )
        images = []
        for row, content in enumerate(model_input["image"]):
            try:
                rgb = to_rgb(Image.open(io.BytesIO(content)), ranges)
                images.append(prepared.fit_square(rgb, size))
            except Exception as err:  # each format of Pillow raises its own
                raise UnreadableImage(
                    f"the image in row {row} (rows from 0) cannot be read ({_why(content, err)}): "
                    "send the bytes of a PNG, JPEG, ... file, as base64 over HTTP"
                ) from err
        if not images:
            return pd.DataFrame(columns=["label", *names])
        batch = prepared.normalise(torch.from_numpy(np.stack(images)))
        with torch.no_grad():
            probabilities = self.network(batch).softmax(1).numpy()
        table = pd.DataFrame(probabilities.astype(np.float64), columns=names)
        table.insert(0, "label", [names[i] for i in probabilities.argmax(1)])
        return table


set_model(ImageClassifier())
