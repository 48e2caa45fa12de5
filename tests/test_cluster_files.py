"""The files of docs/cluster/, each against what its own system asks of it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.entries.command_line.parser import parse
from pipeline.entries.command_line.table import ENTRY_POINTS

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "docs" / "cluster"
SCHEMA = ROOT / "tests" / "data" / "kuberay_rayjob.json"
OPTIONS = re.compile(
    r"--(job-name|nodes|ntasks-per-node|cpus-per-task|mem-per-cpu|time|signal|output)=(\S+)"
)
"""Of sbatch, as its manual has them; those that the file uses."""


def rayjob() -> dict[str, Any]:
    content = yaml.safe_load((FILES / "rayjob.yaml").read_text())
    assert isinstance(content, dict)
    return content


def check(content: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(content)


def test_the_manifest_is_a_rayjob_of_kuberay() -> None:
    check(rayjob())


def without_replicas(content: dict[str, Any]) -> None:
    del content["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]


def with_a_field_too_many(content: dict[str, Any]) -> None:
    content["spec"]["rayClusterSpec"]["headGroupSpecs"] = {}


def with_a_number_for_a_text(content: dict[str, Any]) -> None:
    content["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] = {"num-cpus": 0}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (without_replicas, "maxReplicas"),
        (with_a_field_too_many, "headGroupSpecs"),
        (with_a_number_for_a_text, "string"),
    ],
)
def test_a_spoilt_manifest_is_refused(spoil: Any, what: str) -> None:  # noqa: ANN401
    content = rayjob()
    spoil(content)
    with pytest.raises(jsonschema.ValidationError, match=what):
        check(content)


def test_the_manifest_types_a_command_that_there_is_and_no_password() -> None:
    content = rayjob()
    python, dash, package, *words = content["spec"]["entrypoint"].split()
    assert [python, dash, package] == ["python", "-m", "pipeline"]
    name, options = parse(words)
    assert options["cluster"] == "auto"
    ENTRY_POINTS[name].plan(ENTRY_POINTS[name].read(options | {"data": "digits"}))
    cluster = content["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert f":{cluster['rayVersion']}" in container["image"]
        for variable in container["env"]:
            is_secret = not variable["name"].endswith("TRACKING_URI")
            assert ("valueFrom" in variable) == is_secret


def test_the_batch_script_is_bash_with_options_of_sbatch() -> None:
    path = FILES / "slurm.sbatch"
    text = path.read_text()
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    subprocess.run(["bash", "-n", str(path)], check=True)
    head = text.partition("\nset -euo pipefail\n")[0]
    lines = [line for line in head.splitlines() if line.startswith("#SBATCH ")]
    for line in lines:
        words = line.removeprefix("#SBATCH ").split()
        assert all(OPTIONS.fullmatch(word) for word in words), line
    given = dict(OPTIONS.findall("\n".join(lines)))
    assert re.fullmatch(r"\d\d:\d\d:\d\d", given["time"])
    assert re.fullmatch(r"B:TERM@\d+", given["signal"])
    assert int(given["nodes"]) > 1
    assert "#SBATCH" not in re.sub("(?m)^#.*", "", text)
