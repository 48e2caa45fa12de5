"""Search spaces: what ships, what a file may say, every fault with its line, and the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from pipeline.errors import SettingsError
from pipeline.settings.layers import preset_names
from pipeline.settings.request import load_settings
from pipeline.settings.run import TRAIN_KEYS, TrainSettings
from pipeline.settings.schedules import SCHEDULES, Stage
from pipeline.settings.search_space import (
    SPACES_DIR,
    Choices,
    Range,
    SearchSpace,
    default_space,
    plan_of,
    read_space,
)
from tests.helpers import request_of

STAGES = [stage for schedule in SCHEDULES.values() for stage in schedule.stages]
FILES = sorted(SPACES_DIR.rglob("*.yaml"))


def named(path: Path) -> str:
    return str(path.relative_to(SPACES_DIR))


def written(folder: Path, text: str, name: str = "space.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def as_yaml(plain: Mapping[str, object]) -> str:
    """`SearchSpace.plain()` in the words of a file."""
    words: dict[str, object] = {}
    for key, dimension in json.loads(json.dumps(plain)).items():
        spoken = {word: v for word, v in dimension.items() if v is not None and v is not False}
        words[key] = dimension.get("values", spoken)
    return yaml.safe_dump(words)


def test_every_stage_of_every_schedule_has_a_file_and_every_file_a_stage() -> None:
    assert {default_space(SCHEDULES[stage.schedule], stage.number) for stage in STAGES} == set(
        FILES
    )


def test_stages_that_begin_alike_share_a_file() -> None:
    by_chain: dict[str, set[Path]] = {}
    for stage in STAGES:
        steps = SCHEDULES[stage.schedule].stages[: stage.number]
        chain = str([step.trainable for step in steps])
        by_chain.setdefault(chain, set()).add(
            default_space(SCHEDULES[stage.schedule], stage.number)
        )
    assert all(len(files) == 1 for files in by_chain.values())
    assert len(by_chain) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_shipped_space_is_of_training_settings_and_survives_being_written_again(
    path: Path, tmp_path: Path
) -> None:
    space = read_space(path)
    assert space.source == str(path)
    assert set(space.dimensions) <= set(TRAIN_KEYS)
    assert "lr" in space.dimensions
    again = read_space(written(tmp_path, as_yaml(space.plain())))
    assert again.dimensions == space.dimensions
    assert again.plain() == space.plain()


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: f"{s.schedule}-{s.number}")
@pytest.mark.parametrize("preset", preset_names())
def test_a_shipped_space_holds_the_defaults_of_every_preset(preset: str, stage: Stage) -> None:
    settings = load_settings({"preset": preset, "schedule": stage.schedule})
    space = read_space(default_space(SCHEDULES[stage.schedule], stage.number))
    training = settings.training(stage.number)
    outside = {
        key: getattr(training, key)
        for key, dimension in space.dimensions.items()
        if not dimension.holds(getattr(training, key))
    }
    assert outside == {}
    assert space.holds(training.model_dump())


def test_values_are_read_as_the_settings_own_types(tmp_path: Path) -> None:
    text = """
        lr: {low: 1e-4, high: 1, log: true}  # YAML reads 1e-4 as text, 1 as an integer
        epochs: {low: 5.0, high: "20", step: 5.0}
        l2_sp: [0, 1e-3]
        norm: [keep]
    """
    dimensions = read_space(written(tmp_path, text)).dimensions
    assert dimensions == {
        "lr": Range(1e-4, 1.0, None, log=True),
        "epochs": Range(5, 20, 5),
        "l2_sp": Choices((0.0, 1e-3)),
        "norm": Choices(("keep",)),
    }
    for value in (dimensions["epochs"].low, dimensions["epochs"].high, dimensions["epochs"].step):
        assert type(value) is int
    for value in (dimensions["lr"].low, dimensions["lr"].high, *dimensions["l2_sp"].values):
        assert type(value) is float


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Range(5, 20, 5), [5, 10, 20], [4, 6, 19, 21, 25, "10"]),
        (Range(0.0, 0.3, 0.1), [0.0, 0.1, 0.2, 0.30000000000000004 - 1e-16], [0.15, 0.31, -0.1]),
        (Range(1e-4, 1e-2, log=True), [1e-4, 3e-4, 1e-2], [9e-5, 2e-2, float("nan")]),
        (Choices(("none", "light")), ["none", "light"], ["strong", None]),
        (Choices((0.0, 1e-3)), [0, 0.0, 1e-3], [5e-4]),
    ],
)
def test_a_dimension_holds_its_ends_and_its_grid(
    dimension: Range | Choices, inside: list[object], outside: list[object]
) -> None:
    assert [value for value in inside if not dimension.holds(value)] == []
    assert [value for value in outside if dimension.holds(value)] == []


def test_a_space_holds_settings_only_if_every_dimension_does() -> None:
    space = SearchSpace("", {"lr": Range(0.1, 1.0), "norm": Choices(("keep",))})
    assert space.holds(TrainSettings(lr=0.5, norm="keep").model_dump())
    assert not space.holds(TrainSettings(lr=0.5, norm="adapt").model_dump())
    assert not space.holds(TrainSettings(lr=2.0, norm="keep").model_dump())


FAULTS = [
    ("lrr: [1.0]", r"unknown training setting lrr: did you mean lr\?"),
    ("zzzz: [1.0]", r"unknown training setting zzzz: a space may hold epochs, batch_size"),
    ("draw: [0, 1]", r"unknown training setting draw"),
    ("1: [1.0]", r"unknown training setting 1"),
    ("lr: {low: 0.1, high: 0.01}", r"lr: the range is reversed, got low 0\.1 and high 0\.01"),
    ("lr: {low: 0.1, high: 0.1}", r"lr: the range is empty, got low 0\.1 and high 0\.1"),
    ("lr: {high: 0.1}", r"lr: the range has no low, got \{'high': 0\.1\}"),
    ("lr: {low: 0.1}", r"lr: the range has no high"),
    ("lr: {log: true}", r"lr: the range has no low and no high"),
    ("lr: {}", r"lr: the range has no low and no high"),
    ("lr: {low: 0.1, hihg: 1.0}", r"lr: unknown word hihg: did you mean high\?: a range has"),
    ("lr: {low: 0.1, high: 1.0, 7: 1}", r"lr: unknown word 7: a range has low, high"),
    ("lr: {low: 0.1, low: 0.2, high: 1.0}", r"lr names low twice: keep one"),
    ("l2_sp: {low: 0.0, high: 1.0, log: true}", r"l2_sp: a log range needs low > 0 and no step"),
    ("epochs: {low: 5, high: 20, step: 5, log: true}", r"epochs: a log range needs low > 0 and"),
    ("lr: {low: 0.1, high: 1.0, log: 1}", r"lr: log is true or false, got 1"),
    ("lr: {low: 0.1, high: 1.0, log: 'on'}", r"lr: log is true or false, got 'on'"),
    ("epochs: {low: 5, high: 20, step: 4}", r".*: steps of 4 do not lead from 5 to 20"),
    (
        "warmup: {low: 0.0, high: 0.5, step: 0.3}",
        r".*: steps of 0\.3 do not lead from 0\.0 to 0\.5",
    ),
    ("epochs: {low: 5, high: 20, step: 30}", r".*: steps of 30 do not lead from 5 to 20"),
    ("epochs: {low: 5, high: 20, step: 0}", r".*: steps of 0 do not lead"),
    ("epochs: {low: 5, high: 20, step: -5}", r".*: steps of -5 do not lead"),
    ("epochs: {low: 5, high: 20, step: 2.5}", r"epochs: step must be a valid integer.*got 2\.5"),
    ("epochs: {low: 5, high: 20, step: null}", r"epochs: step must be a valid integer, got None"),
    ("epochs: {low: 5, high: 20, step: true}", r"epochs: step is a number, got True"),
    ("warmup: {low: 0.0, high: 0.5, step: .nan}", r".*: steps of nan do not lead"),
    ("warmup: {low: 0.0, high: 0.5, step: .inf}", r".*: steps of inf do not lead"),
    ("lr: []", r"lr has an empty list: give one value or more"),
    ("norm: [keep, keep]", r"norm names a value twice, got \['keep', 'keep'\]: keep one"),
    ("lr: [0.1, 1.0e-1]", r"lr names a value twice"),
    ("l2_sp: [0, 0.0]", r"l2_sp names a value twice"),
    ("norm: {low: 1, high: 2}", r"norm takes a list of adapt, keep, got \{'low': 1, 'high': 2\}"),
    ("norm: keep", r"norm takes a list of adapt, keep, got 'keep'"),
    ("augment: [light, flips]", r"augment must be 'none', 'light' or 'strong', got 'flips'"),
    ("augment: [null]", r"augment must be 'none', 'light' or 'strong', got None"),
    ("augment: [off]", r"augment must be 'none', 'light' or 'strong', got False"),
    ("lr: 0.1", r"lr must be a range like \{low: 1, high: 9\} or a list, got 0\.1"),
    ("lr:", r"lr must be a range .* got None"),
    ("lr: {low: 0.0, high: 0.1}", r"lr must be greater than 0, got 0\.0"),
    ("lr: {low: 0.1, high: 101.0}", r"lr must be less than or equal to 100, got 101\.0"),
    ("label_smoothing: [1.0]", r"label_smoothing must be less than 1, got 1\.0"),
    ("epochs: [10, 0]", r"epochs must be greater than or equal to 1, got 0"),
    ("epochs: [2.5]", r"epochs must be a valid integer.*got 2\.5"),
    ("epochs: [ten]", r"epochs must be a valid integer.*got 'ten'"),
    ("lr: [[0.1]]", r"lr must be a valid number, got \[0\.1\]"),
    ("lr: [true]", r"lr is a number, got True"),
    ("epochs: {low: yes, high: 9}", r"epochs is a number, got True"),
    ("lr: [.nan]", r"lr must be .* got nan"),
    ("clip_norm: [.inf]", r"clip_norm must be a finite number, got inf"),
    ("clip_norm: {low: 0.0, high: .inf}", r"clip_norm must be a finite number, got inf"),
    ("weight_decay: [.nan]", r"weight_decay must be .* got nan"),
    ("optimizer: [sgd, adam]", r"optimizer stands here twice: keep one"),
]


@pytest.mark.parametrize(("line", "message"), FAULTS)
def test_a_fault_is_one_line_with_file_and_line_number(
    tmp_path: Path, line: str, message: str
) -> None:
    path = written(tmp_path, f"# mine\noptimizer: [sgd]\n{line}\n")
    with pytest.raises(SettingsError, match=rf"space\.yaml:3: {message}") as caught:
        read_space(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert len(str(caught.value).splitlines()) == 1


def test_several_faults_are_all_listed_in_their_order(tmp_path: Path) -> None:
    text = "lr: [0.1]\nlrr: [1]\n\nepochs:\n  low: 9\n  high: 3\nlr: [0.2]\nnorm: [odd]\n"
    with pytest.raises(SettingsError, match="lrr") as caught:
        read_space(written(tmp_path, text))
    places = [line.split(": ")[0].rpartition(":")[2] for line in str(caught.value).splitlines()]
    assert places == ["2", "4", "7", "8"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"space\.yaml: holds no ranges: write lines like"),
        ("# nothing\n", r"space\.yaml: holds no ranges"),
        ("{}", r"space\.yaml: holds no ranges"),
        ("- lr\n", r"space\.yaml: holds no ranges"),
        ("lr", r"space\.yaml: holds no ranges"),
        ("norm: [keep]\nlr: {low: 1\n", r"space\.yaml:3: not YAML \(.+\): write lines like"),
        ("norm: [keep]\nlr: !odd 1\n", r"space\.yaml:2: not YAML \(could not determine"),
        ("? [lr]\n: 1\n", r"space\.yaml:1: unknown training setting \['lr'\]"),
        ("norm: [keep]\n---\nlr: [1]\n", r"space\.yaml:2: not YAML \(.*another document\)"),
        ("norm: \0", r"space\.yaml: not YAML \(unacceptable character #x0000.*: write lines"),
    ],
)
def test_what_is_no_mapping_of_ranges_is_refused_in_one_line(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read_space(written(tmp_path, content))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"lr: \xff\xfe")
    for path, why in (
        (tmp_path / "nowhere.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (binary, "can't decode byte 0xff"),
    ):
        with pytest.raises(SettingsError, match=rf"space=.*: cannot be read \(.*{why}") as caught:
            read_space(path)
        assert str(caught.value).startswith(f"space={path}: ")


def test_a_folder_of_spaces_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"space=.*nowhere: cannot be read \(.*No such file"):
        plan_of(request_of("tune", {"space": str(tmp_path / "nowhere")}))


LR, BOTH = "lr: [0.1, 0.2]\n", "lr: [0.1, 0.2]\nnorm: [keep, adapt]\n"


def planned(options: Mapping[str, str], config: str | None = None) -> dict[int, list[str]]:
    """Which settings of which stage a command would tune."""
    plan = plan_of(request_of("tune", options, config))
    return {number: list(space.dimensions) for number, space in plan.spaces.items()}


def test_without_a_space_each_stage_has_the_one_that_ships() -> None:
    plan = plan_of(request_of("tune", {"schedule": "lp_ft"}))
    assert [space.source for space in plan.spaces.values()] == [
        str(SPACES_DIR / "stage1.yaml"),
        str(SPACES_DIR / "lp_ft" / "stage2.yaml"),
    ]
    assert list(planned({"stage": "2"})) == [2]


@pytest.mark.parametrize(
    ("fixed", "left"),
    [
        ({}, ["lr", "norm"]),
        ({"lr": "0.5"}, ["norm"]),
        ({"stage2.lr": "0.5"}, ["norm"]),
        ({"stage1.lr": "0.5"}, ["lr", "norm"]),
        ({"norm": "keep", "epochs": "3"}, ["lr"]),
    ],
)
def test_settings_fixed_by_hand_leave_the_space(
    tmp_path: Path, fixed: dict[str, str], left: list[str]
) -> None:
    space = {"stage": "2", "space": str(written(tmp_path, BOTH))}
    assert planned({**space, **fixed}) == {2: left}
    config = written(tmp_path, yaml.safe_dump(fixed), "config.yaml")
    assert planned(space, str(config)) == {2: left}


def test_a_setting_fixed_for_all_stages_leaves_every_space(tmp_path: Path) -> None:
    for number in (1, 2):
        written(tmp_path, BOTH, f"stage{number}.yaml")
    options = {"schedule": "two_stage", "space": str(tmp_path)}
    assert planned({**options, "lr": "0.5"}) == {1: ["norm"], 2: ["norm"]}
    assert planned({**options, "stage1.lr": "0.5"}) == {1: ["norm"], 2: ["lr", "norm"]}


def test_a_folder_gives_each_stage_its_file(tmp_path: Path) -> None:
    written(tmp_path, LR, "stage1.yaml")
    written(tmp_path, BOTH, "stage2.yaml")
    options = {"schedule": "two_stage", "space": str(tmp_path)}
    assert planned(options) == {1: ["lr"], 2: ["lr", "norm"]}
    assert planned({**options, "stage": "2"}) == {2: ["lr", "norm"]}


def test_one_file_will_do_for_a_schedule_of_one_stage(tmp_path: Path) -> None:
    path = str(written(tmp_path, LR))
    assert planned({"schedule": "full", "space": path}) == {1: ["lr"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "{file}"}, r"space\.yaml is one file for 3 stages: pass -P stage="),
        ({"space": "{folder}"}, r"stage2\.yaml: cannot be read \(.*No such file"),
        ({"space": "{file}", "stage": "2", "lr": "1", "norm": "keep"},
         r"stage 2: every setting of .*space\.yaml is fixed by hand \(lr, norm\): leave one"),
        ({"schedule": "two_stage", "stage": "3"}, r"schedule two_stage has 2 stages, got stage 3"),
        ({"stage": "4"}, r"schedule three_stage has 3 stages, got stage 4"),
            ({"stage": "first"}, r"stage must be all, or the number of a stage, got 'first'"),
        ({"n_trials": "0"}, r"n_trials must be greater than or equal to 1, got '0'"),
        ({"objective": "val_los"}, r"got 'val_los' \(command line\): did you mean val_loss\?"),
        ({"timeout": "-1"}, r"timeout must be greater than or equal to 0"),
        ({"lrr": "1"}, r"unknown setting lrr \(command line\): did you mean lr\?"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    path = written(tmp_path, BOTH)
    folder = written(tmp_path / "folder", LR, "stage1.yaml").parent
    filled = {key: value.format(file=path, folder=folder) for key, value in options.items()}
    with pytest.raises(SettingsError, match=message):
        plan_of(request_of("tune", filled))
