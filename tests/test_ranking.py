"""Blocks ranked end to end, and the check: gains and agreement computed again from the runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from safetensors.torch import load_file

from pipeline.cli import main
from pipeline.data.draws import make_draw
from pipeline.data.images import ImageSet
from pipeline.entries.rank_blocks import Ranking, page_of, rank_entry
from pipeline.errors import LineageError, SettingsError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.reporting.page import to_markdown
from pipeline.runs.command import Command
from pipeline.runs.session import CHECKPOINT, source_of
from pipeline.settings.schedules import BLOCKS
from pipeline.stats.posterior import posterior
from tests.conftest import class_image, enter_store, words_of
from tests.helpers import changed_names, copy_state
from tests.reports import artifact, reports, tables_of_markdown
from tests.test_block_ranks import plain_norms
from tests.test_decide import (
    CLASSES,
    SMALL,
    acc,
    check_test_images_unseen,
    inside,
    runs,
    settings_of,
)

OWN = {**SMALL, "epochs": "1"}
STAGE2 = {"stage2.lr": "0.02", "stage2.epochs": "1", "stage2.batch_size": "8"}
DRAWS = 2


@dataclass
class Ranked:
    """A run of the head alone, its ranking, and the same again with a check.

    The check is given nothing but the run and how to train stage 2.
    """

    folder: Path
    own: dict[str, str]
    said: list[str]
    first: Ranking
    after_first: list[Run]
    again: Ranking
    after_again: list[Run]
    checked: Ranking
    stages: list[Run]
    rankings: list[Run]

    @property
    def run(self) -> Run:
        """The stage run that was ranked."""
        return self.after_first[0]

    @property
    def firsts(self) -> list[Run]:
        """The runs of stage 1, a draw each."""
        return [run for run in self.stages if run.data.tags["stage"] == "1"]

    def of(self, schedule: str) -> list[Run]:
        """The last runs of a schedule, by draw."""
        found = [
            run
            for run in self.stages
            if run.data.tags["schedule"] == schedule and run.data.tags["stage"] == "2"
        ]
        return sorted(found, key=lambda run: int(run.data.tags["draw"]))

    def gains_pp(self, block: str) -> list[float]:
        released, control = self.of(f"release_{block}"), self.of("stage1_continued")
        return [100 * (acc(r) - acc(c)) for r, c in zip(released, control, strict=True)]


def rank(own: dict[str, str], said: list[str], run_id: str = "", **options: str) -> Ranking:
    return rank_entry(Command({**own, **options}, run_id=run_id, say=said.append))


def model_of(run: Run) -> Backbone:
    """A run's model from its checkpoint file, which holds all of it: no weights went before."""
    backbone = build_backbone(run.data.tags["backbone"], len(CLASSES), 0)
    backbone.model.load_state_dict(load_file(artifact(run, CHECKPOINT)))
    return backbone


def train_images(run: Run) -> ImageSet:
    settings = settings_of(run)
    draw = make_draw(
        source_of(settings),
        train_per_class=settings.train_per_class,
        val_per_class=settings.val_per_class,
        data_seed=settings.data_seed,
        draw=settings.draw,
        image_size=settings.image_size,
    )
    assert draw.fingerprint == run.data.tags["data_sha256"]
    return draw.train


def relative_by_hand(run: Run) -> dict[str, float]:
    norms = plain_norms(model_of(run), train_images(run))
    return {block: gradient / size for block, (gradient, size) in norms.items()}


@pytest.fixture(scope="module")
def ranked_once(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranked:
    images = tmp_path_factory.mktemp("ranking") / "images"
    for label, name in enumerate(CLASSES):
        (images / name).mkdir(parents=True)
        for number in range(10 + DRAWS * 6):
            class_image(label, number).save(images / name / f"{number:02}.png")
    folder = tmp_path_factory.mktemp("ranking") / "work"
    with pytest.MonkeyPatch.context() as patch:
        enter_store(folder, empty_database, patch)
    own = {**OWN, "data": str(images), "cache_dir": str(folder / "cache")}
    said: list[str] = []
    with inside(folder):
        first = rank(own, said, schedule="head_only")
        after_first = runs()
        run_id = after_first[0].info.run_id
        here = {"cache_dir": own["cache_dir"], "precision": own["precision"]}
        again = rank(here, said, run_id)
        after_again = runs()
        checked = rank({**here, **STAGE2}, said, run_id, check=str(DRAWS))
        return Ranked(
            *(folder, own, said, first, after_first, again, after_again, checked),
            *(runs(), runs("ranking")),
        )


@pytest.fixture
def ranked(ranked_once: Ranked) -> Iterator[Ranked]:
    with inside(ranked_once.folder):
        yield ranked_once


def test_without_a_run_the_first_stage_is_trained_and_nested(ranked: Ranked) -> None:
    assert len(ranked.after_first) == 1
    tags = ranked.run.data.tags
    assert (tags["stage"], tags["trains"]) == ("1", "head")
    assert tags["mlflow.parentRunId"] == ranked.rankings[0].info.run_id
    assert ranked.rankings[0].data.tags["ranked_run_id"] == ranked.run.info.run_id


def test_a_given_run_is_ranked_as_it_is_and_nothing_is_trained(ranked: Ranked) -> None:
    assert len(ranked.after_again) == 1
    assert ranked.again.ranks == ranked.first.ranks
    assert ranked.rankings[1].data.tags["ranked_run_id"] == ranked.run.info.run_id


def test_blocks_are_ranked_by_the_gradients_of_the_runs_own_model_and_images(
    ranked: Ranked,
) -> None:
    expected = relative_by_hand(ranked.run)
    order = sorted(expected, key=lambda block: -expected[block])
    assert [one.block for one in ranked.first.ranks] == order
    for run in ranked.rankings:
        for block, relative in expected.items():
            assert run.data.metrics[f"grad_relative/{block}"] == pytest.approx(relative, rel=1e-3)
        names = ", ".join(f"{r.block} {r.relative:.3g}" for r in ranked.first.ranks)
        assert run.data.tags["mlflow.note.content"].startswith(
            f"relative gradient norms, largest first: {names}"
        )


def test_each_block_is_released_alone_on_each_draw_for_the_steps_of_stage_2(
    ranked: Ranked,
) -> None:
    lr = dict.fromkeys(("stage1_continued", *(f"release_{b}" for b in BLOCKS[1:])), "0.02")
    parents = {
        run.data.tags["draw"]: run for run in ranked.stages if run.data.tags["stage"] == "1"
    }
    assert len(parents) == DRAWS
    for schedule, rate in lr.items():
        found = ranked.of(schedule)
        assert [run.data.tags["draw"] for run in found] == ["0", "1"]
        assert [run.data.tags["seed"] for run in found] == ["0", "1"]
        for run in found:
            trains = " ".join(["head", *schedule.split("_")[1:]]).replace(" continued", "")
            assert run.data.tags["trains"] == trains
            assert run.data.tags["parent_run_id"] == parents[run.data.tags["draw"]].info.run_id
            params = run.data.params
            assert (params["lr"], params["epochs"], params["batch_size"]) == (rate, "1", "8")
            assert run.data.tags["preset"] == ranked.run.data.tags["preset"]
            assert params["augment"] == ranked.run.data.params["augment"]
    assert len(ranked.stages) == DRAWS * 7
    assert parents["0"].info.run_id == ranked.run.info.run_id


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_a_released_block_moves_and_those_above_and_below_stay_as_the_parent_has_them(
    ranked: Ranked, block: str
) -> None:
    for run in ranked.of(f"release_{block}"):
        child = model_of(run)
        parent = model_of(mlflow.get_run(run.data.tags["parent_run_id"]))
        moved = changed_names(copy_state(parent), copy_state(child))
        assert moved <= set(child.tensor_names(["head", block]))
        assert moved & set(child.tensor_names([block]))
        assert moved & set(child.tensor_names(["head"]))


def test_gains_are_those_of_the_runs_accuracies_over_stage_1_continued(ranked: Ranked) -> None:
    gains = {block: ranked.gains_pp(block) for block in BLOCKS[1:]}
    assert len({tuple(pp) for pp in gains.values()}) > 1  # or nothing below could tell anything
    metrics = ranked.rankings[2].data.metrics
    for block, pp in gains.items():
        mean = statistics.mean(pp)
        assert metrics[f"gain_pp/{block}"] == pytest.approx(mean)
        assert ranked.checked.gains[block].mean_pp == pytest.approx(mean)
        assert ranked.checked.gains[block].pairs == DRAWS
    assert list(ranked.checked.gains) == list(BLOCKS[1:])


def test_agreement_is_counted_from_the_mean_norms_of_the_draws_own_checkpoints(
    ranked: Ranked,
) -> None:
    by_draw = [relative_by_hand(run) for run in ranked.firsts]
    norms = {block: statistics.mean(one[block] for one in by_draw) for block in BLOCKS}
    assert ranked.checked.relative == pytest.approx(norms, rel=1e-3)
    gains = {block: statistics.mean(ranked.gains_pp(block)) for block in BLOCKS[1:]}
    told = [
        (norms[a] - norms[b], round(gains[a] - gains[b], 9)) for a, b in combinations(gains, 2)
    ]
    score = sum((g > 0) - (g < 0) if n > 0 else (g < 0) - (g > 0) for n, g in told)
    apart = sum(g != 0 for _, g in told)
    tau = score / (len(told) * apart) ** 0.5
    assert ranked.checked.tau == pytest.approx(tau)
    assert ranked.rankings[2].data.metrics["kendall_tau"] == pytest.approx(tau)
    assert f"Kendall's tau: {tau:+.2f}" in ranked.said[-3]


def test_no_released_block_saw_an_image_that_it_was_scored_on(ranked: Ranked) -> None:
    check_test_images_unseen(ranked.stages, settings_of(ranked.run), 30)


def test_the_pages_need_no_other_file_and_say_the_same(ranked: Ranked) -> None:
    for run, tables in zip(ranked.rankings, (1, 1, 2), strict=True):
        page, markdown = reports(run)
        assert page.open == []
        assert [key for key, _ in page.references] == ["src"]
        assert page.references[0][1].startswith("data:image/png;base64,")
        bars = [[[cell.replace("|", "¦") for cell in row] for row in t] for t in page.tables]
        assert bars == tables_of_markdown(markdown.replace("\\|", "¦"))
        assert len(page.tables) == tables
        assert artifact(run, "figures/ranks.png").stat().st_size > 1000
    rows = page.tables[1][1:]
    order = sorted(BLOCKS[1:], key=lambda block: -ranked.checked.relative[block])
    assert [row[0] for row in rows] == order
    for block, _, gain in rows:
        assert gain.startswith(f"{statistics.mean(ranked.gains_pp(block)):+.2f} pp (")


def test_the_same_check_by_words_finds_every_run(ranked: Ranked) -> None:
    again = rank({**ranked.own, **STAGE2}, [], check=str(DRAWS))
    assert len(runs()) == len(ranked.stages)
    assert again.tau == ranked.checked.tau
    assert again.gains == ranked.checked.gains
    assert again.ranks == ranked.checked.ranks


def test_where_all_gains_are_the_same_there_is_no_order_to_agree_with(ranked: Ranked) -> None:
    gains = dict.fromkeys(ranked.checked.gains, posterior([0.0, 0.0]))
    same = replace(ranked.checked, gains=gains, tau=math.nan)
    assert same.sentence.endswith("tau: unknown, as all gains are the same")
    page = to_markdown(page_of(same, settings_of(ranked.firsts[1])))
    assert "nan" not in page


@pytest.mark.parametrize("kind", ["ranking", "none"])
def test_what_is_no_stage_run_is_refused(ranked: Ranked, kind: str) -> None:
    run_id = ranked.rankings[0].info.run_id if kind == "ranking" else "abc"
    message = "needs a finished stage run, run .* is ranking, FINISHED: copy the id"
    with pytest.raises(LineageError, match=message if kind == "ranking" else "does not exist"):
        rank({"cache_dir": ranked.own["cache_dir"]}, [], run_id)


@pytest.mark.parametrize("schedule", ["release_block4", "stage1_continued"])
def test_blocks_are_not_released_from_a_run_of_stage_2(ranked: Ranked, schedule: str) -> None:
    run_id = ranked.of(schedule)[0].info.run_id
    with pytest.raises(
        SettingsError, match=rf"^check=2: run {run_id} .*give such a run, or check="
    ):
        rank({"cache_dir": ranked.own["cache_dir"]}, [], run_id, check="2")
    ranks = rank({"cache_dir": ranked.own["cache_dir"]}, [], run_id).ranks
    assert {one.block for one in ranks} == set(BLOCKS)


def test_settings_that_a_given_run_contradicts_are_refused(ranked: Ranked) -> None:
    with pytest.raises(LineageError, match="image_size is 32 there, got 40"):
        rank({"cache_dir": ranked.own["cache_dir"]}, [], ranked.run.info.run_id, image_size="40")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"check": "1"}, "check=1: gains vary, give 2 draws or more, or 0 for none"),
        ({"check": "-1"}, "check must be greater than or equal to 0"),
        ({"check": "2", "schedule": "full"}, "schedule=full: the check releases blocks after"),
        ({"check": "2", "config": "full.yaml"}, "schedule=full: the check releases blocks after"),
        ({"check": "2", "test_per_class": "0"}, "has no test split"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_2(
    ranked: Ranked, capfd: pytest.CaptureFixture[str], words: dict[str, str], message: str
) -> None:
    (ranked.folder / "full.yaml").write_text("schedule: full\n")
    before = len(runs())
    assert main(words_of("rank_blocks", {**ranked.own, **words})) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert len(runs()) == before
