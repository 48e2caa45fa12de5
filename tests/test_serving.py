"""A logged model of any kind answers in a process that has nothing of this package."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

import pipeline
from pipeline.cli import main
from tests.conftest import Command
from tests.helpers import as_in_a_new_process

FACTORY = """
from torch import nn
from own_net_parts.norm import normed

class Build(nn.Module):
    blocks = {"head": "fc", "late": "late", "early": "early"}

    def __init__(self, num_classes):
        super().__init__()
        self.early, self.late = normed(3, 8), normed(8, 8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.late(self.early(x)).mean((2, 3)))

def build(num_classes):
    return Build(num_classes)
"""
PARTS = """
from torch import nn

def normed(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(2, outputs), nn.ReLU())
"""
ANSWER = """
import json, sys
sys.modules["pipeline"] = None  # as where it is not installed
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
table = pd.DataFrame({"image": [open(path, "rb").read() for path in sys.argv[2:]]})
found = model.predict(table)
print(json.dumps(found.drop(columns=["label", "error"]).to_numpy().tolist()))
"""


def served_elsewhere(uri: str, images: list[Path], folder: Path) -> np.ndarray:
    """Probabilities from a fresh process in an empty folder, which cannot import this package."""
    artifacts = mlflow.artifacts.download_artifacts(uri, dst_path=str(folder / "model"))
    (folder / "empty").mkdir()
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [sys.executable, "-P", "-c", ANSWER, artifacts, *map(str, images)]
    done = subprocess.run(
        words, cwd=folder / "empty", env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


def check_served(command: Command, image_folder: Path, tmp_path: Path, **options: str) -> Path:
    """Train one stage, serve its model elsewhere, compare with its own network's answers."""
    before = {run.info.run_id for run in mlflow.search_runs(output_format="list")}
    assert command("stage1", **options) == 0
    new = [r for r in mlflow.search_runs(output_format="list") if r.info.run_id not in before]
    (run,) = [r for r in new if r.data.tags.get("kind") == "stage"]
    images = sorted(image_folder.rglob("*.png"))[::7][:3]
    answers = served_elsewhere(run.data.tags["model_uri"], images, tmp_path)
    classifier = pipeline.load(run.info.run_id)
    about = classifier.served.about
    with torch.no_grad():
        logits = classifier.network(torch.zeros(2, 3, about["image_size"], about["image_size"]))
    assert logits.shape == (2, len(classifier.class_names))
    own = classifier.predict(images).drop(columns="label").to_numpy()
    np.testing.assert_allclose(answers, own, rtol=1e-5, atol=1e-6)
    assert len({tuple(row) for row in answers.round(6).tolist()}) > 1
    return tmp_path / "model"


OPTIONS = {"weights": "none", "schedule": "head_only", "image_size": "32", "log_model": "on"}


@pytest.mark.slow
def test_a_network_of_timm_is_served_in_a_fresh_process(
    command: Command, image_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    options = {**OPTIONS, "backbone": "timm:test_efficientnet"}
    folder = check_served(command, image_folder, tmp_path, **options)
    assert "timm==" in (folder / "requirements.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("own", [("__init__", "norm", "net"), ("norm", "net")])
def test_a_factorys_network_is_served_with_its_source_files(
    own: tuple[str, ...], command: Command, image_folder: Path, tmp_path: Path
) -> None:
    """The package of the factory lies in the folder where the command runs, and nowhere else."""
    package = Path("own_net_parts")
    package.mkdir()
    for name in own:
        (package / f"{name}.py").touch()
    (package / "norm.py").write_text(PARTS)
    (package / "net.py").write_text(FACTORY)
    options = {**OPTIONS, "backbone": "own_net_parts.net:build"}
    try:
        folder = check_served(command, image_folder, tmp_path, **options)
    finally:
        as_in_a_new_process("own_net_parts")
    logged = {str(p.relative_to(folder / "code")) for p in (folder / "code").rglob("*.py")}
    assert {f"own_net_parts/{name}.py" for name in own} <= logged


LONE = """
from torch import nn

class Net(nn.Module):
    blocks = {"head": "fc", "body": "body"}

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ACTIVATION(), nn.AvgPool2d(8))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1))

def build(num_classes):
    return Net(num_classes)
"""


@pytest.mark.slow
def test_models_of_factories_that_changed_between_them_are_loaded_in_one_process(
    command: Command, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has the layers that it was trained with, though their modules have one name."""
    runs, models = [], []
    for activation in ("ReLU", "Tanh"):
        Path("lone_net.py").write_text(LONE.replace("ACTIVATION", activation))
        as_in_a_new_process("lone_net")
        importlib.invalidate_caches()
        options = {**OPTIONS, "backbone": "lone_net:build", "test_per_class": "1"}
        assert command("stage1", **options) == 0
        run = mlflow.search_runs(output_format="list")[0]
        runs.append(run.info.run_id)
        models.append(run.data.tags["model_uri"])
    try:
        found = [mlflow.pyfunc.load_model(uri) for uri in models]
        layers = [type(one.unwrap_python_model().network.body[1]).__name__ for one in found]
        assert layers == ["ReLU", "Tanh"]
        content = [path.read_bytes() for path in sorted(image_folder.rglob("*.png"))[:2]]
        for one in found:
            assert len(one.predict(pd.DataFrame({"image": content}))) == 2
        assert main(["evaluate", "--run_id", runs[1]]) == 0
        assert main(["evaluate", "--run_id", runs[0]]) == 2
        fault = "the source files or blocks of lone_net:build are others than those"
        assert fault in capsys.readouterr().err
        assert "Tanh" in Path(sys.modules["lone_net"].__file__ or "").read_text()
    finally:
        as_in_a_new_process("lone_net")
