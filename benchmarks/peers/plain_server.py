"""The server that one would write by hand: FastAPI, TorchScript, one picture after the other.

    python benchmarks/peers/plain_server.py MODEL_FOLDER PORT

It answers the same body as MLflow's server, has no bounds, and refuses a request for one bad row.
"""

import base64
import io
import sys
import threading
from typing import Any

import mlflow
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image, ImageOps

served = mlflow.pyfunc.load_model(sys.argv[1]).unwrap_python_model()
SIZE, NAMES = served.about["image_size"], served.about["class_names"]
MEAN, STD = (torch.tensor(served.about[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
network = torch.jit.freeze(torch.jit.trace(served.network, torch.zeros(1, 3, SIZE, SIZE)))
app, lock = FastAPI(), threading.Lock()


@app.get("/ping")
def ping() -> str:
    """Say that it is there."""
    return "ready"


@app.post("/invocations")
def answer(body: dict[str, Any]) -> dict[str, Any]:
    """Probabilities of every picture."""
    pictures = [
        ImageOps.fit(
            Image.open(io.BytesIO(base64.b64decode(row[0]))).convert("RGB"),
            (SIZE, SIZE),
            method=Image.Resampling.BILINEAR,
        )
        for row in body["dataframe_split"]["data"]
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2)
    with torch.no_grad(), lock:
        found = network((pixels / 255 - MEAN) / STD).softmax(1).tolist()
    return {"predictions": [dict(zip(NAMES, row, strict=True)) for row in found]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
