"""Logins in addresses: used, and neither shown, nor recorded, nor on any command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import NETS, TINY
from tests.integration.conftest import ROOT
from tests.postgres import Postgres
from tests.served import Guard, basic, tracking_server

pytestmark = pytest.mark.slow

TRACKING, STORAGE = "tr4cking-s3cret", "st0rage-s3cret"


def command_lines_of(group: int) -> set[str]:
    """The words of the processes of a group, as every user of the machine sees them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                found.add((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="this system has no /proc")
def test_passwords_in_addresses_are_used_and_nowhere_to_be_found(
    tmp_path: Path,
    image_folder: Path,
    environment: dict[str, str],
    postgres: Postgres,
    serve: Callable[..., str],
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "server").mkdir()
    (folder / "space.yaml").write_text("lr: [3.0e-3, 1.0e-2]\n")
    own = {**TINY, "data": str(image_folder), "cache_dir": str(folder / "cache"), "stage": "1"}
    own |= {"n_trials": "2", "workers": "2", "space": "space.yaml", "log_model": "on"}
    seen: set[str] = set()
    with tracking_server(tmp_path / "server") as server:
        login = basic("alice", TRACKING)
        address = serve(partial(Guard, target=server, login=login))
        secrets = {
            "MLFLOW_TRACKING_URI": address.replace("://", f"://alice:{TRACKING}@"),
            "no_proxy": "127.0.0.1",
            "OPTUNA_STORAGE": postgres.url("secrets").replace("postgres@", f"postgres:{STORAGE}@"),
        }
        for entry_point, words in {
            "tune": own,
            "stage1": {"tuned": "on", "data": own["data"], **TINY, "log_model": "on"},
            "evaluate": {"run_id": "nothing"},
        }.items():
            if entry_point != "evaluate":
                words = {**words, "cache_dir": own["cache_dir"]}
            output = tmp_path / f"{entry_point}.txt"
            with output.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "pipeline", entry_point]
                    + [f"--{key}={value}" for key, value in words.items()],
                    cwd=folder,
                    env={
                        **environment,
                        **secrets,
                        "PYTHONPATH": os.pathsep.join([str(ROOT), str(NETS)]),
                    },
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            while process.poll() is None:
                seen |= command_lines_of(process.pid)
                time.sleep(0.05)
            said = output.read_text()
            assert process.returncode == (2 if entry_point == "evaluate" else 0), said
            assert "s3cret" not in said
            if entry_point == "tune":
                assert "2 tasks at once" in said
                assert "postgres:***@127.0.0.1" in said
            assert address in said
    assert any("ray::" in words for words in seen)
    assert not any("s3cret" in words for words in seen)
    # the server's database and artifacts, caches, what was written beside
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if b"s3cret" in path.read_bytes()] == []
