"""`tuned=on`: which study a run takes its settings from, what it says, when it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml

from pipeline.cli import main
from pipeline.errors import StudyError
from pipeline.runs.session import Session
from pipeline.tracking import Tracking
from pipeline.tuning.reuse import with_tuned
from pipeline.tuning.storage.access import open_storage
from tests.conftest import MOBILENET, TINY, Command, enter_store, words_of, write_image_folder
from tests.helpers import load_settings
from tests.test_decide import inside
from tests.test_run_stage import artifact, runs
from tests.test_tuning import space_file, studies

pytestmark = pytest.mark.usefixtures("mobilenet")

SPACE = "lr: [1.0e-7]\nnorm: [keep]\n"
LOSS = {"objective": "val_loss", "margin": "0", "stage1.epochs": "4"}
"""The second trial beats the defaults: the first epoch's loss is low where nothing is learnt."""


@pytest.fixture
def space(store: Path) -> str:
    return space_file(store, SPACE)


def said_errors(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]


def test_a_tuned_stage_takes_the_best_settings_says_whose_and_reproduces_the_trial(
    command: Command, space: str, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        command("tune", stage="2", n_trials="2", space=space, objective="val_loss", margin="0")
        == 0
    )
    [study] = studies(store)
    assert study.best_trial.number == 1
    capfd.readouterr()
    assert command("stage2", tuned="on") == 0
    said = capfd.readouterr().out
    assert "stage 1: no finished study matches, its settings stay" in said
    assert (
        f"stage 2: tuned by study {study.study_name}, trial 1 "
        f"(val_loss {study.best_value:.4f}): lr 1e-07, norm keep"
    ) in said
    trial_run, run = runs().iloc[-2], runs().iloc[-1]
    assert "tags.z.is_trial" not in run.dropna()
    assert trial_run["tags.z.is_trial"] == "true"
    assert run["tags.z.tuned_by"] == study.study_name
    assert [run["params.lr"], run["params.norm"]] == ["1e-07", "keep"]
    assert run["metrics.selected/val_loss"] == study.best_value
    assert run["metrics.selected/val_acc"] == trial_run["metrics.selected/val_acc"]
    for tag in ("z.lineage_key", "z.checkpoint_sha256", "parent_run_id"):
        assert run[f"tags.{tag}"] == trial_run[f"tags.{tag}"], tag


@pytest.mark.parametrize("pair", [({}, {}), ({"stage": "2"}, {"stage1.epochs": "1"})])
def test_a_study_matches_runs_that_differ_in_draw_seed_or_what_it_tuned(
    command: Command,
    space: str,
    store: Path,
    image_folder: Path,
    pair: tuple[dict[str, str], dict[str, str]],
) -> None:
    tuned, own = pair
    number = int(tuned.get("stage", "1"))
    few = {**TINY, "train_per_class": "3", "val_per_class": "2", **own}
    assert command("tune", **{"stage": "1", **few, **tuned, "n_trials": "1", "space": space}) == 0
    few |= {"data": str(image_folder), "cache_dir": str(store / "cache")}
    tracking, url = Tracking.connect(), f"sqlite:///{store}/optuna.db"

    def taken(change: dict[str, str]) -> str:
        settings = load_settings({**few, **change})
        session = Session.open(settings, tracking, lambda _: None)
        return with_tuned(session, [number], {}, open_storage(url)).tuned_by[number]

    for change in (
        {},
        {"seed": "1"},
        {"draw": "1"},
        {"device": "cpu"},
        {f"stage{number}.lr": "0.2", f"stage{number}.norm": "keep"},
        {"stage3.lr": "0.1"},
    ):
        assert taken(change) == studies(store)[0].study_name, change
    for change in (
        {"image_size": "33"},
        {"norm_stats": "source"},
        {"val_per_class": "3"},
        {"test_per_class": "2"},
        {"data_seed": "1"},
        {"schedule": "two_stage"},
        {"backbone": "mobilenet_v2"},
        {f"stage{number}.epochs": "7"},
        {f"stage{number}.optimizer": "sgd"},
        *([{"stage1.epochs": "2"}, {"stage1.lr": "0.1"}] if number == 2 else []),
    ):
        with pytest.raises(
            StudyError, match=f"no finished study in .* matches stage {number} of "
        ):
            taken(change)


def test_of_studies_that_match_that_of_the_seed_is_taken_or_the_one_with_most_trials(
    command: Command, space: str, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed, trials in (("0", "1"), ("1", "3"), ("2", "2")):
        assert command("tune", stage="1", n_trials=trials, space=space, seed=seed) == 0
    by_size = sorted(studies(store), key=lambda study: len(study.trials))
    for seed, study, why in (
        ("0", by_size[0], "this one has the same seed"),
        ("2", by_size[1], "this one has the same seed"),
        ("7", by_size[2], "this one has most trials"),
    ):
        capfd.readouterr()
        assert command("stage1", tuned="on", seed=seed) == 0
        [line] = [x for x in capfd.readouterr().out.splitlines() if "tuned by study" in x]
        assert line.startswith(f"stage 1: tuned by study {study.study_name},")
        assert line.endswith(f" would match, too: {why}")
        assert all(other.study_name in line for other in by_size)


def test_without_a_storage_file_nothing_is_created(
    command: Command, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage2", tuned="on") == 2
    [line] = said_errors(capfd)
    assert f"storage=sqlite:///{store}/optuna.db: there is no such file: run" in line
    assert not (store / "optuna.db").exists()
    assert len(runs()) == 0


@pytest.mark.parametrize("word", ["2", "studies"])
def test_tuned_is_on_or_off(
    command: Command, capfd: pytest.CaptureFixture[str], word: str
) -> None:
    assert command("stage1", tuned=word) == 2
    [line] = said_errors(capfd)
    assert "tuned must be on or off" in line
    assert f"got '{word}' (command line)" in line


def test_main_takes_every_stages_study_but_no_trials_run_as_its_result(
    command: Command, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = store / "spaces"
    folder.mkdir()
    space_file(folder, SPACE, "stage1.yaml")
    space_file(folder, "norm: [keep]\n", "stage2.yaml")
    options = {"schedule": "lp_ft", "stage1.epochs": "4"}
    assert (
        command(
            "tune", **options, space=str(folder), n_trials="2", objective="val_loss", margin="0"
        )
        == 0
    )
    first, second = studies(store)
    trials = runs()
    assert list(trials["tags.stage"]) == ["1", "1", "2", "2"]
    # a stage that is asked for by itself may start from a trial's run
    capfd.readouterr()
    assert command("stage2", **options, tuned="on", log_pictures="on") == 0
    run = runs().iloc[-1]
    assert len(runs()) == 5
    assert run["tags.parent_run_id"] == trials["run_id"][1]
    assert run["metrics.selected/val_loss"] == second.best_value
    # a chain is made of runs with pictures, which a trial's is given without training it again
    assert not artifact(trials["run_id"][1], "figures/learning_curves.png").exists()
    assert command("main", **options, tuned="on", log_pictures="on") == 0
    said = capfd.readouterr().out
    assert said.count(f"stage 1: tuned by study {first.study_name}, trial 1") == 2
    assert said.count(f"stage 2: tuned by study {second.study_name}, trial") == 2
    chain = runs("chain").iloc[0]
    assert len(runs()) == 5
    assert chain["tags.stage1_run_id"] == trials["run_id"][1]
    assert chain["tags.stage2_run_id"] == run["run_id"]
    assert (chain["params.stage1.lr"], chain["params.stage1.norm"]) == ("1e-07", "keep")
    assert artifact(trials["run_id"][1], "figures/learning_curves.png").exists()


@dataclass
class Home:
    """A store in which stage 1 was tuned: two trials, the second beats the defaults."""

    folder: Path
    options: dict[str, str]

    def run(self, entry_point: str, **options: str) -> int:
        return main(words_of(entry_point, {**self.options, **options}))

    def tune(self, **options: str) -> int:
        own = {"stage": "1", "n_trials": "2", "space": f"{self.folder}/space.yaml"}
        return self.run("tune", **{**own, **LOSS, **options})

    @property
    def study(self) -> optuna.Study:
        return next(one for one in studies(self.folder) if one.study_name.startswith("stage1-"))


@pytest.fixture(scope="module")
def home_once(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    base = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        folder = enter_store(base / "work", empty_database, patch)
        space_file(folder, SPACE)
        places = {"data": str(write_image_folder(base / "images")), "cache_dir": f"{folder}/cache"}
        made = Home(folder, {**TINY, **places, "stage1.epochs": "4"})
        assert made.tune() == 0
        return made


@pytest.fixture
def home(home_once: Home) -> Iterator[Home]:
    with inside(home_once.folder):
        yield home_once


def test_the_lead_is_the_paired_difference_over_the_validation_images(home: Home) -> None:
    first, second = (
        pd.read_csv(artifact(run_id, "evaluation/val_predictions.csv"))
        for run_id in runs()["run_id"][:2]
    )
    assert list(first["image_sha256"]) == list(second["image_sha256"])
    difference = first["nll"] - second["nll"]
    mean, error = difference.mean(), difference.std(ddof=1) / len(difference) ** 0.5
    found = re.search(r"by ([-\d.]+) \(s\.e\. ([\d.]+)\)", home.study.user_attrs["choice"])
    assert found
    assert [float(word) for word in found.groups()] == pytest.approx([mean, error], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "file", "taken"),
    [
        ({"tuned": "on", "lr": "0.02"}, "", ["0.02", "keep"]),
        ({"tuned": "on"}, "stage1: {norm: adapt}\n", ["1e-07", "adapt"]),
        ({"tuned": "off"}, "", ["0.003", "adapt"]),
    ],
)
def test_what_a_person_sets_wins_and_without_tuned_nothing_is_taken(
    home: Home, words: dict[str, str], file: str, taken: list[str]
) -> None:
    config = {"config": space_file(home.folder, file, "config.yaml")} if file else {}
    assert home.run("stage1", **words, **config) == 0
    last = runs().iloc[-1]
    assert [last["params.lr"], last["params.norm"]] == taken
    assert ("tags.z.tuned_by" in last.dropna()) == (words["tuned"] == "on")


def test_the_best_settings_can_be_used_as_a_file(home: Home) -> None:
    best = artifact(runs("study")["run_id"][0], "best.yaml")
    # all that the study held fixed stands in it, too
    values = yaml.safe_load(best.read_text())
    assert [values["stage1.epochs"], values["stage1.lr"]] == [4, 1e-07]
    assert home.run("stage1", config=str(best)) == 0
    trial_run, run = runs().iloc[1], runs().iloc[-1]
    assert run["params.lr"] == "1e-07"
    for tag in ("tags.z.lineage_key", "tags.z.checkpoint_sha256"):
        assert run[tag] == trial_run[tag]


@pytest.mark.parametrize("earlier", [False, True])
def test_no_study_is_one_line_that_says_how_to_get_one(
    home: Home, capfd: pytest.CaptureFixture[str], earlier: bool
) -> None:
    """A study of before there were columns does not name them: they are no difference."""
    fixed, trained = home.study.user_attrs["fixed"], len(runs())
    columns = ("label_column", "image_column", "skip_unreadable") if earlier else ()
    named = {key: value for key, value in fixed.items() if key not in columns}
    home.study.set_user_attr("fixed", named)
    assert home.run("stage1", tuned="on", image_size="33") == 2
    home.study.set_user_attr("fixed", fixed)
    [line] = said_errors(capfd)
    assert "tuned=true: no finished study in storage=sqlite:///" in line
    assert f"matches stage 1 of three_stage with {MOBILENET} on " in line
    assert "has image_size=32 (here 33)): run `mlflow run . -e tune --env-manager local`" in line
    assert len(runs()) == trained


def test_a_lead_within_noise_leaves_the_defaults_and_another_choice_is_announced(
    home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (home.study.best_trial.number, home.study.user_attrs["chosen"]) == (1, 1)
    assert home.tune(margin="100") == 0
    told = capfd.readouterr().out
    assert "less than the 100 s.e. that luck explains: the defaults stay" in told
    assert "note: from now on tuned=true takes trial 0 of study stage1-" in told
    assert "(margin=100); until now it took trial 1" in told
    assert home.study.user_attrs["chosen"] == 0
    assert home.run("stage1", tuned="on") == 0
    assert runs().iloc[-1]["metrics.selected/val_loss"] == home.study.trials[0].value
    assert "the defaults stay" in capfd.readouterr().out
    assert home.tune() == 0
    assert home.study.user_attrs["chosen"] == 1


def test_a_choice_stays_where_the_runs_that_told_were_removed(
    home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    assert home.tune(margin="100") == 0
    choice = home.study.user_attrs["choice"]
    assert main(["clean", "-P", "remove=trials", "-P", f"cache_dir={home.folder}"]) == 0
    capfd.readouterr()
    assert home.tune(margin="100") == 0
    assert (home.study.user_attrs["chosen"], home.study.user_attrs["choice"]) == (0, choice)
    assert "from now on" not in capfd.readouterr().out
    more = str(home.study.user_attrs["finished"] + 1)
    assert home.tune(margin="100", n_trials=more) == 0  # the scores of the defaults stay lost
    assert home.study.user_attrs["chosen"] == home.study.best_trial.number
    assert "without a margin" in home.study.user_attrs["choice"]
    assert "from now on tuned=true takes trial" in capfd.readouterr().out


def test_a_later_study_is_found_from_the_settings_that_it_was_made_from(
    home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stage 2 was tuned from stage 1 as it is, although a better one had been found."""
    assert home.tune(stage="2", n_trials="1") == 0
    name = studies(home.folder)[-1].study_name
    assert name.startswith("stage2-")
    for stage in ("2", "1"):
        capfd.readouterr()
        assert home.run(f"stage{stage}", tuned="on") == 0
        told = capfd.readouterr().out
        assert f"stage {stage}: tuned by study {name if stage == '2' else 'stage1-'}" in told


def test_an_unfinished_study_is_not_used(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    finished = home.study.user_attrs["finished"]
    home.study.set_user_attr("finished", 0)
    assert home.run("stage1", tuned="on") == 2
    home.study.set_user_attr("finished", finished)
    [line] = said_errors(capfd)
    assert f"tuned=true: study {home.study.study_name} in storage=sqlite:///" in line
    assert "matches stage 1, but is not finished: go on with the `tune` command" in line
