"""An environment that was left half built is named in one line, before anything else happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.system.installed import IncompleteError, declared, explain

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = [
    Requirement(line)
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def half_built(folder: Path, *names: str) -> Path:
    """A virtual environment that holds these modules and distributions, and nothing else."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in names:
        about = site / f"{name.replace('-', '_')}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return site


def start(prefix: Path, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline` as `mlflow run` starts it there."""
    return subprocess.run(
        [prefix / "bin" / "python", "-m", "pipeline", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


def test_an_environment_that_mlflow_left_half_built_is_named_as_the_folder_to_delete(
    tmp_path: Path,
) -> None:
    prefix = tmp_path / ".mlflow" / "envs" / "mlflow-a0956d50"
    half_built(prefix)
    line = one_line(start(prefix, tmp_path, "stage3"))
    assert line.startswith("error: this environment is incomplete (no mlflow, filelock, jinja2 ")
    assert f"delete that folder (rm -r {prefix}) and run the same command again" in line


def test_another_half_built_environment_is_to_be_installed_into(tmp_path: Path) -> None:
    half_built(tmp_path / "env", *(name for name in declared() if name != "pyyaml"))
    line = one_line(start(tmp_path / "env", tmp_path, "--help"))
    assert "incomplete (no pyyaml)" in line
    assert f"{tmp_path / 'env'}/bin/python -m pip install -e {ROOT}" in line


def test_a_library_that_is_unpacked_in_part_counts_as_missing(tmp_path: Path) -> None:
    site = half_built(tmp_path / "env", *declared())
    line = one_line(start(tmp_path / "env", tmp_path, "blocks"))
    assert "incomplete (no module pydantic)" in line
    (site / "pydantic").mkdir()
    (site / "pydantic" / "__init__.py").write_text("import lacking\n")
    line = one_line(start(tmp_path / "env", tmp_path, "blocks"))
    assert "incomplete (no module lacking)" in line


def test_what_a_persons_own_module_lacks_is_not_laid_at_our_door(tmp_path: Path) -> None:
    (tmp_path / "own_network.py").write_text("import nowhere_to_be_found\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import own_network  # type: ignore[import-not-found]  # noqa: F401
    except ModuleNotFoundError as err:
        explain(err)  # raises nothing
    finally:
        sys.path.remove(str(tmp_path))
    with pytest.raises(IncompleteError, match="no module yaml"):
        explain(ModuleNotFoundError("No module named 'yaml'", name="yaml"))


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_the_installed_version_lies_within_bounds_on_both_sides(requirement: Requirement) -> None:
    assert {clause.operator for clause in requirement.specifier} == {">=", "<"}
    assert requirement.specifier.contains(metadata.version(requirement.name))


def test_extras_bring_jupyter_and_the_list_names_no_registry() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    notebook = {Requirement(line).name for line in project["optional-dependencies"]["notebook"]}
    assert {"notebook", "ipykernel", "ipywidgets"} <= notebook
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--extra-index|-f ", text)
    assert declared() == [requirement.name for requirement in REQUIREMENTS]
