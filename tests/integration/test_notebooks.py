"""The notebooks: committed without outputs, executed from top to bottom in a clean clone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from pipeline.tracking.keys import tags_as_named

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

Outputs = dict[str, list[dict[str, Any]]]
"""What the cells of a notebook left, by the cell's id."""

Execute = Callable[[str], tuple[Outputs, Path]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(content)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert code
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]] == []


@pytest.fixture
def execute(clone: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[Execute]:
    """Execute a notebook as in Jupyter; what its cells left, and the folder it worked in."""

    def run(name: str) -> tuple[Outputs, Path]:
        home, executed = tmp_path / "home", tmp_path / "executed.ipynb"
        home.mkdir()
        words = ["jupyter", "execute", "--timeout=900", f"--output={executed}", f"{name}.ipynb"]
        done = subprocess.run(
            words,
            cwd=clone / "notebooks",
            env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        content = executed.read_text(encoding="utf-8")
        outputs = {
            cell["id"]: cell["outputs"]
            for cell in json.loads(content)["cells"]
            if cell["cell_type"] == "code"
        }
        for path in (str(tmp_path), sys.prefix, str(Path.home())):
            assert path not in json.dumps(outputs), f"a machine's path in the outputs: {path}"
        status = ["git", "-C", str(clone), "status", "--porcelain"]
        assert subprocess.run(status, capture_output=True, check=True).stdout == b""
        (folder,) = (clone / "notebooks" / "runs").iterdir()
        return outputs, folder

    yield run
    shutil.rmtree(tmp_path)  # hundreds of megabytes of checkpoints


def text_of(outputs: list[dict[str, Any]]) -> str:
    """What a cell printed, and its value as text; nothing of pictures."""
    parts = []
    for output in outputs:
        data = output.get("data", {})
        if "image/png" not in data:
            parts.append("".join(output.get("text", data.get("text/plain", ""))))
    return "".join(parts)


def pictures_in(outputs: Outputs) -> set[str]:
    """Ids of the cells that left a picture."""
    return {
        cell
        for cell, left in outputs.items()
        if any("image/png" in output.get("data", {}) for output in left)
    }


def tags_of_kind(folder: Path, kind: str) -> list[dict[str, str]]:
    """Tags of the finished runs of a kind."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.kind = '{kind}' and status = 'FINISHED'")
    return [tags_as_named(run.data.tags) for run in found]


@pytest.mark.slow
def test_run_the_stages(execute: Execute) -> None:
    outputs, folder = execute("01_run_the_stages")
    assert text_of(outputs["run-main"]).count("Best results: Train Loss") == 3
    tree = text_of(outputs["run-tree"]).splitlines()
    assert ["· stage" in line and line.startswith("    ") for line in tree] == [
        False,
        True,
        True,
        True,
    ]
    assert pictures_in(outputs) == {"learning-curves", "drift", "confusion-matrix", "predict"}
    right, of = re.findall(r"\d+", text_of(outputs["predict"]).splitlines()[-1])
    assert int(right) > int(of) // 2
    assert len(tags_of_kind(folder, "evaluate")) == 1


@pytest.mark.slow
def test_browse_runs_and_studies(execute: Execute) -> None:
    outputs, folder = execute("02_browse_runs_and_studies")
    assert pictures_in(outputs) == {"stages-by-draw", "history", "slice"}
    (gate,) = tags_of_kind(folder, "gate")
    assert f"({gate['gate.prior']})\n" in text_of(outputs["gate"])
    (study,) = tags_of_kind(folder, "study")
    assert study["study"] in text_of(outputs["study"])
    assert len(re.findall(r"^    trial \d", text_of(outputs["trials"]), re.MULTILINE)) == 6
    assert "stage2.lr: " in text_of(outputs["best-yaml"])


@pytest.mark.slow
def test_is_stage3_justified(execute: Execute) -> None:
    outputs, folder = execute("03_is_stage3_justified")
    assert pictures_in(outputs) == {"characteristics", "posterior-picture", "champion"}
    (decision,) = tags_of_kind(folder, "decision")
    for key in ("verdict.p_gain", "verdict.p_equivalent", "verdict.p_harm"):
        row = re.search(rf"^{key} +(\S+) +(\S+)$", text_of(outputs["posterior"]), re.MULTILINE)
        assert row, key
        assert row.groups() == (decision[key], decision[key])
    sentence = decision["mlflow.note.content"].split("**")[1]  # begins both descriptions
    assert sentence in text_of(outputs["champion"])
    assert "srcdoc" in str(outputs["report"])
