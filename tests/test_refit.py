"""The model a person wants: trained on all images but the test split, described as what it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities import Run

import pipeline
from pipeline.data.sampling.draws import draw_in, draw_parts
from pipeline.data.sampling.whole import takes_all, whole_draw
from pipeline.entries.command_line.table import perform
from pipeline.errors import DataError, LineageError, SettingsError
from pipeline.refit.card import Share
from pipeline.refit.onnx_file import largest_difference
from pipeline.refit.recipe import Recipe
from pipeline.runs.findings.predictions import TEST_PREDICTIONS
from pipeline.runs.scoring import read_test_split
from pipeline.runs.sources import source_of
from pipeline.serving.chosen import chosen_run
from pipeline.settings.run import Settings
from pipeline.signals.evidence import siblings_of
from pipeline.tracking import RunView, Tracking, keys
from pipeline.tracking.keys import stored_tag
from pipeline.weights.licences import licence_of
from tests.comparisons import new_desk
from tests.conftest import enter_store, inside, tiny, write_image_folder
from tests.helpers import load_settings
from tests.reports import artifact
from tests.test_decide import runs

IMAGES, TEST = 14, 4
SMALL = {"test_per_class": str(TEST), "epochs": "3", "preset": "images", "stage1.epochs": "2"}


@pytest.fixture
def said() -> list[str]:
    return []


def refitted(run_id: str, said: list[str], **options: str) -> Run:
    """Entry point refit; the finished run."""
    made = perform("refit", {"run_id": run_id, **options}, said.append)
    return mlflow.get_run(made.run.run_id)


@pytest.fixture
def chain(store: Path, tmp_path: Path) -> Run:
    """A finished stage 2 on images of three classes."""
    images = write_image_folder(tmp_path / "my images", IMAGES)
    summary = perform("stage2", tiny(images, store, SMALL), lambda _: None)
    return mlflow.get_run(summary.run_id)


@dataclass
class Made:
    """A finished chain, the model on all its images, and what was said while that was made."""

    folder: Path
    chain: Run
    run: Run
    said: list[str]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Made:
    root, said = tmp_path_factory.mktemp("refit"), list[str]()
    images, folder = write_image_folder(root / "my images", IMAGES), root / "work"
    with pytest.MonkeyPatch.context() as patch:
        enter_store(folder, empty_database, patch)
    with inside(folder):
        summary = perform("stage2", tiny(images, folder, SMALL), lambda _: None)
        run = refitted(summary.run_id, said)
        return Made(folder, mlflow.get_run(summary.run_id), run, said)


@pytest.fixture
def made(made_once: Made) -> Iterator[Made]:
    """The model that the tests share; none of them changes it."""
    with inside(made_once.folder):
        yield made_once


def settings_in(run: Run) -> Settings:
    return load_settings(json.loads(run.data.tags["z.settings"]))


def wilson(right: int, images: int) -> str:
    """Wilson 1927, by hand."""
    z, p = 1.959963985, right / images
    centre = (p + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(p * (1 - p) / images + z**2 / (4 * images**2))
    return f"{p:.1%} ({100 * max(0, centre - half):.1f} to {100 * min(1, centre + half):.1f})"


def test_every_image_but_those_of_the_test_split_is_trained_on(made: Made) -> None:
    run, said = made.run, made.said
    settings = settings_in(made.chain)
    source = source_of(settings)
    whole = whole_draw(source, settings, "auto")
    test = read_test_split(source, settings, lambda _: None)
    assert run.data.params["images"] == str(3 * (IMAGES - TEST)) == str(len(whole.train))
    assert run.data.tags["z.data_sha256"] == whole.fingerprint
    met, kept = ({row.tobytes() for row in part.digests} for part in (whole.train, test))
    assert (len(met), len(kept), met & kept) == (3 * (IMAGES - TEST), 3 * TEST, set())
    judged = draw_in(source, settings)
    assert {row.tobytes() for part in (judged.train, judged.val) for row in part.digests} <= met
    assert any("all that are not in the test split" in line for line in said)
    table = pd.read_parquet(artifact(run, TEST_PREDICTIONS))
    assert len(table) == 3 * TEST
    assert run.data.metrics["test/acc"] == pytest.approx(
        (table["label"] == table["predicted"]).mean()
    )


def test_the_same_recipe_on_the_same_images_is_found_again_and_the_weights_are_repeatable(
    made: Made,
) -> None:
    first, said, chain = made.run, list(made.said), made.chain
    again = refitted(chain.info.run_id, said)
    assert again.info.run_id == first.info.run_id
    assert len(runs(keys.REFIT)) == 1
    assert (
        said.count(f"refit: found run {first.info.run_id} with the same content, reusing it") == 1
    )
    assert sum(f"/runs/{first.info.run_id}?" in line for line in said) == 2  # its page, each time
    anew = refitted(chain.info.run_id, said, reuse="off", register_as="off")
    assert anew.info.run_id != first.info.run_id
    one, two = (pipeline.load(run.info.run_id).network.state_dict() for run in (first, anew))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_a_decision_said_of_a_model_stays_where_the_model_is_found_again(made: Made) -> None:
    client, run_id = mlflow.MlflowClient(), made.run.info.run_id
    note, decided = made.run.data.tags[stored_tag(keys.NOTE)], stored_tag(keys.DECISION_RUN_ID)
    (before,) = client.search_model_versions(f"run_id = '{run_id}'")
    client.set_tag(run_id, decided, "d" * 32)
    client.set_tag(run_id, stored_tag(keys.NOTE), "what was decided")
    try:
        again = refitted(made.chain.info.run_id, [])
        assert again.info.run_id == run_id
        assert again.data.tags[stored_tag(keys.NOTE)] == "what was decided"
        (version,) = client.search_model_versions(f"run_id = '{run_id}'")
        assert version.description == "what was decided"
    finally:
        client.update_model_version(before.name, before.version, before.description)
        client.set_tag(run_id, stored_tag(keys.NOTE), note)
        client.delete_tag(run_id, decided)


def test_a_refit_is_nobodys_parent_sibling_or_evidence(made: Made) -> None:
    run, chain = made.run, made.chain
    recipe, run_id = chain.data.tags["z.recipe_key"], run.info.run_id
    assert "z.recipe_key" not in run.data.tags
    assert "stage" not in run.data.tags
    assert set(siblings_of(Tracking.connect(), recipe)) == {chain.info.run_id}
    for words in ({"stage3": "parent_run_id"}, {"evaluate": "run_id"}, {"gate": "run_id"}):
        ((entry_point, key),) = words.items()
        with pytest.raises(pipeline.PipelineError, match=f"run {run_id} is refit, FINISHED"):
            perform(entry_point, {key: run_id}, lambda _: None)
    with pytest.raises(LineageError, match=f"run {run_id} is refit, FINISHED"):
        perform("refit", {"run_id": run_id}, lambda _: None)
    options = json.loads(chain.data.tags["z.settings"])
    again = perform("stage2", {k: str(v) for k, v in options.items() if v != ""}, lambda _: None)
    tags = mlflow.get_run(again.run_id).data.tags
    assert tags["z.lineage_key"] == chain.data.tags["z.lineage_key"]


def view(selected: int, number: int = 1, norm_stats: str = "source") -> RunView:
    """A first stage's run, as far as a recipe reads it."""
    tags = {"stage": str(number), keys.PARENT_RUN_ID: keys.NO_PARENT}
    tags["settings"] = json.dumps({"norm_stats": norm_stats})
    return RunView(
        run_id="r",
        name="n",
        status="FINISHED",
        tags=tags,
        params={},
        metrics={keys.SELECTED_EPOCH: selected},
    )


@pytest.mark.parametrize(
    ("selected", "epochs"), [([4], 4), ([1, 5, 9], 5), ([2, 4], 3), ([1, 1, 30], 1)]
)
def test_epochs_are_the_median_of_those_selected_and_nothing_stops_early(
    store: Path, selected: list[int], epochs: int
) -> None:
    settings = load_settings({"data": "digits", "patience": "3"})
    found = [
        view(epoch, norm_stats=stats)
        for epoch, stats in zip(selected, ["target", "source", "source"], strict=False)
    ]
    recipe = Recipe(settings=settings, last=1, words="stage 1", runs=found)
    fixed = recipe.fixed(Tracking.connect())
    assert (fixed.training(1).epochs, fixed.training(1).patience) == (epochs, 0)
    assert fixed.norm_stats == ("target" if len(selected) < 3 else "source")
    assert replace(recipe, settings=fixed).passes == f"stage 1 {epochs}"


def test_many_more_images_than_were_judged_are_taken_only_when_asked_for(tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images", 24)
    few = load_settings(
        {"data": str(images), "train_per_class": "1", "val_per_class": "1", "test_per_class": "3"}
    )
    source = source_of(few)
    assert not takes_all(source, few, "auto")  # 21 images a class are left, a draw has 2
    assert len(whole_draw(source, few, "auto").train) == 3 * 2
    assert len(whole_draw(source, few, "all").train) == 3 * 21
    more = few.model_copy(update={"val_per_class": 2})
    assert takes_all(source, more, "auto")
    assert not takes_all(source, more, "draw")


def test_the_card_says_what_the_model_is_and_is_worth(made: Made) -> None:
    run, chain = made.run, made.chain
    card = artifact(run, "model_card.md").read_text()
    table = pd.read_parquet(artifact(run, TEST_PREDICTIONS))
    right = table["label"] == table["predicted"]
    assert f"Test accuracy: {wilson(right.sum(), len(table))}" in card
    for name in ("apple", "berry", "cherry"):
        share = wilson(int(right[table["label"] == name].sum()), TEST)
        assert f"| {name} | {IMAGES - TEST} | {TEST} | {share} |" in card
    assert "This model is stage 2. No decision was asked" in card
    assert run.data.tags["z.data_sha256"][:16] in card
    assert "no pretrained weights" in card
    assert run.data.tags["z.made_with"] in card
    assert f"-e refit --env-manager local -P run_id={chain.info.run_id}" in card
    name = "my images-small_net-build"
    version = mlflow.MlflowClient().get_model_version_by_alias(name, "champion")
    first, _, rest = version.description.partition("\n\n")
    assert (version.run_id, rest) == (run.info.run_id, card)
    assert first.startswith("**Stage 2, trained on 30 images: ")
    assert version.tags["recipe"] == "stage 2"
    assert run.data.tags["mlflow.note.content"] == version.description
    assert "stage 2" in str(run.info.run_name)


def test_the_interval_is_wilsons_at_the_ends_too() -> None:
    for right, images in ((0, 4), (4, 4), (83, 100)):
        assert Share(right=right, images=images).words == wilson(right, images)
    assert Share(right=0, images=0).words == "not measured"


@pytest.mark.usefixtures("without_onnx")
def test_a_description_stays_within_what_mlflow_takes(store: Path, said: list[str]) -> None:
    """Of many classes the table stands in the artifact alone."""
    images = store / "many"
    for label in range(120):
        folder = images / f"a class with a long name, number {label:03}"
        folder.mkdir(parents=True)
        for number in range(3):
            from tests.conftest import class_image

            class_image(label, number, 8).save(folder / f"{number}.png")
    options = {"train_per_class": "1", "val_per_class": "1", "test_per_class": "1"}
    options |= {"schedule": "head_only", "preset": "images"}
    summary = perform("stage1", tiny(images, store, options), lambda _: None)
    run = refitted(summary.run_id, said)
    card = artifact(run, "model_card.md").read_text()
    assert "number 119" in card
    assert len(card) > 5000
    name = "many-small_net-build"
    version = mlflow.MlflowClient().get_model_version_by_alias(name, "champion")
    assert len(str(version.description)) <= 5000
    assert "stands in model_card.md" in str(version.description)


def test_the_onnx_file_gives_pytorchs_probabilities_of_the_test_images(made: Made) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra onnx is not installed")
    run = made.run
    path = artifact(run, "onnx/model.onnx")
    settings = settings_in(made.chain)
    test = read_test_split(source_of(settings), settings, lambda _: None)
    classifier = pipeline.load(run.info.run_id)
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, len(test)):
        (found,) = session.run(None, {"pixels": test.pixels[:count].numpy()})
        own = classifier.probabilities(test.pixels[:count]).numpy()
        np.testing.assert_allclose(found, own, atol=1e-4)
    assert len({tuple(row) for row in found.round(6).tolist()}) > 1
    assert 0 <= run.data.metrics["onnx/max_difference"] <= 1e-4
    labels = artifact(run, "onnx/labels.txt").read_text().splitlines()
    assert labels == classifier.class_names == ["apple", "berry", "cherry"]
    about = json.loads(artifact(run, "onnx/about.json").read_text())
    assert (about["image_size"], about["interpolation"]) == (32, "bilinear")

    class Other(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.full((len(pixels), 3), 2.0)

    assert largest_difference(Other(), test.pixels, path) > 1

    class Broken(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.full((len(pixels), 3), math.nan)

    assert math.isnan(largest_difference(Broken(), test.pixels, path))


def test_without_onnx_a_note_and_nothing_lost(
    made: Made, said: list[str], without_onnx: None
) -> None:
    run = refitted(made.chain.info.run_id, said, reuse="off", register_as="off")
    assert any(
        line.startswith("note: no ONNX file, onnxscript is not installed: pip install")
        for line in said
    )
    assert "onnx/max_difference" not in run.data.metrics
    assert pipeline.load(run.info.run_id).class_names == ["apple", "berry", "cherry"]


@pytest.mark.usefixtures("without_onnx")
def test_without_a_test_split_nothing_is_claimed(store: Path, tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images", 8)
    summary = perform("stage1", tiny(images, store, {"preset": "images"}), lambda _: None)
    said: list[str] = []
    run = refitted(summary.run_id, said, register_as="off")
    assert "refit: no test split, so that nothing is known of unseen images" in said
    assert run.data.params["images"] == str(3 * 8)
    assert not [name for name in run.data.metrics if name.startswith("test/")]
    assert "the data has no test split" in artifact(run, "model_card.md").read_text()
    assert mlflow.MlflowClient().search_registered_models() == []


@pytest.mark.usefixtures("without_onnx")
def test_wrong_runs_and_images_are_one_line_each(
    chain: Run, said: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="run_id is not given: pass -P run_id="):
        perform("refit", {}, said.append)
    with pytest.raises(SettingsError, match="refit must be 'auto', 'all' or 'draw', got 'of'"):
        perform("refit", {"run_id": "x", "refit": "of"}, said.append)
    with pytest.raises(LineageError, match=r"run 0{32} does not exist"):
        perform("refit", {"run_id": "0" * 32}, said.append)
    with mlflow.start_run() as other:
        mlflow.set_tag("kind", "decision")
    with pytest.raises(LineageError, match=r"does not say which runs it recommends .*again"):
        perform("refit", {"run_id": other.info.run_id}, said.append)
    settings = settings_in(chain)
    extra = Path(settings.data) / "apple" / "broken.png"
    extra.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read 1 of .*broken\.png"):
        refitted(chain.info.run_id, said)
    run = refitted(chain.info.run_id, said, skip_unreadable="true")
    assert "broken.png" in artifact(run, "unreadable_images.txt").read_text()
    assert any(line.startswith("note: the images at data=") for line in said)  # one was added


@pytest.mark.parametrize(
    ("weights", "backbone", "words"),
    [
        ("none", "resnet18", "no pretrained weights"),
        ("tiny_imagenet", "resnet18", "Apache-2.0"),
        ("imagenet", "resnet18", "torchvision states none"),
        ("IMAGENET1K_SWAG_E2E_V1", "vit_b_16", "SWAG/blob/main/LICENSE"),
        ("/x/mine.safetensors", "resnet18", "unknown: that of the file mine.safetensors"),
        ("pretrained", "my_package.net:build", "unknown: that of my_package.net:build"),
    ],
)
def test_the_licence_of_the_weights_is_what_their_publisher_states(
    weights: str, backbone: str, words: str
) -> None:
    assert words in licence_of(weights, backbone)


def test_timms_licences_are_those_that_timm_states() -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    dino = licence_of("pretrained", "timm:vit_small_patch14_dinov2.lvd142m")
    assert dino == "apache-2.0, as timm states"


@pytest.mark.usefixtures("without_onnx")
def test_a_verdict_ends_with_the_recommended_arm_on_all_images(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> None:
    desk = new_desk(tmp_path_factory, empty_database)
    with inside(desk.folder):
        asked = {"question": "stage2", "looks": "2", "refit": "auto"}
        decision = desk.decide(**asked)
        (run,) = runs(keys.REFIT)
        (decided,) = runs("decision")
        client = mlflow.MlflowClient()
        name = "images-small_net-build"
        version = client.get_model_version_by_alias(name, "champion")
        assert version.run_id == run.info.run_id == decided.data.tags["z.champion_run_id"]
        assert decision.sentence in str(version.description)
        assert version.tags["recipe"] == decision.recommended.words
        assert decision.recommended.words in str(run.info.run_name)
        assert run.data.tags["z.decision_run_id"] == decided.info.run_id
        assert run.data.tags["z.compared_run_id"] == decision.pairs[0].treatment.run_id
        assert run.data.tags["mlflow.parentRunId"] == decided.info.run_id
        assert run.data.tags["z.trains"] == " ".join(
            decision.recommended.settings.stage(decision.recommended.last).trainable
        )
        assert decided.info.status == "FINISHED"
        assert int(run.data.params["images"]) == 3 * (28 - 10)
        assert not [one for one in runs() if "completed" in one.data.tags]
        again = desk.decide(**asked)
        assert again.verdict == decision.verdict
        assert len(runs(keys.REFIT)) == 1
        assert chosen_run(Tracking.connect(), decided.info.run_id, "") == run.info.run_id
        alone = partial(perform, "refit", say=desk.said.append)
        made = alone({"run_id": runs("decision")[-1].info.run_id, "register_as": "second"})
        assert made.run.run_id == run.info.run_id


def test_images_that_no_pair_has_read_do_not_lose_the_decision(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, tmp_path: Path
) -> None:
    desk = new_desk(tmp_path_factory, empty_database)
    desk.images = write_image_folder(tmp_path / "Ann's images", 28)
    asked = {"question": "stage2", "looks": "2"}
    with inside(desk.folder):
        before = desk.decide(**asked)
        settings = before.treatment.settings
        source = source_of(settings)
        used = set()
        for pair in before.pairs:
            for _, rows in draw_parts(source, pair.key.apply(settings)):
                used.update(rows.tolist())
        unused = next(row for row in range(len(source.pool.labels)) if row not in used)
        ((path, _),) = source.pool.stored.items([unused])
        Path(path).write_bytes(b"no image")
        decision = desk.decide(**asked, refit="all")
        assert decision.gains_pp == before.gains_pp
        cost = f"arm is trained once more on {len(source.pool.labels)} images, "
        assert [cost in line for line in desk.said if "a pair takes about" in line] == [
            False,
            True,
        ]
        assert any(
            line.startswith("note: not trained on all images: cannot read 1 of")
            for line in desk.said
        )
        assert runs(keys.REFIT) == []
        decided = runs("decision")[-1]
        assert decided.info.status == "FINISHED"
        recommended = decision.recommended is decision.treatment
        first = decision.pairs[0].treatment if recommended else decision.pairs[0].control
        assert decided.data.tags["z.champion_run_id"] == first.run_id
