"""What an installed package holds, and the functions it offers to Python."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import pipeline
from pipeline.errors import DataError, LineageError, SettingsError

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, object] = {
    "data": "digits",
    "image_size": 32,
    "epochs": 1,
    "views": 2,
    "train_per_class": 2,
    "val_per_class": 2,
}


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "pipeline").rglob("__init__.py")
    }
    assert set(listed) == found | {"pipeline.search_spaces"}


@pytest.mark.slow
def test_a_stage_is_run_and_its_model_loaded_from_python(store: Path, tmp_path: Path) -> None:
    summary = pipeline.run_stage(1, **TINY, cache_dir=tmp_path)
    classifier = pipeline.load(summary.run_id)
    picture = tmp_path / "grey.png"
    Image.new("RGB", (20, 30), "grey").save(picture)
    table = classifier.predict([picture, picture.read_bytes()])
    assert classifier.class_names == [str(digit) for digit in range(10)]
    assert list(table.columns) == ["label", *classifier.class_names]
    assert table.iloc[0].equals(table.iloc[1])
    assert table.drop(columns="label").sum(axis=1).tolist() == pytest.approx([1, 1])
    with pytest.raises(DataError, match=r"cannot read .*nowhere"):
        classifier.predict(["nowhere.png"])
    with pytest.raises(DataError, match=r"the image in row 1 \(rows from 0\) cannot be read"):
        classifier.predict([picture, b"no image"])


@pytest.mark.slow
def test_what_has_no_model_is_told(store: Path, tmp_path: Path) -> None:
    summary = pipeline.run_stage(1, **TINY, cache_dir=tmp_path, log_model=False)
    with pytest.raises(LineageError, match=r"logged no model.*log_model=on"):
        pipeline.load(summary.run_id)
    with pytest.raises(LineageError, match="does not exist"):
        pipeline.load("0" * 32)


def test_a_misspelt_setting_is_refused_from_python() -> None:
    with pytest.raises(SettingsError, match=r"lrr.*did you mean lr"):
        pipeline.run_stage(1, lrr=1)


@pytest.mark.slow
def test_a_wheel_runs_in_an_empty_folder(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    copy = tmp_path / "source"
    subprocess.run(["git", "-C", ROOT, "checkout-index", "-a", f"--prefix={copy}/"], check=True)
    subprocess.run([sys.executable, *build, "-w", wheels, copy], check=True)
    (wheel,) = wheels.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    start = "import sys; from pipeline.__main__ import start; sys.argv[0] = 'unfreeze'; start()"
    settings = [f"-P{' '}{key}={value}".split(" ") for key, value in TINY.items()]
    words = ["tune", *(word for pair in settings for word in pair), "-P", "n_trials=1"]
    words += ["-P", "stage=1", "-P", f"cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-c", start, *words],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site), "MLFLOW_TRACKING_URI": "sqlite:///m.db"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "unfreeze" in done.stdout
    assert "mlflow run" not in done.stdout
