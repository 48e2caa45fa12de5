"""Schedules: the table of the method, and files of one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.cli import main
from pipeline.comparing.arms import decide_plan
from pipeline.comparing.grid import compare_plan
from pipeline.entries.command_line.parser import parse
from pipeline.errors import SettingsError
from pipeline.runs.lineage import lineage_key, recipe_key
from pipeline.settings.layers import Layer, resolve
from pipeline.settings.run import plain_values
from pipeline.settings.schedules import BLOCKS, SCHEDULES, SCHEDULES_DIR, schedule_of
from pipeline.settings.search_space import SPACES_DIR, default_space
from pipeline.system.disk.yaml_file import read_yaml
from tests.conftest import Command, words_of
from tests.helpers import load_settings, planned_epochs, request_of

FORWARD = ("stem", "block1", "block2", "block3", "block4", "head")


@pytest.mark.parametrize(
    ("name", "trains"),
    [
        ("three_stage", [{"head"}, {"block4", "head"}, {"block3", "block4", "head"}]),
        ("two_stage", [{"block4", "head"}, {"block3", "block4", "head"}]),
        ("full", [set(FORWARD)]),
        ("lp_ft", [{"head"}, set(FORWARD)]),
        ("head_only", [{"head"}]),
        ("stage1_continued", [{"head"}, {"head"}]),
        ("stage2_continued", [{"head"}, {"block4", "head"}, {"block4", "head"}]),
    ],
)
def test_the_schedules_of_the_method_train_what_they_are_known_for(
    name: str, trains: list[set[str]]
) -> None:
    assert [set(blocks) for blocks in SCHEDULES[name].trains()] == trains


def test_every_file_in_the_folder_is_a_schedule_with_words_of_its_own() -> None:
    assert set(SCHEDULES) == {path.stem for path in SCHEDULES_DIR.iterdir()}
    for name, schedule in SCHEDULES.items():
        content = read_yaml(SCHEDULES_DIR / f"{name}.yaml", name)
        assert schedule.words == content["words"] != name


TRANSFORMER = ("head", *(f"block{n}" for n in range(12, 0, -1)), "stem")


@pytest.mark.parametrize(
    ("blocks", "trains"),
    [
        (BLOCKS, [("head",), ("head", "block4"), ("head", "block4", "block3")]),
        (TRANSFORMER, [("head",), ("head", "block12"), ("head", "block12", "block11")]),
        (("head", "late", "early"), [("head",), ("head", "late"), ("head", "late", "early")]),
    ],
)
def test_a_position_is_counted_from_the_head_of_any_network(
    blocks: tuple[str, ...], trains: list[tuple[str, ...]]
) -> None:
    schedule = SCHEDULES["three_stage"].on(blocks)
    assert schedule.trains() == trains
    assert schedule == SCHEDULES["three_stage"]
    assert str(schedule) == "three_stage"
    assert SCHEDULES["full"].on(blocks).trains() == [blocks]


def test_a_network_may_have_too_few_blocks_for_a_schedule() -> None:
    few = ("head", "trunk")
    assert SCHEDULES["two_stage"].fits(BLOCKS)
    assert not SCHEDULES["two_stage"].fits(few)
    with pytest.raises(SettingsError, match=r"two_stage: stage 2 names block 2 .*head and 1 to 1"):
        SCHEDULES["two_stage"].on(few)
    with pytest.raises(SettingsError, match=r"schedule=lp_ft or full or head_only$"):
        SCHEDULES["three_stage"].on(few)


def test_names_and_positions_may_stand_side_by_side() -> None:
    schedule = schedule_of("mix(1+head; block3+block4+head; all)")
    assert schedule.trains() == [("head", "block4"), ("head", "block4", "block3"), BLOCKS]


@pytest.mark.parametrize(
    ("schedule", "number", "message"),
    [
        ("full", 2, "full has 1 stage, got stage 2: .*schedule=.*lp_ft.* or two_stage"),
        ("two_stage", 3, "two_stage has 2 stages, got stage 3: .*schedule=.*three_stage"),
        ("three_stage", 4, "three_stage has 3 stages, got stage 4: run an earlier stage"),
        ("head_only", 0, "head_only has 1 stage, got stage 0"),
        ("head_only", -1, "head_only has 1 stage, got stage -1"),
    ],
)
def test_a_missing_stage_names_the_schedules_that_have_it(
    schedule: str, number: int, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        SCHEDULES[schedule].stage(number)


# lineage and recipe keys by stage, begun with; made before schedules were files
KEYS = {
    "three_stage": [
        ("b63b253b2e446151", "4d79f58e82773ae3"),
        ("0594f8d107d1f073", "48d7c579268e55a7"),
        ("7cc0beda611745c3", "7ea8e4be9ce60abd"),
    ],
    "two_stage": [
        ("8ed4c832158c5506", "1db2f9a7472f5b75"),
        ("fcc2fecf46aa5576", "b0eefc05b2c76863"),
    ],
    "full": [("faf3bf6a1c08b4e5", "83b960099b84ddfb")],
    "lp_ft": [("b63b253b2e446151", "4d79f58e82773ae3"), ("19ce519123cb95c1", "36cb7fb47d893095")],
    "head_only": [("b63b253b2e446151", "4d79f58e82773ae3")],
    "stage1_continued": [
        ("b63b253b2e446151", "4d79f58e82773ae3"),
        ("8f302dcc407dbd32", "f00a1fca69968733"),
    ],
    "stage2_continued": [
        ("b63b253b2e446151", "4d79f58e82773ae3"),
        ("0594f8d107d1f073", "48d7c579268e55a7"),
        ("e0ed9ce8b845e2b9", "6e3d6618a5480c69"),
    ],
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_runs_of_the_built_in_schedules_are_what_they_were(name: str) -> None:
    """Or no finished run would be found again."""
    options = {"schedule": name, "seed": "3", "stage1.lr": "0.01", "norm_stats": "source"}
    if name == "stage1_continued":  # whose stage 2 trains the head alone
        options["stage2.lr"] = "3e-4"  # the preset gave this rate to every stage 2 then
    settings = load_settings(options)
    made: dict[str, Any] = {"network": "", "weights_digest": "w" * 8, "precision": "float32"}
    of_recipe = {"data": "pool", "class_names": ("a", "b"), "former": False}
    parent, found = None, []
    for stage in SCHEDULES[name].stages:
        parent = lineage_key(settings, stage, fingerprint="f" * 8, parent_key=parent, **made)
        recipe = recipe_key(settings, stage, trained=stage.number, **of_recipe, **made)
        found.append((parent[:16], recipe[:16]))
    assert found == KEYS[name]


FOUR = """
stages:
  - [head]
  - [head, block4]
  - [block3, block4, head]
  - [head, block4, block3, block2]
"""
FOUR_TEXT = "four(head; head+block4; block3+block4+head; head+block4+block3+block2)"


@pytest.fixture
def four(tmp_path: Path) -> Path:
    path = tmp_path / "four.yaml"
    path.write_text(FOUR)
    return path


def test_a_file_is_a_schedule_of_its_own_and_becomes_text_that_needs_no_file(four: Path) -> None:
    schedule = schedule_of(str(four))
    assert (schedule.name, schedule.words) == ("four", "four")
    blocks = ["head", "block4", "block3", "block2"]
    assert [set(trains) for trains in schedule.trains()] == [set(blocks[:n]) for n in (1, 2, 3, 4)]
    settings = load_settings({"schedule": str(four)})
    four.unlink()
    assert settings.schedule == FOUR_TEXT
    assert load_settings({"schedule": FOUR_TEXT}) == settings
    again = resolve([Layer(source="test", values=json.loads(json.dumps(plain_values(settings))))])
    assert again == settings
    assert len(settings.stages) == 4


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_copy_of_a_built_in_file_is_that_schedule(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text((SCHEDULES_DIR / f"{name}.yaml").read_text())
    assert load_settings({"schedule": str(path)}).schedule == name
    other = tmp_path / "other.yaml"
    other.write_text(path.read_text())
    assert schedule_of(str(schedule_of(str(other)))).trains() == SCHEDULES[name].trains()


def test_stages_that_go_on_are_told_from_stages_that_repeat(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(
        "words: two words\nstages:\n  - [head, block4]\n  - continued\n  - continued\n"
    )
    schedule = schedule_of(str(path))
    assert str(schedule) == "twice(head+block4; continued; continued)"
    assert schedule.trains() == [("head", "block4")] * 3
    assert schedule.words == schedule_of(str(schedule)).words == "twice"  # runs record no words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stages: [[head], [head, blok4]]", r"stage 2 names block blok4: .* block4\?"),
        ("stages: [[head], [head, 6]]", "stage 2 names block 6 .*head and 1 to 5"),
        ("stages: [[head], [head, [1]]]", "stage 2 must be a list of blocks"),
        ("stages: [[head], []]", r"stage 2 must be a list of blocks .* got \[\]"),
        ("stages: [[head], block4]", "stage 2 must be a list of blocks .* got 'block4'"),
        ("stages: [[head, block4], [head, block3]]", "stage 2 leaves out block4, which stage 1"),
        ("stages: [[head], [block4]]", "stage 2 leaves out head, which stage 1 trains"),
        ("stages: [[head], [head]]", "stage 2 trains the same blocks as stage 1: .*continued"),
        ("stages: [[block4]]", "stage 1 must train the head"),
        ("stages: [[head, head]]", "stage 1 names a block twice"),
        ("stages: [continued]", "stage 1 has no stage before it"),
        ("stages: []", "stages must be a list of stages"),
        ("stages: head", "stages must be a list of stages"),
        ("stages: {a: [head]}", "stages must be a list of stages"),
        ("stage: [[head]]", "stages must be a list of stages"),
        ("words: 3\nstages: [[head]]", "words, if given, a text"),
        ("lr: 1\nstages: [[head]]", "has stages and words, got lr: leave"),
        ("- [head]", "holds a list"),
        ("stages: [[", "line 1 is not valid YAML"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line_and_exit_code_2(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert main(["stage1", "--schedule", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert str(path) in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("three_stages", r"'three_stages' is not known: did you mean three_stage\?"),
        ("release_block3", r"'release_block3' is not known: choose from .*three_stage, "),
        ("nowhere.yaml", r"cannot read .*nowhere\.yaml"),
        ("mine(head; head+blok4)", r"stage 2 names block blok4: did you mean block4\?"),
        ("full(head; head+block4)", "full is the name of a built-in schedule"),
        ("full.yaml", "name of a built-in schedule"),
        ("a b.yaml", "use letters, digits"),
    ],
)
def test_an_unknown_schedule_or_a_name_that_cannot_be_is_refused(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if given in ("full.yaml", "a b.yaml"):
        Path(given).write_text(FOUR)
    with pytest.raises(SettingsError, match=message):
        load_settings({"schedule": given})


def test_defaults_and_spaces_of_a_stage_follow_from_what_it_trains(four: Path) -> None:
    settings = load_settings({"schedule": str(four), "stage4.epochs": "7", "data": "/images"})
    assert [training.lr for training in settings.stages] == [3e-3, 3e-4, 1e-4, 1e-4]
    assert settings.training(4).epochs == 7
    schedule = schedule_of(FOUR_TEXT)
    spaces = [default_space(schedule, n).relative_to(SPACES_DIR) for n in (1, 2, 3, 4)]
    assert [*map(str, spaces)] == ["stage1.yaml", "stage2.yaml", "stage3.yaml", "stage3.yaml"]
    others = {
        "a(head+block4+block3; continued)": ["two_stage/stage1", "stage2_continued/stage3"],
        "b(head; continued; continued)": ["stage1", *["stage1_continued/stage2"] * 2],
        "c(head; head+stem)": ["stage1", "stage2"],
    }
    for text, files in others.items():
        found = [default_space(schedule_of(text), n) for n in range(1, len(files) + 1)]
        assert found == [SPACES_DIR / f"{file}.yaml" for file in files]
        assert all(path.is_file() for path in found)


def test_a_stage_beyond_the_schedule_is_refused_and_one_within_is_taken(four: Path) -> None:
    with pytest.raises(SettingsError, match=r"stage5\.lr .*schedule four has 4 stages"):
        load_settings({"schedule": str(four), "stage5.lr": "1"})
    assert parse(["stage1", "--stage12.lr", "1"]) == ("stage1", {"stage12.lr": "1"})
    with pytest.raises(SettingsError, match=r"stage12\.lrr .*did you mean stage12\.lr\?"):
        parse(["stage1", "--stage12.lrr", "1"])


def _below_head() -> str:
    return "+".join(BLOCKS[1:])


def test_arms_of_files_have_equal_steps(four: Path, tmp_path: Path) -> None:
    control = tmp_path / "three_continued.yaml"
    control.write_text(FOUR.replace("[head, block4, block3, block2]", "continued"))
    options = {"preset": "cifar10_small", "stage4.lr": "0.5"}
    both = {"treatment": str(four), "control": str(control)}
    plan = decide_plan(request_of("decide", {**options, **both}))
    assert plan.treatment.words == "four"
    assert plan.control.settings.stages == plan.treatment.settings.stages
    swapped = {"treatment": "three_stage", "control": str(four)}
    with pytest.raises(SettingsError, match="cannot share the steps"):
        decide_plan(request_of("decide", {"preset": "digits", **swapped}))
    (tmp_path / "same.yaml").write_text(FOUR)
    same = {"treatment": str(four), "control": str(tmp_path / "same.yaml")}
    with pytest.raises(SettingsError, match="four and same train the same blocks"):
        decide_plan(request_of("decide", {**options, **same}))
    for twice in (f"{four},{tmp_path / 'same.yaml'}", f"{four},full,all(head+{_below_head()})"):
        with pytest.raises(SettingsError, match="train the same blocks"):
            compare_plan(request_of("compare", {**options, "schedules": twice}))
    words = {**options, "schedules": f"full,{four},two_stage"}
    request = request_of("compare", words)
    assert request.typed["schedules"] == f"full,{FOUR_TEXT},two_stage"  # for workers and reports
    grid = compare_plan(request)
    ours = next(iter(grid.arms.values()))
    assert [arm.name for arm in ours] == ["full", "four", "two_stage"]
    assert len({planned_epochs(arm) for arm in ours}) == 1
    assert grid.explicit[4] == {"lr"}


def test_four_stages_work_from_end_to_end(
    command: Command, four: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = {"train_per_class": "2", "val_per_class": "2", "schedule": str(four)}
    own |= {f"stage{n}.epochs": "1" for n in (2, 3, 4)}
    assert command("stage", **own, number="3") == 0
    assert command("main", **own, **{"stage4.lr": "0.01"}) == 0
    out = capfd.readouterr().out
    assert "stage 3: found run" in out  # the same run, by whatever command
    runs = mlflow.search_runs(["0"], "tags.kind = 'stage'", output_format="list")
    by_stage = {run.data.tags["stage"]: run.data.tags for run in runs}
    assert sorted(by_stage) == ["1", "2", "3", "4"]
    assert by_stage["4"]["z.trains"] == "head block4 block3 block2"
    assert {tags["schedule"] for tags in by_stage.values()} == {"four"}
    assert json.loads(by_stage["4"]["z.settings"])["schedule"] == FOUR_TEXT
    note = by_stage["3"]["mlflow.note.content"]
    run_id = next(run.info.run_id for run in runs if run.data.tags["stage"] == "3")
    assert "mlflow run . -e stage -P number=4 --env-manager local " in note
    assert f"-P parent_run_id={run_id}`" in note
    four.unlink()  # runs say what their stages are
    few = {"epochs": "1", "number": "4", "parent_run_id": run_id, "cache_dir": "cache"}
    few |= {"log_model": "off", "log_pictures": "off"}
    assert main(words_of("stage", {**few, "seed": "0"})) == 0
    capfd.readouterr()
    assert main(words_of("stage", {**few, "number": "5"})) == 2
    assert "stage5 needs a stage-4 checkpoint" in capfd.readouterr().err


@pytest.mark.slow
def test_a_fourth_stage_is_tuned_decided_and_compared(
    command: Command, four: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    control = tmp_path / "three_continued.yaml"
    control.write_text(FOUR.replace("[head, block4, block3, block2]", "continued"))
    own = {"train_per_class": "2", "val_per_class": "1", "test_per_class": "4", "epochs": "1"}
    own["stage1.batch_size"] = "64"  # as of the other stages: arms have equal steps
    study = {"n_trials": "1", "stage": "4", "schedule": str(four)}
    assert command("tune", **own, **study) == 0
    assert "use the tuned settings: mlflow run . -e stage -P number=4 " in capfd.readouterr().out
    studies = mlflow.search_runs(["0"], "tags.kind = 'study'", output_format="list")
    assert [run.data.tags["stage"] for run in studies] == ["4"]
    both = {"treatment": str(four), "control": str(control)}
    assert command("decide", **own, **both, looks="2", register_as="off") == 0
    [decision] = mlflow.search_runs(["0"], "tags.kind = 'decision'", output_format="list")
    assert "Four gains" in decision.data.tags["mlflow.note.content"]
    assert command("compare", **own, schedules=f"full,{four}", draws="2") == 0
    [comparison] = mlflow.search_runs(["0"], "tags.kind = 'comparison'", output_format="list")
    assert any(name.endswith("/four") for name in comparison.data.metrics)
