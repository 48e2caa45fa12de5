"""Bad input, line by line of the table: one line with what to do, exit code 2, nothing left."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from pipeline.cli import main
from tests.bad_files import make_files
from tests.bad_inputs import SECRET, Row, rows, within
from tests.conftest import EARLIER, enter_store

LIMIT_S = 60
"""Seconds after which a command hangs."""
RUNS = {
    "@chain": "895e8e30af434a21ad58981adc0a9465",
    "@stage1": "951d48df239d4200bee35215ea3b2409",
    "@stage2": "9f77f32635cc42d5907ca72d2fd879f1",
}
"""Of `data/finished_chain`; the checkpoint of stage 2 is made a folder."""
ADVICE = re.compile(
    r"(?:[:;,(] (?:or )?|\. )(?:did you mean|see|pass|give|write|choose|name|set|add|remove|leave"
    r"|keep|mend|replace|rename|lower|ask|use|run|start|copy|check|unset|save|store|put|make|"
    r"install|pip install|fetch|correct|restore|unpack|move|--help lists|read)\b"
)
"""What to do comes last, as a sentence that begins with its verb."""


@pytest.fixture(scope="module")
def names(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[dict[str, str]]:
    """What stands for `@…`: the files of the table, and runs of the store that we are in."""
    root = tmp_path_factory.mktemp("bad")
    (root / "files").mkdir()
    make_files(root / "files")
    with pytest.MonkeyPatch.context() as patch:
        store = enter_store(root / "work", empty_database, patch)
        sql = (EARLIER / "mlflow.sql").read_text(encoding="utf-8").replace("{root}", str(store))
        with closing(sqlite3.connect(store / "mlflow.db")) as database:
            database.executescript(sql)
        for run in (EARLIER / "artifacts").iterdir():
            shutil.copytree(run, store / "mlruns" / "0" / run.name / "artifacts")
        checkpoint = store / "mlruns/0" / RUNS["@stage2"] / "artifacts/checkpoint"
        (checkpoint / "checkpoint.safetensors").unlink()
        (checkpoint / "checkpoint.safetensors").mkdir()
        (root / "home").mkdir()
        patch.setenv("HOME", str(root / "home"))
        patch.delenv("OPTUNA_STORAGE", raising=False)
        yield {"@/": f"{root / 'files'}/", "@long": "x" * 300, **RUNS}


def as_in_a_process_of_its_own() -> None:
    """Warnings are lines on the terminal, and no errors."""

    def show(message: Warning | str, category: type[Warning], *where: object) -> None:
        print(f"{category.__name__}: {message}", file=sys.stderr)

    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    warnings.showwarning = show  # type: ignore[assignment]


def what_is_there() -> set[str]:
    """Every file of the working folder, and every run."""
    with closing(sqlite3.connect("mlflow.db")) as database:
        found = database.execute("select run_uuid, status from runs").fetchall()
    files = {
        str(path)
        for path in Path().rglob("*")
        if path.suffix != ".lock" and path.parts[0] != "cache"
    }
    return files | {" ".join(row) for row in found}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.line)
def test_bad_input_is_one_line_with_what_to_do_and_leaves_nothing(
    row: Row,
    names: Mapping[str, str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment, words = row.call(names)
    for name in ("USERNAME", "PASSWORD", "TOKEN"):  # what a command sets is gone afterwards
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    before = what_is_there()
    with within(LIMIT_S), warnings.catch_warnings():
        as_in_a_process_of_its_own()
        code = main(words)
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert code == 2, out
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert ADVICE.search(line), line
    assert re.search(".*".join(map(re.escape, row.expected)), line), line
    assert what_is_there() == before
    assert not Path("PWNED").exists()
