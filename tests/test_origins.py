"""Runs that other libraries or devices made are reused, counted and told, never silently mixed."""

from __future__ import annotations

from collections.abc import Iterator

import mlflow
import pytest
import torch
from mlflow.entities import Run

from pipeline.runs.messages.origins import (
    NOT_RECORDED,
    is_made_with,
    made_with,
    note_on_origins,
    origins_in_words,
)
from pipeline.runs.stage_log import _libraries_of
from pipeline.system.provenance import libraries
from pipeline.tracking.keys import MADE_WITH, stored_tag
from tests.comparisons import NAME, compare, new_desk
from tests.conftest import Command, inside
from tests.fake_device import FakeDevice
from tests.reports import reports
from tests.test_decide import OFF, Desk
from tests.test_decide import runs as runs_of

HERE = made_with(torch.device("cpu"), NAME)
OLD = "torch 1.0.0, torchvision 0.2.0, pillow 5.0.0, on cpu"
PAIRS = {"question": "stage2", "looks": "2", "epochs": "1", **OFF}
ARMS = {"schedules": "full,head_only"}


def changed(run: Run, made: str | None) -> None:
    """Give a run another origin, or none, as a run of an earlier version has."""
    client = mlflow.MlflowClient()
    if made:
        client.set_tag(run.info.run_id, stored_tag(MADE_WITH), made)
    else:
        client.delete_tag(run.info.run_id, stored_tag(MADE_WITH))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, empty_database: object) -> Iterator[Desk]:
    desk = new_desk(tmp_path_factory, empty_database)  # type: ignore[arg-type]
    with inside(desk.folder):
        yield desk


# --- sentences -----------------------------------------------------------------------------------


def test_what_computes_here_names_versions_and_the_device() -> None:
    assert f"{libraries()}, on cpu" == HERE
    assert f"torch {torch.__version__}, " in HERE
    assert "pillow " in HERE
    assert "timm" not in HERE


def test_what_computes_a_network_of_timm_names_its_version_too() -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    of_timm = made_with(torch.device("cpu"), "timm:test_resnet")
    assert of_timm == HERE.replace(", on cpu", f", timm {timm.__version__}, on cpu")


def test_what_computes_a_network_of_ones_own_names_the_library_of_its_layers() -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    around = made_with(torch.device("cpu"), "tests.networks:around_timm")
    assert around == HERE.replace(", on cpu", f", timm {timm.__version__}, on cpu")
    assert made_with(torch.device("cpu"), "tests.networks:Net") == HERE
    served, plain = (_libraries_of(f"tests.networks:{name}") for name in ("around_timm", "Net"))
    assert set(served) - set(plain) == {"timm"}


def test_runs_that_were_made_here_are_no_note() -> None:
    assert note_on_origins([({"a": HERE}, {"b": HERE, "p": HERE})], HERE) == ""
    assert note_on_origins([], HERE) == ""


def test_runs_made_elsewhere_are_counted_once_with_the_pairs_that_mix_them() -> None:
    first = ({"a": OLD, "p": HERE}, {"b": HERE, "p": HERE})
    second = ({"c": OLD, "q": OLD}, {"d": OLD, "q": OLD})
    third = ({"e": HERE, "r": NOT_RECORDED}, {"f": HERE, "r": NOT_RECORDED})
    note = note_on_origins([first, second, third], HERE)
    assert note.startswith(f"note: 5 of 9 runs were made with {OLD} (4 runs); {NOT_RECORDED} (1")
    assert f"not with {HERE}, and the arms of 1 pair with different ones" in note
    assert origins_in_words({"a": OLD, "b": HERE, "c": OLD}) == f"{OLD} (2 runs); {HERE} (1 run)"


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_decision_tells_which_runs_others_made_and_trains_none_anew(desk: Desk) -> None:
    desk.decide(**PAIRS)
    stages = runs_of()
    assert {run.data.tags[stored_tag(MADE_WITH)] for run in stages} == {HERE}
    assert not any("were made with" in line for line in desk.said)
    decision = runs_of("decision")[-1]
    assert decision.data.tags[stored_tag(MADE_WITH)] == f"{HERE} ({len(stages)} runs)"
    assert f"Made with {HERE} ({len(stages)} runs)." in reports(decision)[1]
    last = [run for run in stages if run.data.tags["schedule"] == "stage1_continued"]
    second = [run for run in last if run.data.tags["stage"] == "2"]
    changed(second[0], OLD)
    changed(second[1], None)
    desk.said.clear()
    desk.decide(**PAIRS)
    assert len(runs_of()) == len(stages)
    [note] = [line for told in desk.said for line in told.splitlines() if "were made with" in line]
    assert note.startswith(f"note: 2 of {len(stages)} runs were made with ")
    for what in (f"{OLD} (1 run)", f"{NOT_RECORDED} (1 run)", "the arms of 2 pairs"):
        assert what in note
    page = reports(runs_of("decision")[-1])[1]
    assert f"Made with {HERE} ({len(stages) - 2} runs); " in page
    assert f"{OLD} (1 run)" in page


@pytest.mark.slow
def test_a_comparison_tells_it_too(desk: Desk) -> None:
    compare(desk, **ARMS)
    count = len(runs_of())
    made_here = [run for run in runs_of() if run.data.tags["schedule"] == "full"]
    for run in made_here:
        changed(run, OLD)
    desk.said.clear()
    compare(desk, **ARMS)
    assert len(runs_of()) == count
    [note] = [line for line in desk.said if "were made with" in line]
    assert f"{OLD} ({len(made_here)} runs)" in note
    assert f"{OLD} ({len(made_here)} runs)" in reports(runs_of("comparison")[-1])[1]


@pytest.mark.slow
def test_arms_of_timm_are_held_against_what_computes_them_here(desk: Desk) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    before = len(runs_of())
    desk.said.clear()
    both = f"{NAME},timm:test_resnet"
    compare(desk, backbones=both, schedules="head_only,full", epochs="2")
    made = {run.data.tags[stored_tag(MADE_WITH)] for run in runs_of()[before:]}
    assert made == {made_with(torch.device("cpu"), name) for name in both.split(",")}
    assert len(made) == 2
    assert not [line for line in desk.said if "were made with" in line]


@pytest.mark.slow
def test_a_stage_that_is_found_says_whose_it_is_and_ones_own_comes_first(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("main", schedule="head_only") == 0
    [first] = runs_of()
    changed(first, OLD)
    capfd.readouterr()
    assert command("main", schedule="head_only") == 0
    found = f"found run {first.info.run_id} with the same content, made with {OLD} (here: {HERE})"
    assert found in capfd.readouterr().out
    assert command("main", schedule="head_only", reuse="off") == 0
    _, second = runs_of()
    capfd.readouterr()
    assert command("main", schedule="head_only") == 0
    assert (
        f"found run {second.info.run_id} with the same content, reusing" in capfd.readouterr().out
    )


def test_runs_of_earlier_versions_do_not_name_timm_and_count_as_made_alike() -> None:
    here = "torch 2.9, torchvision 0.24, pillow 12, timm 1.0.22, on cpu"
    assert is_made_with(here, here)
    assert is_made_with("torch 2.9, torchvision 0.24, pillow 12, on cpu", here)
    two = here.replace(", on", ", transformers 5.1, on")
    assert is_made_with("torch 2.9, torchvision 0.24, pillow 12, on cpu", two)
    assert not is_made_with(here.replace("1.0.22", "1.0.21"), here)
    assert not is_made_with("torch 2.8, torchvision 0.24, pillow 12, on cpu", here)


def test_a_gpu_goes_by_its_model() -> None:
    origins = []
    for model in ("NVIDIA A100 (80 GB)", "Tesla T4"):
        with FakeDevice(model=model):
            origins.append(made_with(torch.device("cuda:0"), NAME))
    assert origins[0].endswith(", on cuda (NVIDIA A100 (80 GB))")
    assert not is_made_with(*origins)
    former = origins[0].replace(" (NVIDIA A100 (80 GB))", "")
    assert all(is_made_with(former, origin) for origin in origins)  # of earlier versions
