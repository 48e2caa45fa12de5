"""Data sets go by content end to end: recipes, siblings, studies, moved images, copies."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.cli import main
from pipeline.data.images import digest_image
from pipeline.model.backbones import build_backbone
from pipeline.model.often import BLOCKS
from pipeline.runs.lineage import _before as before_of
from pipeline.runs.lineage import settings_of
from pipeline.runs.session import Session
from pipeline.settings.schedules import SCHEDULES, Stage, schedule_of
from pipeline.settings.search_space import SearchSpace
from pipeline.settings.thresholds import Thresholds
from pipeline.signals.evidence import instability_now
from pipeline.system.disk.digests import digest_values
from pipeline.tracking import Tracking
from pipeline.tracking.keys import POOL, stored_tag
from pipeline.tuning.spec import Spec
from pipeline.tuning.storage.access import Storage
from tests.conftest import SMALL_NET, TINY, Command, words_of, write_image_folder
from tests.helpers import fill, load_settings
from tests.test_gate import planted
from tests.test_run_stage import artifact, runs
from tests.test_tuning import space_file, studies

FEW = {"train_per_class": "2", "val_per_class": "2"}
"""Three draws of the image folder, or two with two test images a class."""
SPEC = Spec(
    name="new",
    stage=Stage("mine", 1, ("head",)),
    draws=(0,),
    objective="val_acc",
    space=SearchSpace(source="", dimensions={}),
    tuning_key="",
    fixed={},
    defaults={},
)
TEST = {**FEW, "test_per_class": "2"}


@pytest.fixture
def command(command: Command, store: Path) -> Command:
    """As everywhere, except that `evaluate` and `gate` take few options."""

    def run(entry_point: str, **options: str) -> int:
        if entry_point in ("evaluate", "gate"):
            return main(words_of(entry_point, {"cache_dir": str(store / "cache"), **options}))
        return command(entry_point, **options)

    return run


@pytest.fixture
def ann(tmp_path: Path) -> str:
    return str(write_image_folder(tmp_path / "ann" / "images"))


@pytest.fixture
def bob(tmp_path: Path) -> str:
    return str(write_image_folder(tmp_path / "bob" / "images", start=500))


def moved(path: str, name: str = "moved") -> str:
    """The same images at another place, under another name."""
    new = Path(path).parent / name
    Path(path).rename(new)
    return str(new)


def errors(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]


def of_stage(number: int) -> pd.DataFrame:
    found = runs()
    return found[found["tags.stage"] == str(number)].reset_index(drop=True)


# --- recipes, siblings, gate ---------------------------------------------------------------------


def test_two_folders_of_one_name_are_two_data_sets_and_a_moved_one_is_the_same(
    command: Command, ann: str, bob: str
) -> None:
    for draw in ("0", "1"):
        assert command("stage2", data=ann, draw=draw, **FEW) == 0
    assert command("stage2", data=moved(ann), draw="2", **FEW) == 0
    assert command("stage2", data=bob, draw="1", **FEW) == 0
    second = of_stage(2)
    assert list(second["tags.z.data"]) == ["images", "images", "moved", "images"]
    for key in ("recipe_key", POOL):
        assert [
            len(set(second[f"tags.{stored_tag(key)}"][:3])),
            len(set(second[f"tags.{stored_tag(key)}"])),
        ] == [1, 2]
    evidence = [json.loads(artifact(i, "evidence.json").read_text()) for i in second["run_id"]]
    assert evidence[2]["inputs"]["siblings"] == sorted(second["run_id"][:3])
    assert evidence[3]["inputs"]["siblings"] == [second["run_id"][3]]
    assert command("gate", run_id=second["run_id"][2]) == 0
    assert "of 3 draws" in artifact(second["run_id"][2], "gate/report.md").read_text()
    assert list(of_stage(2)["tags.gate.prior"].notna()) == [True, True, True, False]


def test_seeds_that_share_a_parent_say_nothing_about_stability(store: Path) -> None:
    tracking = Tracking.connect()
    for seed in (0, 1, 2):
        planted(tracking, 0, seed, parent_checkpoint_sha256="one")
    signal = instability_now(tracking, "one", Thresholds())
    assert signal.state == "unknown"
    assert "with a parent each, are needed; so far: 3 runs of 1 parent" in signal.sentence


def test_a_schedule_that_comes_to_a_stage_by_other_blocks_is_another_recipe(
    command: Command, ann: str
) -> None:
    ways = ("three_stage", "mine(head; head+1)", "mine(head+1; continued; continued)")
    rates = {"stage1.lr": "1e-3", "stage2.lr": "1e-3"}
    for way, draw in zip((*ways, ways[2]), "0101", strict=True):
        assert command("stage2", data=ann, draw=draw, schedule=way, **FEW, **rates) == 0
    usual, same, *others = of_stage(2)["tags.z.recipe_key"]
    assert usual == same
    assert set(others) == {others[0]} != {usual}
    # runs of an earlier version had the usual one: a new command gives them their place
    run_id = of_stage(2)["run_id"][2]
    mlflow.MlflowClient().set_tag(run_id, stored_tag("recipe_key"), usual)
    own = {"stage2.epochs": "2", "schedule": ways[2], **FEW, **rates}
    assert command("stage3", data=ann, draw="0", **own) == 0
    assert list(of_stage(2)["tags.z.recipe_key"]) == [usual, usual, *others]


def test_a_run_stays_of_its_data_set_where_another_deals_the_same_images(
    command: Command, ann: str
) -> None:
    assert command("stage1", data=ann, **FEW) == 0
    [run] = of_stage(1)["run_id"]
    client = mlflow.MlflowClient()
    client.set_tag(run, stored_tag(POOL), "before an image was added")
    tracking = Tracking.connect()
    before = tracking.get(run)
    session = Session.open(load_settings({}, inherited=settings_of(before)), tracking, print)
    former = session.recipe(1, former="before an image was added")
    client.set_tag(run, stored_tag("recipe_key"), former)
    assert command("stage2", data=ann, **FEW, **{"stage1.epochs": "1"}) == 0
    assert list(of_stage(1)["tags.z.recipe_key"]) == [former]


def test_a_study_of_another_schedule_under_a_former_name_is_not_gone_on_with(store: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    spec = replace(SPEC, fixed={"schedule": "mine(all)"}, former_names=("old",))
    for schedule, name in (("mine(head)", "new"), ("mine(all)", "old")):
        study = optuna.create_study(storage=storage, study_name="old", load_if_exists=True)
        study.set_user_attr("fixed", {"schedule": schedule})
        assert spec.as_known(cast("Storage", storage)).name == name


def test_blocks_of_earlier_stages_count_where_a_stages_own_do_not_tell_them() -> None:
    """On a network of three blocks two built-in schedules end with everything in stage 2."""
    few = ("head", "block1", "stem")
    ways = [before_of(schedule_of(name).on(few), 2) for name in ("two_stage", "lp_ft")]
    assert ways == [{"before": [("head", "block1")]}, {"before": [("head",)]}]
    assert not before_of(schedule_of("lp_ft").on((*BLOCKS,)), 2)


# --- runs and studies of an earlier version ------------------------------------------------------


def as_before(run_id: str) -> None:
    """Give a run the marks that an earlier version gave it: a recipe by the folder's name."""
    tracking = Tracking.connect()
    run = tracking.get(run_id)
    session = Session.open(load_settings({}, inherited=settings_of(run)), tracking, lambda _: None)
    client = mlflow.MlflowClient()
    former = session.recipe(int(run.tags["stage"]), former=run.tags["data"])
    client.set_tag(run_id, "recipe_key", former)
    client.delete_tag(run_id, stored_tag("recipe_key"))
    client.delete_tag(run_id, stored_tag(POOL))


def test_runs_of_an_earlier_version_are_found_and_join_the_others(
    command: Command, ann: str, bob: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for data, draw in ((ann, "0"), (ann, "1"), (bob, "2")):
        assert command("stage2", data=data, draw=draw, **FEW) == 0
    now = of_stage(2)
    for run_id in runs()["run_id"]:
        as_before(run_id)
    before = of_stage(2)
    assert len(set(before["tags.recipe_key"])) == 1  # the fault of that version
    # among themselves they are known by `data`
    assert command("gate", run_id=before["run_id"][0]) == 0
    assert list(of_stage(2)["tags.gate.prior"].notna()) == [True, True, False]
    # a new command finds them by content, and gives them their place
    capfd.readouterr()
    assert command("stage3", data=ann, draw="1", **FEW, **{"stage2.epochs": "2"}) == 0
    assert f"found run {before['run_id'][1]} with the same content" in capfd.readouterr().out
    assert of_stage(2)["tags.z.recipe_key"][1] == now["tags.z.recipe_key"][1]
    assert of_stage(2)[f"tags.{stored_tag(POOL)}"][1] == now[f"tags.{stored_tag(POOL)}"][1]
    # so does the gate where it is told where the images are
    run_id = before["run_id"][0]
    assert command("gate", run_id=run_id, data=moved(ann)) == 0
    assert of_stage(2)["tags.z.recipe_key"][0] == now["tags.z.recipe_key"][0]
    assert "of 2 draws" in artifact(run_id, "gate/report.md").read_text()
    assert of_stage(2)["tags.recipe_key"][2] == before["tags.recipe_key"][2]


def test_a_study_is_not_used_for_other_images_in_a_folder_of_its_name(
    command: Command, store: Path, ann: str, bob: str, capfd: pytest.CaptureFixture[str]
) -> None:
    space = space_file(store, "lr: [1.0e-7]\n")
    assert command("tune", data=ann, stage="1", n_trials="1", space=space, **FEW) == 0
    [study] = studies(store)
    assert command("stage1", data=bob, tuned="on", **FEW) == 2
    [error] = errors(capfd)
    assert "no finished study" in error
    assert f"data={ann} (here {bob})" in error
    # nor where other images have taken the place of those that it was tuned on
    kept = shutil.move(ann, f"{ann}-moved")
    shutil.copytree(bob, ann)
    assert command("stage1", data=ann, tuned="on", **FEW) == 2
    assert "other images, weights, views or precision" in errors(capfd)[0]
    assert command("stage1", data=kept, tuned="on", **FEW) == 0
    assert runs()["tags.z.tuned_by"].iloc[-1] == study.study_name


def test_a_study_of_an_earlier_version_is_used_and_gone_on_with(
    command: Command, store: Path, ann: str, bob: str, capfd: pytest.CaptureFixture[str]
) -> None:
    space = space_file(store, "lr: [1.0e-7]\n")
    words = {"data": ann, "stage": "1", "space": space, **FEW}
    assert command("tune", n_trials="1", **words) == 0
    [study] = studies(store)
    key = study.user_attrs["tuning_key"]
    storage = f"sqlite:///{store}/optuna.db"
    settings = load_settings({**TINY, **FEW, "data": ann, "cache_dir": str(store / "cache")})
    session = Session.open(settings, Tracking.connect(), lambda _: None)
    former = session.recipe(1, trained=0, former="images")
    # by the rules of that version: its name, and its key, hold the folder's name
    name = former_name(session, study, former)
    optuna.copy_study(
        from_study_name=study.study_name,
        from_storage=storage,
        to_storage=storage,
        to_study_name=name,
    )
    optuna.delete_study(study_name=study.study_name, storage=storage)
    optuna.load_study(study_name=name, storage=storage).set_user_attr("tuning_key", former)
    capfd.readouterr()
    assert command("stage1", data=ann, tuned="on", **FEW) == 0
    assert runs()["tags.z.tuned_by"].iloc[-1] == name
    assert command("stage1", data=bob, tuned="on", **FEW) == 2
    capfd.readouterr()
    assert command("tune", n_trials="2", **words) == 0
    assert f"study {name}: 1 of 2 trials so far" in capfd.readouterr().out
    [again] = studies(store)
    assert (again.study_name, len(again.trials)) == (name, 2)
    assert again.user_attrs["tuning_key"] == key


def test_another_built_in_schedule_changes_no_key_of_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that comes to a stage's blocks by another way than they do."""
    jump = schedule_of("jump(head; head+1+2)")
    stages = [(one, n) for one in SCHEDULES.values() for n in range(1, one.count + 1)]
    before = [before_of(one, n) for one, n in stages]
    monkeypatch.setitem(SCHEDULES, "jump", jump)
    assert [before_of(one, n) for one, n in stages] == before
    assert before_of(jump, 2)


def test_a_study_of_an_earlier_version_is_used_by_its_own_schedule_alone(
    command: Command, store: Path, ann: str, capfd: pytest.CaptureFixture[str]
) -> None:
    space, own = space_file(store, "lr: [1.0e-7]\n"), "mine(head+1; continued)"
    words = {"data": ann, "schedule": own, **FEW}
    assert command("tune", n_trials="1", stage="2", space=space, **words) == 0
    [study] = studies(store)
    cache = {"cache_dir": str(store / "cache")}
    settings = load_settings({**TINY, **cache, **words, "norm_stats": "target"})
    session = Session.open(settings, Tracking.connect(), lambda _: None)
    assert study.user_attrs["tuning_key"] == session.recipe(2, trained=1)
    former = session.recipe(2, trained=1, former=session.draw.pool)
    study.set_user_attr("tuning_key", former)
    of_stage_1 = {f"stage1.{k}": str(v) for k, v in settings.training(1).model_dump().items()}
    for schedule, found in ((own, 0), ("three_stage", 2)):  # stage 1 trains alike in both
        chosen = {**words, **of_stage_1, "schedule": schedule}
        assert command("stage2", tuned="on", **chosen) == found, schedule
    assert f"schedule={own} (here three_stage)" in errors(capfd)[0]


def former_name(session: Session, study: optuna.Study, former: str) -> str:
    """What that version called the study: written out, so that nothing else changes it."""
    training = session.settings.training(1).model_dump()
    space = study.user_attrs["space"]
    content = {
        "tuning_key": former,
        "images": [session.draw.fingerprint],
        "seed": 0,
        "fixed": {key: value for key, value in training.items() if key not in space},
        "space": space,
        "objective": "val_acc",
    }
    return f"stage1-three_stage-{SMALL_NET}-{digest_values(content)[:12]}"


# --- moved images --------------------------------------------------------------------------------


def test_every_entry_point_that_takes_a_run_takes_its_images_where_they_are_now(
    command: Command, ann: str, bob: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage2", data=ann, **TEST) == 0
    first, second = runs()["run_id"]
    assert command("evaluate", run_id=second) == 0
    before = of_stage(2)["metrics.test/acc"][0]
    new = moved(ann)
    for entry_point, run_id, words in (
        ("evaluate", second, {"run_id": second}),
        ("gate", second, {"run_id": second}),
        ("stage2", first, {"parent_run_id": first, "data": ann, **TEST}),
    ):
        if entry_point != "gate":  # which reads no images unless it is asked to
            capfd.readouterr()
            assert command(entry_point, **words) == 2
            told = f"the data of run {run_id} are not at data={ann} any more: pass -P data=<where"
            assert told in errors(capfd)[0]
        assert command(entry_point, **{**words, "data": new}) == 0
        told = f"data={new}: the training and validation images that run {run_id} had"
        assert told in capfd.readouterr().out
        assert command(entry_point, **{**words, "data": bob}) == 2
        [error] = errors(capfd)
        assert f"the images of data={bob} are not those that run {run_id} was trained" in error
        assert "restore them, or pass -P data=<where they are now>" in error
    assert of_stage(2)["metrics.test/acc"][0] == before
    last = runs().iloc[-1]
    assert last["tags.parent_run_id"] == first
    assert json.loads(last["tags.z.settings"])["data"] == new


def test_evaluate_scores_no_run_on_other_test_images(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = with_copies(tmp_path / "images", 0)
    assert command("stage1", data=data, **FEW) == 0
    run_id = runs()["run_id"][0]
    other = Path(shutil.copytree(data, tmp_path / "other"))
    first, second = sorted(path for path in (other / "test").iterdir())[:2]
    first.rename(other / "x")
    second.rename(first)
    (other / "x").rename(second)
    assert command("evaluate", run_id=run_id, data=str(other)) == 0  # never scored: told, and done
    assert f"note: the files of the test images of data={other}" in capfd.readouterr().out
    Tracking.connect().writing(run_id).tags({"test_sha256": "unknown"})
    assert command("evaluate", run_id=run_id) == 0
    assert "note: the files" not in capfd.readouterr().out
    kept = runs().iloc[0]
    assert command("evaluate", run_id=run_id, data=str(other)) == 2
    [error] = errors(capfd)
    assert f"the test images of data={other} are not those" in error
    assert "delete the run's tag z.test_sha256" in error
    for name in ("metrics.test/acc", "metrics.test/loss", "tags.z.test_sha256"):
        assert runs().iloc[0][name] == kept[name]


def test_weights_may_move_and_may_not_change(
    command: Command, ann: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("old.pth", "other.pth")):
        model = build_backbone(SMALL_NET, 5, 32, seed).model
        torch.save(model.state_dict(), tmp_path / name)
    old, new, other = (str(tmp_path / name) for name in ("old.pth", "new.pth", "other.pth"))
    assert command("stage1", data=ann, weights=old, **TEST) == 0
    run_id = runs()["run_id"][0]
    Path(old).rename(new)
    capfd.readouterr()
    assert command("evaluate", run_id=run_id) == 2
    assert f"are not at weights={old} any more: pass -P weights=<" in errors(capfd)[0]
    assert command("evaluate", run_id=run_id, weights=new) == 0
    assert command("stage2", parent_run_id=run_id, data=ann, weights=new, **TEST) == 0
    capfd.readouterr()
    assert command("evaluate", run_id=run_id, weights=other) == 2
    assert "the checkpoint was trained from weights" in errors(capfd)[0]


# --- copies in the test split --------------------------------------------------------------------


def with_copies(root: Path, copies: int) -> str:
    """Folders train and test, so many of the nine test images copies of training images."""
    fill(root / "train", "apple", "berry", "cherry", count=12)
    fill(root / "test", "apple", "berry", "cherry", count=3, start=100)
    for number in range(copies):
        source = root / "train" / "apple" / f"{number}.png"
        shutil.copy(source, root / "test" / "apple" / f"copy{number}.png")
    return str(root)


def trained_on(run_id: str, names: set[str]) -> int:
    """How many of these training files are in a run's draw, by hand."""
    tracking = Tracking.connect()
    run = tracking.get(run_id)
    settings = load_settings({}, inherited=settings_of(run))
    draw = Session.open(settings, tracking, lambda _: None).draw
    met = {row.tobytes() for part in (draw.train, draw.val) for row in part.digests}
    assert len(met) == len(np.concatenate([draw.train.digests, draw.val.digests]))
    files = [Path(settings.data) / "train" / "apple" / name for name in names]
    return sum(digest_image(Image.open(file)) in met for file in files)


@pytest.mark.parametrize("copies", [0, 5])
def test_evaluate_counts_and_tells_copies(
    copies: int, command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1", data=with_copies(tmp_path / "images", copies), **FEW) == 0
    run_id = runs()["run_id"][0]
    seen = trained_on(run_id, {f"{n}.png" for n in range(copies)})
    capfd.readouterr()
    assert command("evaluate", run_id=run_id) == 0
    output = capfd.readouterr().out
    assert ("copies" in output) == bool(copies)
    if copies:
        assert "note: 5 of 14 test images are copies of images that draws are deal" in output
        assert f", {seen} of them this run trained or validated on" in output
        assert re.search(r"without them the accuracy is \d+\.\d\d% on 9 images", output)
    for kind in ("stage", "evaluate"):
        [run] = [row for _, row in runs(kind).iterrows()]
        assert run["metrics.test/copies_of_pool"] == copies
        assert run["metrics.test/seen_in_training"] == seen


@pytest.mark.parametrize(("entry_point", "copies"), [("decide", 4), ("compare", 0)])
def test_reports_are_true_about_unseen_images(
    entry_point: str,
    copies: int,
    command: Command,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = with_copies(tmp_path / "images", copies)
    own = {
        "decide": {"looks": "2", "question": "stage2", "register_as": "off"},
        "compare": {"schedules": "head_only", "baseline": "full", "draws": "2"},
    }[entry_point]
    assert command(entry_point, data=data, **FEW, **own) == 0
    out = capfd.readouterr().out
    kind = {"decide": "decision", "compare": "comparison"}[entry_point]
    [made] = [row for _, row in runs(kind).iterrows()]
    report = artifact(made["run_id"], "report.md").read_text()
    names = {f"{number}.png" for number in range(copies)}
    by_draw = {row["tags.draw"]: row["run_id"] for _, row in runs().iterrows()}
    seen = sum(trained_on(run_id, names) for run_id in by_draw.values())
    assert made["metrics.test/copies_of_pool"] == copies
    assert made["metrics.test/seen_in_training"] == seen
    if copies:
        assert "no training, tuning or selection has seen" not in report
        assert f"13 test images, of which {copies} are copies of images that draws" in report
        assert f"note: {copies} of 13 test images are copies" in out
    else:
        assert "9 test images that no training, tuning or selection has seen" in report
        assert "copies" not in out
    for run_id, draw in zip(runs()["run_id"], runs()["tags.draw"], strict=True):
        metrics = runs().set_index("run_id").loc[run_id]
        if pd.notna(metrics["metrics.test/acc"]):
            assert metrics["metrics.test/copies_of_pool"] == copies
            assert metrics["metrics.test/seen_in_training"] == trained_on(by_draw[draw], names)


# --- advice --------------------------------------------------------------------------------------


def test_advice_names_parameters_that_the_entry_point_has(
    command: Command, ann: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1", data=ann, **TEST) == 0
    run_id = runs()["run_id"][0]
    artifact(run_id, "checkpoint/checkpoint.safetensors").write_bytes(b"damaged")
    for fault in ("is damaged", "was deleted, or was never logged"):
        assert command("evaluate", run_id=run_id) == 2
        assert command("stage2", parent_run_id=run_id, data=ann, **TEST) == 2
        both = errors(capfd)
        assert all(fault in error and f"run {run_id}" in error for error in both)
        assert both[0].endswith(": use another run")
        assert "leave parent_run_id out" in both[1]
        path = artifact(run_id, "checkpoint/checkpoint.safetensors")
        path.unlink(missing_ok=True)
