"""Search spaces: what ships, what a file may say, every fault with its line, and the plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from pipeline.errors import SettingsError
from pipeline.settings.layers import preset_names
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES, Stage
from pipeline.settings.search_space import (
    SPACES_DIR,
    Choices,
    Range,
    SearchSpace,
    default_space,
    read_space,
    tune_plan,
)
from tests.helpers import load_settings, request_of

STAGES = [stage for schedule in SCHEDULES.values() for stage in schedule.stages]
AUGMENTATION = SPACES_DIR / "augmentation"
FILES = sorted(set(SPACES_DIR.rglob("*.yaml")) - set(AUGMENTATION.iterdir()))


def written(folder: Path, text: str, name: str = "space.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_stage_has_a_file_every_file_a_stage_and_stages_that_begin_alike_share_it() -> None:
    by_chain: dict[str, set[Path]] = {}
    for stage in STAGES:
        schedule = SCHEDULES[stage.schedule]
        files = by_chain.setdefault(str(schedule.trains(stage.number)), set())
        files.add(default_space(schedule, stage.number))
    assert sorted(set.union(*by_chain.values())) == FILES
    assert all(len(files) == 1 for files in by_chain.values())


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: f"{s.schedule}-{s.number}")
@pytest.mark.parametrize("preset", preset_names())
def test_a_shipped_space_holds_the_defaults_of_every_preset(preset: str, stage: Stage) -> None:
    settings = load_settings({"preset": preset, "schedule": stage.schedule})
    space = read_space(default_space(SCHEDULES[stage.schedule], stage.number))
    training = settings.training(stage.number)
    assert "lr" in space.dimensions
    values = training.model_dump()
    assert [key for key, d in space.dimensions.items() if not d.holds(values[key])] == []
    assert space.holds(values)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_space_of_augmentations_offers_more_of_them_than_that_of_the_stage(
    number: int,
) -> None:
    space = read_space(AUGMENTATION / f"stage{number}.yaml")
    usual = read_space(default_space(SCHEDULES["three_stage"], number))
    offered, known = space.dimensions["augment"], usual.dimensions["augment"]
    assert isinstance(offered, Choices)
    assert isinstance(known, Choices)
    assert {"light+mixup", "light+erasing", "light+trivialaugment"} <= set(offered.values)
    assert set(known.values) == {"none", "light", "strong"}  # others would orphan finished studies
    assert space.dimensions["lr"] == usual.dimensions["lr"]


def test_values_are_read_as_the_settings_own_types(tmp_path: Path) -> None:
    text = """
        lr: {low: 1e-4, high: 1, log: true}  # YAML reads 1e-4 as text, 1 as an integer
        epochs: {low: 5.0, high: "20", step: 5.0}
        l2_sp: [0, 1e-3]
        norm: [keep]
    """
    dimensions = read_space(written(tmp_path, text)).dimensions
    expected = {
        "lr": Range(low=1e-4, high=1.0, log=True),
        "epochs": Range(low=5, high=20, step=5),
        "l2_sp": Choices((0.0, 1e-3)),
        "norm": Choices(("keep",)),
    }
    assert repr(dimensions) == repr(expected)  # 5 is no 5.0


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Range(low=5, high=20, step=5), [5, 10, 20], [4, 6, 19, 21, 25, "10"]),
        (
            Range(low=0.0, high=0.3, step=0.1),
            [0.0, 0.1, 0.2, 0.30000000000000004 - 1e-16],
            [0.15, 0.31, -0.1],
        ),
        (Range(low=1e-4, high=1e-2, log=True), [1e-4, 3e-4, 1e-2], [9e-5, 2e-2, float("nan")]),
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
    space = SearchSpace("", {"lr": Range(low=0.1, high=1.0), "norm": Choices(("keep",))})
    assert space.holds(TrainSettings(lr=0.5, norm="keep").model_dump())
    assert not space.holds(TrainSettings(lr=0.5, norm="adapt").model_dump())
    assert not space.holds(TrainSettings(lr=2.0, norm="keep").model_dump())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lrr: [1.0]", r"unknown training setting lrr: did you mean lr\?"),
        ("zzzz: [1.0]", "unknown training setting zzzz: a space may hold epochs, batch_size"),
        ("1: [1.0]", "unknown training setting 1"),
        ("lr: {low: 0.1, high: 0.01}", r"low must be below high, got low 0\.1 and high 0\.01"),
        ("lr: {high: 0.1}", r"range with low, high .* got \{'high': 0\.1\}"),
        ("lr: {low: 0.1, high: 1.0, hihg: 1.0}", "range with low, high .*hihg"),
        ("l2_sp: {low: 0.0, high: 1.0, log: true}", "true with low > 0 and no step"),
        ("epochs: {low: 5, high: 20, step: 5, log: true}", "true with low > 0 and no step"),
        ("lr: {low: 0.1, high: 1.0, log: 1}", "log is true or false"),
        *(
            (f"epochs: {{low: 5, high: 20, step: {step}}}", "do not lead from 5 to 20")
            for step in ("4", "30", "0", "-5", "2.5", "null", "true", ".nan", ".inf")
        ),
        ("warmup: {low: 0.0, high: 0.5, step: 0.3}", r"steps of 0\.3 do not lead from 0\.0 to"),
        ("warmup: {low: 0.0, high: 0.5, step: .inf}", "steps of inf do not lead"),
        ("lr: []", "one or more different values"),
        ("norm: [keep, keep]", r"different values, got \['keep', 'keep'\]"),
        ("l2_sp: [0, 0.0]", "different values"),
        ("norm: {low: 1, high: 2}", "norm must be a list of adapt, keep, got {'low': 1"),
        ("norm: keep", "norm must be a list of adapt, keep, got 'keep'"),
        ("augment: [light, flips]", "augment must be words joined by .*, got 'flips'"),
        ("augment: [light+cutmx]", r"got 'light\+cutmx': did you mean light\+cutmix\?"),
        ("augment: [light+mixup, mixup + light]", "different values"),
        ("augment: {low: none, high: strong}", "augment must be a list of its values, got {'low'"),
        ("augment: light", "augment must be a list of its values, got 'light'"),
        ("augment: [off]", "augment must be .* got 'off'"),
        ("lr: 0.1", r"lr must be a list, or a range .* got 0\.1"),
        ("lr:", "lr must be a list, or a range .* got None"),
        ("lr: {low: 0.0, high: 0.1}", r"lr must be greater than 0, got 0\.0"),
        ("epochs: [2.5]", r"epochs must be a whole number, got 2\.5"),
        ("lr: [[0.1]]", r"lr must be a number, got \[0\.1\]"),
        ("lr: [true]", "lr must be a number, got 'true'"),
        ("epochs: {low: yes, high: 9}", "epochs must be a whole number, got 'yes'"),
        ("lr: [.nan]", "lr must be .* got nan"),
        ("clip_norm: {low: 0.0, high: .inf}", "clip_norm must be a finite number, got inf"),
    ],
)
def test_a_fault_is_one_line_with_file_and_line_number(
    tmp_path: Path, line: str, message: str
) -> None:
    path = written(tmp_path, f"# mine\noptimizer: [sgd]\n{line}\n")
    with pytest.raises(SettingsError, match=rf"space\.yaml:3: .*{message}") as caught:
        read_space(path)
    assert len(str(caught.value).splitlines()) == 1


def test_several_faults_are_all_listed_in_their_order(tmp_path: Path) -> None:
    text = "lr: [0.1]\nlrr: [1]\n\nepochs:\n  low: 9\n  high: 3\nnorm: [odd]\n"
    with pytest.raises(SettingsError, match="lrr") as caught:
        read_space(written(tmp_path, text))
    places = [line.split(": ")[0].rpartition(":")[2] for line in str(caught.value).splitlines()]
    assert places == ["2", "4", "7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing\n", "holds no ranges: write lines like"),
        ("- lr\n", "holds a list"),
        ("lr", "holds a str"),
        ("norm: [keep]\nlr: {low: 1\n", "line 3 is not valid YAML"),
        ("norm: [keep]\nlr: !odd 1\n", r"line 2 is not valid YAML \(could not determine"),
        ("? [lr]\n: 1\n", "line 1 is not valid YAML"),
        ("norm: [keep]\n---\nlr: [1]\n", "another document"),
        ("norm: \0", "unacceptable character #x0000"),
        ("norm: [keep]\nlr: [1]\nnorm: [adapt]\n", "line 3 .*norm stands here twice: keep one"),
        ("lr: {low: 0.1, low: 0.2, high: 1.0}", "line 1 .*low stands here twice"),
        (b"lr: \xff\xfe", "can't decode byte 0xff"),
        ("folder", "Is a directory"),
        (None, "No such file"),
    ],
)
def test_what_is_no_file_of_ranges_is_refused_in_one_line(
    tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / "space.yaml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=rf"^space={path}.*{message}") as caught:
        read_space(path)
    assert len(str(caught.value).splitlines()) == 1


LR, BOTH = "lr: [0.1, 0.2]\n", "lr: [0.1, 0.2]\nnorm: [keep, adapt]\n"


def planned(options: Mapping[str, str], config: str | None = None) -> dict[int, list[str]]:
    """Which settings of which stage a command would tune."""
    plan = tune_plan(request_of("tune", options, config))
    return {number: list(space.dimensions) for number, space in plan.spaces.items()}


def test_without_a_space_each_stage_has_the_one_that_ships() -> None:
    plan = tune_plan(request_of("tune", {"schedule": "lp_ft"}))
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


def test_a_folder_gives_each_stage_its_file_and_a_setting_fixed_for_all_leaves_every_space(
    tmp_path: Path,
) -> None:
    written(tmp_path, LR, "stage1.yaml")
    written(tmp_path, BOTH, "stage2.yaml")
    options = {"schedule": "two_stage", "space": str(tmp_path)}
    assert planned(options) == {1: ["lr"], 2: ["lr", "norm"]}
    assert planned({**options, "stage": "2"}) == {2: ["lr", "norm"]}
    written(tmp_path, BOTH, "stage1.yaml")
    assert planned({**options, "lr": "0.5"}) == {1: ["norm"], 2: ["norm"]}
    assert planned({**options, "stage1.lr": "0.5"}) == {1: ["norm"], 2: ["lr", "norm"]}
    one_file = {"schedule": "full", "space": str(tmp_path / "stage1.yaml")}
    assert planned(one_file) == {1: ["lr", "norm"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "{file}"}, r"space\.yaml is one file for 3 stages: pass -P stage="),
        ({"space": "{folder}"}, r"stage2\.yaml: cannot read .*No such file"),
        ({"space": "{folder}/nowhere"}, "nowhere: cannot read .*No such file"),
        ({"space": "{file}", "stage": "2", "lr": "1", "norm": "keep"},
         r"stage 2: every setting of .*space\.yaml is fixed by hand \(lr, norm\): leave one"),
        ({"stage": "4"}, r"schedule three_stage has 3 stages, got stage 4"),
        ({"stage": "first"}, r"stage must be all, or the number of a stage, got 'first'"),
        ({"n_trials": "0"}, r"n_trials must be greater than or equal to 1, got '0'"),
        ({"objective": "val_los"}, r"got 'val_los' \(command line\): did you mean val_loss\?"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    path = written(tmp_path, BOTH)
    folder = written(tmp_path / "folder", LR, "stage1.yaml").parent
    filled = {key: value.format(file=path, folder=folder) for key, value in options.items()}
    with pytest.raises(SettingsError, match=message):
        tune_plan(request_of("tune", filled))
