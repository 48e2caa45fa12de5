"""Settings: layers, the stages a plain key speaks of, and faults shown all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.errors import SettingsError
from pipeline.settings.cluster import ClusterSettings
from pipeline.settings.entry import (
    OF_ENTRY_POINTS,
    CompareSettings,
    DecideSettings,
    TuneSettings,
)
from pipeline.settings.layers import (
    Layer,
    flatten,
    preset_layer,
    preset_names,
    resolve,
    split_stage_key,
)
from pipeline.settings.request import Request
from pipeline.settings.run import DEFAULT_PRESET, RUN_KEYS, plain_values
from pipeline.system.disk.yaml_file import read_yaml
from tests.helpers import load_settings, request_of


def test_the_default_preset_needs_no_download() -> None:
    settings = load_settings({})
    assert settings.preset == DEFAULT_PRESET == "digits"
    assert (settings.data, settings.weights) == ("digits", "tiny_imagenet")
    assert load_settings({"image_size": "0"}).image_size == settings.image_size == 64


def test_images_of_ones_own_do_not_get_the_recipe_for_digits() -> None:
    settings = load_settings({"data": "/some/photos"})
    assert settings.preset == "images"
    assert settings.training(1).augment == "light"
    assert settings.image_size == 224


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_speaks_of_no_stage_by_number_as_schedules_have_other_stages(preset: str) -> None:
    assert not [key for key in flatten(preset_layer(preset).values) if split_stage_key(key)[0]]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("three_stage", [3e-3, 3e-4, 3e-4]),
        ("two_stage", [3e-4, 3e-4]),
        ("full", [3e-4]),
        ("lp_ft", [3e-3, 3e-4]),
        ("stage1_continued", [3e-3, 3e-3]),
        ("stage2_continued", [3e-3, 3e-4, 3e-4]),
        ("mine(head; continued; head+1)", [3e-3, 3e-3, 3e-4]),
        ("mine(head; head+1; head+1+2; all)", [3e-3, 3e-4, 3e-4, 3e-4]),
    ],
)
@pytest.mark.parametrize("preset", ["digits", "cifar10_small"])
def test_a_preset_s_rate_goes_by_what_a_stage_trains_in_whatever_schedule(
    preset: str, schedule: str, rates: list[float]
) -> None:
    options = {"preset": preset, "schedule": schedule}
    assert [one.lr for one in load_settings(options).stages] == rates
    by_hand = load_settings({**options, "stage1.lr": "0.5"})
    assert [one.lr for one in by_hand.stages] == [0.5, *rates[1:]]


def test_a_preset_s_rate_is_lower_for_networks_without_batch_norm_as_the_usual_rates_are() -> None:
    options = {"preset": "digits", "backbone": "convnext_tiny", "weights": "none"}
    assert [one.lr for one in load_settings(options).stages] == pytest.approx([3e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("options", "norms"),
    [
        ({"backbone": "resnet18"}, ["adapt", "adapt", "adapt"]),
        ({"backbone": "mobilenet_v2"}, ["adapt", "keep", "adapt"]),
        ({"backbone": "mnasnet0_5"}, ["adapt", "keep", "adapt"]),
        ({"backbone": "convnext_tiny"}, ["adapt", "adapt", "adapt"]),  # no BatchNorm
        ({"backbone": "mobilenet_v2", "weights": "none"}, ["adapt", "adapt", "adapt"]),
        ({"backbone": "mobilenet_v2", "schedule": "lp_ft"}, ["adapt", "adapt"]),
        ({"backbone": "mobilenet_v2", "schedule": "two_stage"}, ["adapt", "adapt"]),
        ({"backbone": "mobilenet_v2", "norm": "adapt"}, ["adapt", "adapt", "adapt"]),
        ({"backbone": "mobilenet_v2", "preset": "digits"}, ["adapt", "adapt", "adapt"]),
        ({"backbone": "mobilenet_v2", "stage3.norm": "keep"}, ["adapt", "keep", "keep"]),
    ],
)
def test_where_statistics_are_kept_goes_by_preset_network_and_what_a_stage_trains(
    options: dict[str, str], norms: list[str]
) -> None:
    given = {"preset": "cifar10", "weights": "imagenet", **options}
    assert [one.norm for one in load_settings(given).stages] == norms


def test_rates_by_what_a_stage_trains_are_for_presets_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: {for pretrained blocks: 1e-3}\n")
    with pytest.raises(SettingsError, match=r"unknown setting lr\.for pretrained blocks"):
        load_settings({}, config=str(path))


def test_a_plain_training_setting_applies_to_the_target_stage_or_to_every_stage() -> None:
    usual = [t.epochs for t in load_settings({}).stages]
    assert [t.epochs for t in load_settings({"epochs": "17"}, target=3).stages] == [*usual[:2], 17]
    assert [t.epochs for t in load_settings({"epochs": "17"}).stages] == [17, 17, 17]


def test_a_named_stage_wins_over_a_plain_setting_of_the_same_layer() -> None:
    settings = load_settings({"stage1.lr": "0.5", "lr": "0.1"})
    assert [t.lr for t in settings.stages] == [0.5, 0.1, 0.1]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\nlr: 0.2\nstage2:\n  lr: 0.4\npreset: cifar10_small\n")
    settings = load_settings({"lr": "0.9"}, config=str(path), target=3)
    assert settings.preset == "cifar10_small"
    assert settings.training(3).epochs == 3
    assert settings.training(3).lr == 0.9
    assert settings.training(2).lr == 0.4


def test_what_a_parent_hands_down_is_stronger_than_the_preset_and_weaker_than_the_user() -> None:
    inherited = plain_values(load_settings({"draw": "3", "image_size": "48"}), [1])
    settings = load_settings({"seed": "5"}, target=2, inherited=inherited)
    assert (settings.draw, settings.image_size, settings.seed) == (3, 48, 5)


def test_yaml_and_text_values_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1e-3\ncache: off\nseed: 4\nweights: none\n")
    from_file = load_settings({}, config=str(path))
    typed = load_settings({"lr": "1e-3", "cache": "off", "seed": "4", "weights": "none"})
    assert from_file == typed
    assert typed.cache is False


def test_a_word_of_a_file_is_a_word_also_where_older_yaml_has_truth_values(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("register_as: yes\nlabel_column: no\nreuse: no\ncache: yes\nrefit: false\n")
    request = request_of("decide", {}, path)
    decide, settings = request.own_settings(DecideSettings), request.settings()
    assert (decide.register_as, decide.refit) == ("yes", "off")
    assert (settings.label_column, settings.reuse, settings.cache) == ("no", False, True)


def test_off_in_a_file_is_what_off_is_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("refit: off\nregister_as: off\nnear_duplicates: off\nlog_model: off\n")
    request = request_of("decide", {}, path)
    decide = request.own_settings(DecideSettings)
    assert (decide.refit, decide.register_as) == ("off", "off")
    settings = request.settings()
    assert (settings.near_duplicates, settings.log_model) == (0, False)


@pytest.mark.parametrize(
    "written", ["control.lr: 1e-4\ncontrol.norm: keep\n", "control:\n  lr: 1e-4\n  norm: keep\n"]
)
def test_settings_of_the_control_stand_in_a_file_too(tmp_path: Path, written: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(written)
    request = request_of("decide", {"control.lr": "2e-4"}, path)
    assert request.control == {"lr": "2e-4", "norm": "keep"}
    assert request.own_settings(DecideSettings).control == ""
    elsewhere = request_of("main", {}, path)
    assert (elsewhere.control, elsewhere.of_others) == ({}, ("control.lr", "control.norm"))
    path.write_text("control.rate: 1\n")
    with pytest.raises(SettingsError, match=r"^unknown setting control.rate"):
        request_of("decide", {}, path).settings()


def test_a_file_holds_the_entry_points_own_settings_too_and_typed_ones_are_stronger(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1e-3\nlooks: 5,10\nrope_pp: 1\nn_trials: 3\nworkers: 2\n")
    request = request_of("decide", {"rope_pp": "2"}, path)
    decide = request.own_settings(DecideSettings)
    assert (decide.looks, decide.rope_pp, decide.design.looks) == ("5,10", 2, (5, 10))
    assert request.own_settings(TuneSettings).n_trials == 3
    assert request.own_settings(ClusterSettings).workers == 2
    assert request.settings().training(1).lr == 1e-3
    assert request_of("decide", request.typed).own_settings(DecideSettings) == decide
    for entry_point in ("main", "tune"):  # a command that another command proposes has the file
        elsewhere = request_of(entry_point, {}, path)
        assert elsewhere.settings() == request.settings()
        (line,) = ENTRY_POINTS[entry_point].idle(elsewhere, [elsewhere.settings()])
        assert "looks, rope_pp" in line
        assert ("n_trials" in line) == (entry_point == "main")
    path.write_text("n_trial: 3\n")
    with pytest.raises(SettingsError, match=r"unknown setting n_trial \(.*did you mean n_trials"):
        request_of("main", {}, path).settings()
    path.write_text("looks: [5, 10]\nschedules: [full, two_stage]\n")
    assert request_of("decide", {}, path).own_settings(DecideSettings).looks == "5,10"
    compared = request_of("compare", {}, path).own_settings(CompareSettings)
    assert compared.schedules == "full,two_stage"
    path.write_text("looks: often\n")
    with pytest.raises(SettingsError, match=rf"looks .*got 'often' \(config {path}\)"):
        request_of("decide", {}, path).own_settings(DecideSettings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lrr": "1"}, r"unknown setting lrr \(command line\): did you mean lr\?"),
        ({"stage1.epoch": "1"}, r"did you mean stage1\.epochs\?"),
        ({"stage9.lr": "1"}, r"stage9\.lr \(command line\): schedule three_stage has 3 stages"),
        (
            {"backbone": "resnet19"},
            r"not known \(did you mean resnet18 .* got 'resnet19' \(command line\)",
        ),
        ({"epochs": "0"}, r"^epochs must be greater than or equal to 1, got '0'"),
        ({"stage2.epochs": "x"}, r"stage2\.epochs must be a whole number, got 'x'"),
        ({"lr": "nan"}, r"lr must be a finite number"),
        (
            {"lr": "fast"},
            r"^lr must be a number, got 'fast' \(command line\): give a number above 0",
        ),
        (
            {"epochs": "2.5"},
            r"^epochs must be a whole number, got '2.5' .*: give a whole number of 1 or more",
        ),
        ({"cache": "perhaps"}, r"^cache must be on or off, got 'perhaps' .*: give on or off"),
        ({"data": ""}, r"^data must not be empty, got '' .*: name one, or leave"),
        ({"image_size": "8"}, "image_size must be 0, or from 32 to 1024, got '8'"),
        ({"blocks": "some"}, "blocks must be auto, a number, .*got 'some'"),
        ({"mean": "1,2"}, "mean must be auto, or three numbers from 0 to 1.*, got '1,2'"),
        ({"std": "0.2,0,0.2"}, "std must be auto, or three numbers above 0.*, got '0.2,0,0.2'"),
        ({"preset": "cifar"}, r"unknown preset cifar: did you mean cifar10\? \(there are"),
        (
            {"augment": "ligth+erasing"},
            r"^augment must be .*line\): did you mean light\+erasing\?",
        ),
        ({"augment": "mixup+cutmix"}, r"^augment must hold at most one of mixup, cutmix, got"),
        (
            {"augment": "light+strong"},
            r"^augment must hold at most one of none, light, strong, got",
        ),
        ({"augment": "mixup+mixup"}, r"^augment must hold at most one of mixup, cutmix, got"),
        (
            {"augment": "strong++erasing"},
            r"^augment must be words joined by \+, out of none, light",
        ),
        ({"augment": ""}, r"^augment must be words joined by \+.* got ''"),
        *(
            (
                {"device": typed},
                rf"^device must be .*, got '{typed}' .*line\): write {name}, the name here$",
            )
            for typed, name in {
                "gpu": "cuda",
                "GPU:1": "cuda:1",
                "cuda0": "cuda:0",
                "m1": "mps",
                "Metal": "mps",
                "CPU": "cpu",
            }.items()
        ),
        ({"device": "cuad"}, r"^device .*: did you mean cuda\?"),
        ({"draw": "-1"}, r"draw must be greater than or equal to 0"),
        *(
            ({key: "~nobody-of-that-name/x"}, rf"^{key}=~nobody.*: write the path in full")
            for key in ("data", "cache_dir", "weights")
        ),
        ({"schedule": "~nobody-of-that-name/x.yaml"}, r"^~nobody.*: write the path in full"),
        ({"schedule": "head_only"}, "schedule head_only has 1 stage, got stage 2"),
        ({"schedule": "head_only", "stage3.lr": "1"}, r"stage3\.lr .*head_only has 1 stage"),
    ],
)
def test_a_fault_says_what_got_where_and_the_nearest_valid_name(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(options, target=2)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("none", "none"),
        ("light", "light"),
        ("erasing + light", "light+erasing"),
        ("mixup+erasing+trivialaugment+strong", "strong+trivialaugment+erasing+mixup"),
        ("none+cutmix", "cutmix"),
    ],
)
def test_one_augmentation_has_one_name(typed: str, kept: str) -> None:
    assert load_settings({"augment": typed}).training(1).augment == kept


def test_all_faults_are_shown_together_and_once() -> None:
    with pytest.raises(SettingsError, match="lrr") as caught:
        load_settings({"lrr": "1", "epochs": "x", "draw": "-1"})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: true\n", r"epochs must be a whole number, got 'true' \(config"),
        ("- 1\n", r"holds a list: write one"),
        ("a: [\n", r"line 2 is not valid YAML"),
        ("lr: 1\nlr: 2\n", "line 2 .*lr stands here twice"),
        ("stage1: 3\n", r"unknown setting stage1"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_settings({}, config=str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml \(No such file"):
        read_yaml(tmp_path / "nowhere.yaml", "config=nowhere.yaml")


def test_settings_round_trip_through_plain_values() -> None:
    settings = load_settings({"schedule": "lp_ft", "stage2.lr": "0.01", "views": "3"})
    assert resolve([Layer(source="test", values=plain_values(settings))]) == settings


def test_settings_of_the_named_stage_alone_are_told_with_those_of_the_stages_before_it() -> None:
    def note(target: int | None = 3, **options: str) -> str:
        request = Request.read(options).for_stage(target)
        return request.note_on_earlier_stages(request.settings())

    assert note(epochs="2") == (
        "epochs=2: for stage 3 alone. Earlier stages that have to be trained keep their own "
        "values (stage 1 has epochs 5; stage 2 has epochs 5): -P stage1.epochs= and the like set "
        "these"
    )
    assert "stage 1 has epochs 5, norm adapt; stage 2 has" in note(epochs="2", norm="keep")
    assert "stage 2 has epochs 5" in note(epochs="2", **{"stage1.epochs": "2"})
    assert note(epochs="5") == ""
    assert note(epochs="2", **{"stage1.epochs": "2", "stage2.epochs": "2"}) == ""
    assert note(1, epochs="2") == ""
    assert note(None, epochs="2") == ""


def test_every_entry_points_own_settings_are_known_to_files() -> None:
    own = {key for row in ENTRY_POINTS.values() for key in row.own_keys}
    assert own - OF_ENTRY_POINTS - {*RUN_KEYS} == set()
    assert own >= OF_ENTRY_POINTS
