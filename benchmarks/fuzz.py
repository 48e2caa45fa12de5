"""Damaged bytes for everything that reads bytes, for as long as one has time.

    python benchmarks/fuzz.py --minutes 60

Each target of `tests/fuzzing.py` in turn, with new random damage in every round: images,
parquet, labels, weights, YAML, and the bodies that a model's server is sent. Out: a line a target,
how often damaged content was read, and how often refused in one line; peak memory. A fault that is
neither is printed with the smallest damage that Hypothesis finds for it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hypothesis import HealthCheck, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tests import fuzzing  # noqa: E402

ROUND = {"image": 300, "parquet": 60, "labels": 60, "weights": 60, "yaml": 100, "server": 40}
Try = Callable[[str, list[fuzzing.Damage]], str]


def server(folder: Path) -> tuple[list[str], Try]:
    """A model that has been trained on few images, asked as MLflow's server asks."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    from pipeline.cli import main
    from tests.conftest import tiny, words_of, write_image_folder

    options = {"schedule": "head_only", "log_model": "on"}
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    images = write_image_folder(folder / "images")
    assert main(words_of("stage1", tiny(images, folder, options))) == 0
    runs = mlflow.search_runs(
        search_all_experiments=True, output_format="list", filter_string="tags.kind = 'stage'"
    )
    model = mlflow.pyfunc.load_model(runs[0].data.tags["model_uri"])
    os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"
    schema = model.metadata.get_input_schema()
    requests = {name: (body, kind) for name, body, kind in fuzzing.bodies()}

    def ask(name: str, damages: list[fuzzing.Damage]) -> str:
        body, kind = requests[name]
        text = fuzzing.damaged(body, damages).decode(errors="replace")
        try:
            found = json.loads(invocations(text, kind, model, schema).response)
        except MlflowException as err:
            found = json.loads(err.serialize_as_json()) | {"status": err.get_http_status_code()}
        assert fuzzing.is_an_answer(found), found
        return "read" if "predictions" in found else "refused"

    return sorted(requests), ask


def one_round(
    name: str, number: int, parts: list[str], attempt: Try, counts: Counter[str]
) -> bool:
    """A round of damage; whether every attempt ended as promised."""

    @seed(number)
    @settings(
        max_examples=ROUND[name],
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    @given(st.sampled_from(parts), fuzzing.DAMAGES)
    def tried(part: str, damages: list[fuzzing.Damage]) -> None:
        counts[attempt(part, damages)] += 1

    try:
        tried()
    except Exception:  # noqa: BLE001 - whatever a reader raises is what is looked for
        print(f"{name}, round {number}:\n{traceback.format_exc()}", flush=True)
        return False
    return True


def main() -> int:
    """Rounds over all targets until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given_as = parser.parse_args()
    end = time.monotonic() + 60 * given_as.minutes
    counts: dict[str, Counter[str]] = {name: Counter() for name in ROUND}
    number, is_good = given_as.seed, True
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds: dict[str, tuple[list[str], Try]] = {"server": server(folder)}
        for kind, target in fuzzing.targets(folder).items():
            kinds[kind] = (
                sorted(target.whole),
                lambda part, damages, target=target: fuzzing.survives(target, part, damages),
            )
        while time.monotonic() < end:
            for kind, (parts, attempt) in kinds.items():
                is_good &= one_round(kind, number, parts, attempt, counts[kind])
            number += 1
        os.chdir(ROOT)
    for kind, found in counts.items():
        print(f"{kind}: {found.total()} damaged, {found['read']} read, {found['refused']} refused")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"rounds {given_as.seed} to {number - 1}, peak memory {peak_mib:.0f} MiB")
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
