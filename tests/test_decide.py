"""Decisions end to end: real images, training and MLflow; numbers computed again by hand."""

from __future__ import annotations

import base64
import io
import json
import shlex
import sqlite3
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Run
from PIL import Image

from pipeline.cli import main
from pipeline.comparing.decision import Decision
from pipeline.data.images import digest_image
from pipeline.data.sampling.draws import draw_in
from pipeline.entries.command_line.table import perform
from pipeline.entries.decide import TRUE_GAINS_PP
from pipeline.model.flops import training_operations
from pipeline.runs.messages.words import with_auto_resolved
from pipeline.runs.scoring import read_test_split
from pipeline.runs.sources import source_of
from pipeline.settings.layers import Layer, resolve
from pipeline.settings.run import Settings
from pipeline.stats.operating import characteristics_text
from pipeline.stats.simulated import World, image_characteristics
from tests.by_image import differences, odds
from tests.conftest import SMALL_NET, class_image, enter_store, inside, words_of
from tests.helpers import fill, planned_epochs
from tests.reports import artifact, reports, tables_of_markdown

CLASSES = ("apple", "berry", "cherry")
PER_CLASS = 28  # 10 to test on, and three draws of 4 + 2
SMALL = {
    "backbone": SMALL_NET,
    "weights": "none",
    "norm_stats": "target",  # random weights learn nothing under their own
    "image_size": "32",
    "train_per_class": "4",
    "val_per_class": "2",
    "test_per_class": "10",
    "batch_size": "8",
    "precision": "float32",
    "lr": "0.01",
    "epochs": "2",
    "near_duplicates": "off",
    "log_pictures": "off",
}
STAGE3 = {
    "stage2.epochs": "1",
    "stage2.lr": "0.02",
    "stage3.epochs": "3",
    "looks": "2,3",
}
STAGE2 = {"question": "stage2", "looks": "2", "register_as": "off"}
OFF = {"register_as": "off"}
VERDICT_TAGS = ("verdict", "z.verdict.kind", "z.verdict.p_gain", "z.verdict.mean_gain_pp")


@dataclass
class Desk:
    """A store of its own, and what was said there and when."""

    folder: Path
    images: Path
    said: list[str]
    runs_then: list[int]

    @property
    def own(self) -> dict[str, str]:
        return {**SMALL, "data": str(self.images), "cache_dir": str(self.folder / "cache")}

    def count_runs(self) -> int:
        """By one query: a search reads every run with all that it holds."""
        query = "select count(*) from runs where experiment_id = 0 and lifecycle_stage = 'active'"
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            return int(database.execute(query).fetchone()[0])

    def decide(self, stop_at: str | None = None, **options: str) -> Decision:
        """Entry point decide; Ctrl-C at the line that begins with `stop_at`."""

        def say(line: str) -> None:
            self.said.append(line)
            self.runs_then.append(self.count_runs())
            if stop_at and line.startswith(stop_at):
                raise KeyboardInterrupt("stopped by the test")

        decision = perform("decide", {"refit": "off", **self.own, **options}, say)
        assert decision
        return decision


def check_told_once(said: list[str], begin: str, count: int) -> None:
    """By the command, as new, whichever task ran it."""
    lines = [line for line in said if line.startswith(begin)]
    assert len(lines) == len(set(lines)) == count
    assert not [line for line in lines if "(reused)" in line]


def runs(kind: str = "stage") -> list[Run]:
    found = mlflow.search_runs(
        ["0"], f"tags.kind = '{kind}'", output_format="list", order_by=["start_time ASC"]
    )
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decide") / "Ann's images"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            class_image(label, number).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def new_desk(
    images: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Desk]:
    def new() -> Desk:
        folder = tmp_path_factory.mktemp("desk") / "work"
        with pytest.MonkeyPatch.context() as patch:
            enter_store(folder, empty_database, patch)
        return Desk(folder, images, [], [])

    return new


@pytest.fixture
def desk(new_desk: Callable[[], Desk]) -> Iterator[Desk]:
    """An empty store."""
    empty = new_desk()
    with inside(empty.folder):
        yield empty


@dataclass
class Decided:
    """A decision on stage 3 that was made, and the runs that there were then."""

    desk: Desk
    decision: Decision
    run: Run
    stages: list[Run]
    said: list[str]
    runs_then: list[int]

    def arms(self) -> list[tuple[Run, Run]]:
        """Treatment and control, pair after pair, found by what runs say of themselves."""

        def of(schedule: str) -> list[Run]:
            found = [
                run
                for run in self.stages
                if run.data.tags["schedule"] == schedule
                and run.data.tags["stage"] == "3"
                and "z.is_trial" in run.data.tags
            ]
            return sorted(found, key=lambda run: int(run.data.tags["draw"]))

        return list(zip(of("three_stage"), of("stage2_continued"), strict=True))

    def gains_pp(self) -> list[float]:
        return [100 * (acc(treatment) - acc(control)) for treatment, control in self.arms()]


@pytest.fixture(scope="module")
def decided_once(new_desk: Callable[[], Desk]) -> Decided:
    desk = new_desk()
    with inside(desk.folder):
        decision = desk.decide(**STAGE3, beside="1", log_pictures="on")
        said, runs_then = list(desk.said), list(desk.runs_then)
        return Decided(desk, decision, runs("decision")[0], runs(), said, runs_then)


@pytest.fixture
def decided(decided_once: Decided) -> Iterator[Decided]:
    with inside(decided_once.desk.folder):
        yield decided_once


def acc(run: Run) -> float:
    return float(run.data.metrics["test/acc"])


def chain(run: Run, stages: Sequence[Run]) -> list[Run]:
    """A run and those that it continues from."""
    by_id = {one.info.run_id: one for one in stages}
    found = [run]
    while (parent := found[-1].data.tags["parent_run_id"]) != "none":
        found.append(by_id[parent])
    return found


def epochs_of(run: Run) -> int:
    """Epochs that were really trained."""
    return len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "acc/val"))


@dataclass
class ByHand:
    state: str
    kind: str
    pairs: int
    p_gain: float
    p_harm: float


def by_hand(
    pairs: Sequence[tuple[Run, Run]],
    looks: Sequence[int],
    rope: float = 0.5,
    threshold: float = 0.99,
    correction: float = 0.0,
    end: int | None = 3,
) -> ByHand:
    """The method's text, word by word; `end`: pairs that the pool holds."""
    table = differences(pairs)
    for n in looks:
        level = threshold if n == end else 1 - (1 - threshold) / 5
        above, below = odds(table[:n], rope, correction)
        left_out = [table[:i] + table[i + 1 : n] for i in range(n)] if n > 2 else []
        means = [statistics.mean(map(statistics.mean, one)) for one in left_out]
        weakest = min([odds(one, rope, correction)[0] for one in left_out], default=1)
        if above >= level and min(means, default=1) > 0 and weakest >= 1 - 2.5 * (1 - level):
            return ByHand("justified", "none", n, above, below)
        if 1 - above >= level:
            harmless = "equivalent" if 1 - below >= level else "no_gain"
            kind = "harmful" if below >= level else harmless
            return ByHand("not_justified", kind, n, above, below)
    return ByHand("inconclusive", "none", n, above, below)


def check(tags: dict[str, str], expected: ByHand) -> None:
    assert tags["verdict"] == expected.state
    assert tags["z.verdict.kind"] == expected.kind
    assert tags["z.verdict.pairs"] == str(expected.pairs)
    assert float(tags["z.verdict.p_gain"]) == pytest.approx(expected.p_gain, abs=6e-5)
    assert float(tags["z.verdict.p_harm"]) == pytest.approx(expected.p_harm, abs=6e-5)
    inside_rope = 1 - expected.p_gain - expected.p_harm
    assert float(tags["z.verdict.p_equivalent"]) == pytest.approx(inside_rope, abs=1.1e-4)


def test_the_verdict_follows_from_the_accuracies_that_the_runs_carry(decided: Decided) -> None:
    gains, tags = decided.gains_pp(), decided.run.data.tags
    expected = by_hand(decided.arms(), (2, 3))
    assert len(gains) == expected.pairs
    assert len(set(gains)) > 1  # or the table below could not tell anything
    check(tags, expected)
    assert float(tags["z.verdict.mean_gain_pp"]) == pytest.approx(statistics.mean(gains), abs=6e-4)
    assert decided.decision.gains_pp == pytest.approx(gains, abs=1e-3)
    history = mlflow.MlflowClient().get_metric_history(decided.run.info.run_id, "gain/pair_pp")
    assert [point.value for point in history] == pytest.approx(gains, abs=1e-3)


@pytest.mark.parametrize(
    "design",
    [
        {"rope_pp": "30", "threshold": "0.8"},
        {"rope_pp": "0", "threshold": "0.51", "looks": "2"},
    ],
)
def test_another_design_reads_the_same_runs_and_trains_nothing(
    decided: Decided, design: dict[str, str]
) -> None:
    before = {run.info.run_id for run in runs()}
    decided.desk.decide(**{**STAGE3, **OFF, **design})
    looks = tuple(map(int, design.get("looks", STAGE3["looks"]).split(",")))
    rope, threshold = float(design.get("rope_pp", 0.5)), float(design.get("threshold", 0.99))
    check(runs("decision")[-1].data.tags, by_hand(decided.arms(), looks, rope, threshold))
    assert {run.info.run_id for run in runs()} == before


def test_another_metric_reads_the_same_runs_and_measures_what_an_earlier_version_did_not(
    decided: Decided,
) -> None:
    before, run_id = {run.info.run_id for run in runs()}, decided.arms()[0][0].info.run_id
    with closing(sqlite3.connect(decided.desk.folder / "mlflow.db")) as database:
        for table in ("metrics", "latest_metrics"):
            where = "key = 'test/macro_f1' AND run_uuid = ?"
            database.execute(f"DELETE FROM {table} WHERE {where}", [run_id])
        database.commit()
    decision = decided.desk.decide(**STAGE3, **OFF, metric="macro_f1")
    f1 = [
        [mlflow.get_run(run.info.run_id).data.metrics["test/macro_f1"] for run in pair]
        for pair in decided.arms()
    ]
    assert decision.gains_pp == pytest.approx([100 * (one - other) for one, other in f1], abs=1e-3)
    assert decision.gains_pp != pytest.approx(decided.gains_pp())
    assert {run.info.run_id for run in runs()} == before
    tags = runs("decision")[-1].data.tags
    assert tags["z.verdict.metric"] == "macro_f1"
    assert tags["mlflow.note.content"].startswith("**By macro F1: ")


def test_evaluating_a_run_changes_no_gain_of_a_later_decision(decided: Decided) -> None:
    run = decided.arms()[0][0]
    run_id, before = run.info.run_id, decided.gains_pp()
    place = str(decided.desk.folder / "cache")

    def marks() -> tuple[float, str]:
        now = mlflow.get_run(run_id)
        return acc(now), now.data.tags["z.test_precision"]

    assert main(["evaluate", "--run_id", run_id, "--cache_dir", place]) == 0
    assert marks() == (acc(run), "float32")
    other = ["--precision", "bfloat16"]
    assert main(["evaluate", "--run_id", run_id, "--cache_dir", place, *other]) == 0
    assert marks()[1] == "bfloat16"
    mlflow.MlflowClient().log_metric(run_id, "test/acc", 0.125)  # as that precision might have it
    assert decided.desk.decide(**STAGE3, **OFF).gains_pp == pytest.approx(before, abs=1e-3)
    assert marks() == (acc(run), "float32")


def test_a_score_on_other_test_images_stays_on_its_run(decided: Decided) -> None:
    run_id, before = decided.arms()[0][0].info.run_id, decided.gains_pp()
    client = mlflow.MlflowClient()
    client.set_tag(run_id, "z.test_sha256", "0" * 64)
    client.log_metric(run_id, "test/acc", 0.125)
    said = len(decided.desk.said)
    assert decided.desk.decide(**STAGE3, **OFF).gains_pp == pytest.approx(before, abs=1e-3)
    now = mlflow.get_run(run_id).data
    assert (now.metrics["test/acc"], now.tags["z.test_sha256"]) == (0.125, "0" * 64)
    assert any(run_id in line and "other test images" in line for line in decided.desk.said[said:])
    client.set_tag(run_id, "z.test_sha256", "unknown")  # measured anew, for the tests that follow
    assert decided.desk.decide(**STAGE3, **OFF).gains_pp == pytest.approx(before, abs=1e-3)
    assert mlflow.get_run(run_id).data.tags["z.test_sha256"] != "unknown"


def test_what_the_design_can_tell_is_said_before_anything_is_run(decided: Decided) -> None:
    said, then = decided.said, decided.runs_then
    table = next(n for n, line in enumerate(said) if "true gain, pp" in line)
    cost = next(n for n, line in enumerate(said) if "a pair takes about" in line)
    first_pair = next(n for n, line in enumerate(said) if line.startswith("pair 1 (draw 0"))
    assert said[0].startswith(
        "stage 3 against stage 2 continued, 12 optimizer steps; pairs are disj"
    )
    assert "accuracy on 30 test images" in said[0]
    known = image_characteristics(
        decided.decision.design, World(images=30, spread_pp=1.0), TRUE_GAINS_PP
    )
    assert said[table] == characteristics_text(known)
    assert table < cost < first_pair
    assert "trained once more" not in said[cost]  # refit=off
    assert then[: cost + 1] == [0] * (cost + 1)
    assert then[first_pair] == 1 + 4  # the decision, and stages 1, 2, 3 and 2 continued
    looks = [line for line in said if line.startswith("after ")]
    assert [line.split(":")[0] for line in looks] == [
        f"after {look.posterior.pairs} pairs" for look in decided.decision.verdict.looks
    ]
    assert looks[-1].endswith(decided.decision.sentence)


def test_both_arms_of_a_pair_share_checkpoint_seed_draw_and_images(decided: Decided) -> None:
    for number, (treatment, control) in enumerate(decided.arms()):
        ours, theirs = (run.data.tags for run in (treatment, control))
        for tag in (
            "parent_run_id",
            "z.parent_checkpoint_sha256",
            "seed",
            "draw",
            "z.data_sha256",
        ):
            assert ours[tag] == theirs[tag], tag
        assert (ours["seed"], ours["draw"]) == (str(number), str(number))
        assert ours["z.checkpoint_sha256"] != theirs["z.checkpoint_sha256"]
        parent = chain(treatment, decided.stages)[1]
        assert parent.data.tags["z.trains"] == "head block4"
        inputs = [
            {(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs}
            for run in (treatment, control)
        ]
        assert inputs[0] == inputs[1]
        assert len(inputs[0]) == 2


def test_both_arms_have_the_same_number_of_optimizer_steps(decided: Decided) -> None:
    for treatment, control in decided.arms():
        ours, theirs = (chain(run, decided.stages) for run in (treatment, control))
        assert [epochs_of(run) for run in ours] == [3, 1, 2]
        assert [epochs_of(run) for run in theirs] == [3, 1, 2]
        assert {run.data.params["batch_size"] for run in (*ours, *theirs)} == {"8"}
        assert (treatment.data.params["lr"], control.data.params["lr"]) == ("0.01", "0.01")


def test_nothing_is_trained_twice_the_model_to_be_served_included(decided: Decided) -> None:
    counts = Counter(run.data.tags["z.lineage_key"] for run in decided.stages)
    assert set(counts.values()) == {1}
    assert len(decided.stages) == 4 * len(decided.arms()) + 2  # full, lp_ft's second stage
    completed = [run for run in decided.stages if "z.completed" in run.data.tags]
    assert [run.info.run_id for run in completed] == [decided.run.data.tags["z.champion_run_id"]]
    parents = {run.data.tags["mlflow.parentRunId"] for run in decided.stages}
    assert parents == {decided.run.info.run_id}
    assert decided.run.info.status == "FINISHED"


def test_the_treatments_runs_carry_the_verdict(decided: Decided) -> None:
    tags = {key: value for key, value in decided.run.data.tags.items() if "verdict" in key}
    assert len(tags) == 13
    for treatment, control in decided.arms():
        theirs = treatment.data.tags
        assert {key: value for key, value in theirs.items() if "verdict" in key} == tags
        assert theirs["z.decision_run_id"] == decided.run.info.run_id
        assert "verdict" not in control.data.tags


def test_other_arms_stand_beside_at_the_same_epochs(decided: Decided) -> None:
    control = decided.arms()[0][1]
    for schedule, epochs in (("full", [6]), ("lp_ft", [4, 2])):
        found = [run for run in decided.stages if run.data.tags["schedule"] == schedule]
        assert len(found) == 1
        assert [epochs_of(run) for run in chain(found[0], decided.stages)] == epochs
        beside = decided.decision.beside[schedule]
        assert beside.arm.name == schedule
        gain = 100 * (acc(found[0]) - acc(control))
        assert beside.gains_pp == pytest.approx([gain], abs=1e-3)
        row = f"| {beside.arm.words} | 1 | {gain:+.2f} | {gain:+.2f} |"
        assert row in artifact(decided.run, "report.md").read_text()


def settings_of(run: Run) -> Settings:
    return resolve([Layer(source="run", values=json.loads(run.data.tags["z.settings"]))])


def digests_of_draw(settings: Settings, fingerprint: str) -> set[str]:
    """The images that a run saw, proved by its tag."""
    draw = draw_in(source_of(settings), settings)
    assert draw.fingerprint == fingerprint
    return {row.tobytes().hex() for part in (draw.train, draw.val) for row in part.digests}


def check_test_images_unseen(stages: Sequence[Run], settings: Settings, count: int) -> None:
    """No image that runs were scored on is among those that any run was trained or chosen on."""
    scored_on = read_test_split(source_of(settings), settings, print)
    test = {row.tobytes().hex() for row in scored_on.digests}
    assert len(test) == count
    marks = {run.data.tags["z.test_sha256"] for run in stages if "z.test_sha256" in run.data.tags}
    assert marks == {scored_on.fingerprint()}
    for run in stages:
        assert not test & digests_of_draw(settings_of(run), run.data.tags["z.data_sha256"])
        validated = pd.read_csv(artifact(run, "evaluation/val_predictions.csv"))["image_sha256"]
        assert not test & set(validated)


def test_pairs_share_no_image_and_no_run_saw_one_that_it_was_scored_on(decided: Decided) -> None:
    drawn = [
        digests_of_draw(settings_of(run), run.data.tags["z.data_sha256"])
        for run, _ in decided.arms()
    ]
    assert len(set().union(*drawn)) == sum(map(len, drawn)) == len(drawn) * 18
    check_test_images_unseen(decided.stages, decided.decision.treatment.settings, 30)
    everything = {
        digest_image(Image.open(path)).hex() for path in decided.desk.images.rglob("*.png")
    }
    assert len(everything) == 3 * PER_CLASS  # no picture is there twice


def test_the_page_needs_no_other_file_and_holds_the_tables_of_the_markdown(
    decided: Decided,
) -> None:
    page, markdown = reports(decided.run)
    assert page.open == []
    assert len(page.tables) >= 8
    assert page.tables == tables_of_markdown(markdown)
    assert artifact(decided.run, "figures/gains.png").is_file()
    assert f"![gains: {page.text['h1']}](figures/gains.png)" in markdown
    changed = "figures/mended_and_broken.jpg" in markdown
    assert [key for key, _ in page.references] == ["src"] * (1 + changed)
    assert all(value.startswith("data:image/") for _, value in page.references)
    head, _, content = page.references[0][1].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert not {"script", "link", "iframe", "object"} & set(page.seen)
    assert not any(word in page.text["style"] for word in ("url(", "@import"))
    assert page.text["title"] == page.text["h1"]


def test_the_report_shows_every_pair_and_the_way_to_the_verdict(decided: Decided) -> None:
    tables = {table[0][0] + table[0][1]: table for table in reports(decided.run)[0].tables}
    expected = [
        [str(n + 1), "0", str(n), str(n), f"{acc(t):.2%}", f"{acc(c):.2%}", f"{gain:+.2f}"]
        for n, ((t, c), gain) in enumerate(zip(decided.arms(), decided.gains_pp(), strict=True))
    ]
    assert tables["pairdata_seed"][0][4:] == ["stage 3", "stage 2 continued", "gain, pp"]
    assert tables["pairdata_seed"][1:] == expected
    way = tables["pairsmean gain, pp"][1:]
    assert [row[0] for row in way] == ["2", "3"][: len(way)]
    last = by_hand(decided.arms(), (2, 3))
    assert way[-1][0] == str(last.pairs)
    assert float(way[-1][3]) == pytest.approx(last.p_gain, abs=6e-4)
    assert float(way[-1][5]) == pytest.approx(last.p_harm, abs=6e-4)


@pytest.mark.parametrize(
    ("asked", "found", "shown"),
    [
        ("target", ["target", "target"], "target"),
        ("auto", ["source", "source"], "source (2 pairs), chosen automatically"),
        (
            "auto",
            ["target", "source", "source"],
            "source (2 pairs), target (1 pair), chosen automatically",
        ),
        ("auto", ["", ""], "auto"),  # runs of an earlier version carry no such tag
    ],
)
def test_a_report_says_what_auto_came_to(asked: str, found: list[str], shown: str) -> None:
    assert with_auto_resolved(asked, found) == shown


def test_the_report_shows_cost_and_optimism_of_both_arms(decided: Decided) -> None:
    tables = {table[0][0] + table[0][1]: table for table in reports(decided.run)[0].tables}
    for row, arm in zip(
        tables["armtraining, s"][1:], zip(*decided.arms(), strict=True), strict=True
    ):
        validation = statistics.mean(run.data.metrics["selected/val_acc"] for run in arm)
        test = statistics.mean(acc(run) for run in arm)
        chains = [chain(run, decided.stages) for run in arm]
        seconds = [
            run.data.metrics["time/total_s"] - run.data.metrics["time/prefix_s"]
            for one in chains
            for run in one
        ]
        assert float(row[1]) == pytest.approx(sum(seconds) / len(chains), abs=0.051)
        trained = max(int(run.data.metrics["parameters/trainable"]) for run in chains[0])
        assert row[2] == f"{trained:,}"
        assert row[4:6] == [f"{validation:.2%}", f"{test:.2%}"]
        settings = settings_of(arm[0])
        operations = [
            training_operations(
                settings.backbone, len(CLASSES), 32, settings.stage(number).trainable
            )
            * settings.training(number).epochs
            * settings.train_per_class
            * len(CLASSES)
            for number in (1, 2, 3)
        ]
        assert float(row[3].replace(",", "")) == pytest.approx(sum(operations) / 1e9, abs=0.051)
        assert float(row[6]) == pytest.approx(100 * (validation - test), abs=6e-3)


def test_the_report_names_what_it_rests_on(decided: Decided) -> None:
    page, markdown = reports(decided.run)
    rows = {row[0]: row[1:] for row in page.tables[-1]}
    for number, (treatment, control) in enumerate(decided.arms(), start=1):
        digest = treatment.data.tags["z.data_sha256"][:16]
        assert rows[str(number)] == [digest, treatment.info.run_id, control.info.run_id]
    tags = decided.arms()[0][0].data.tags
    assert tags["z.weights_sha256"] in markdown
    assert f"code: {tags['z.git_commit']}." in markdown
    assert "P(gain" in markdown


def command_in(markdown: str) -> dict[str, str]:
    """The options of the command line in a report."""
    line = next(line for line in markdown.splitlines() if line.startswith("mlflow run "))
    words = shlex.split(line)
    assert words[:7] == ["mlflow", "run", ".", "-e", "decide", "--env-manager", "local"]
    assert words[7::2] == ["-P"] * (len(words[7:]) // 2)
    return dict(word.split("=", 1) for word in words[8::2])


def run_again(run: Run, desk: Desk) -> None:
    """The command in a run's report, given to the command line, with this store's cache."""
    options = command_in(artifact(run, "report.md").read_text(encoding="utf-8"))
    elsewhere = {"cache_dir": str(desk.folder / "cache"), "register_as": "off"}
    assert main(words_of("decide", {**options, **elsewhere})) == 0


def test_the_command_in_the_report_makes_the_same_decision_from_the_same_runs(
    decided: Decided,
) -> None:
    before = {run.info.run_id for run in runs()}
    commit, control = decided.stages[0].data.tags["z.git_commit"], decided.arms()[-1][1]
    client, parent = mlflow.MlflowClient(), chain(control, decided.stages)[-1]
    for run, other in ((control, "0"), (parent, "zzzz")):
        client.set_tag(run.info.run_id, "z.git_commit", other)
    run_again(decided.run, decided.desk)
    for run in (control, parent):
        client.set_tag(run.info.run_id, "z.git_commit", commit)
    assert {run.info.run_id for run in runs()} == before
    again = runs("decision")[-1]
    assert again.info.run_id != decided.run.info.run_id
    assert f"code: 0, {commit}, zzzz." in artifact(again, "report.md").read_text()
    for key, value in decided.run.data.tags.items():
        if "verdict" in key:
            assert again.data.tags[key] == value
    old, new = (tables_of_markdown(reports(run)[1]) for run in (decided.run, again))
    assert [table for table in old if table[0][0] in ("pair", "pairs", "arm", "stage")] == [
        table for table in new if table[0][0] in ("pair", "pairs", "arm", "stage")
    ]


def test_swapped_arms_have_the_opposite_gains_and_the_better_one_is_registered(
    decided: Decided,
) -> None:
    gains = decided.gains_pp()
    stage3_is_better = sum(gains) > 0
    words = {**STAGE3, "rope_pp": "0", "threshold": "0.51", "register_as": "better"}
    if stage3_is_better:  # the better arm is the control: no single pair's weight counts for it
        words |= {"treatment": "stage2_continued", "control": "three_stage"}
    sign = -1 if stage3_is_better else 1
    before = {run.info.run_id for run in runs()}
    decision = decided.desk.decide(**words)
    assert decision.gains_pp == pytest.approx(
        [sign * gain for gain in gains[: len(decision.pairs)]], abs=1e-3
    )
    assert decision.verdict.state == ("not_justified" if sum(gains) else "inconclusive")
    new = [run for run in runs() if run.info.run_id not in before]
    version = mlflow.MlflowClient().get_model_version_by_alias("better", "champion")
    assert new == []
    judged = decided.arms()[0][0 if stage3_is_better else 1]
    assert version.run_id == judged.info.run_id


def test_the_recommended_model_is_registered_with_its_verdict_and_answers(
    decided: Decided,
) -> None:
    client = mlflow.MlflowClient()
    name = "Ann-s images-small_net-build"
    version = client.get_model_version_by_alias(name, "champion")
    decision, tags = decided.decision, decided.run.data.tags
    assert decision.sentence in str(version.description)
    assert f"run {decided.run.info.run_id}" in str(version.description)
    assert version.tags["verdict"] == decision.verdict.state
    assert tags["champion"] == f"models:/{name}@champion"
    assert tags["z.champion_run_id"] == version.run_id
    run = client.get_run(version.run_id)
    expected = decision.treatment if decision.verdict.state == "justified" else decision.control
    assert (run.data.tags["schedule"], run.data.tags["draw"]) == (expected.name, "0")
    first = decision.pairs[0]
    judged = first.treatment if expected is decision.treatment else first.control
    assert version.run_id == judged.run_id
    assert judged.test == acc(run)
    assert f"reached {acc(run):.2%} accuracy on the test images" in str(version.description)
    for picture in ("learning_curves", "confusion_matrix", "risks", "chain"):
        assert artifact(run, f"figures/{picture}.png").stat().st_size > 5_000

    rows = pd.read_csv(artifact(run, "evaluation/val_predictions.csv")).set_index("image_sha256")
    files = {
        digest_image(Image.open(path)).hex(): path.read_bytes()
        for path in decided.desk.images.rglob("*.png")
    }
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    answers = model.predict(pd.DataFrame({"image": [files[digest] for digest in rows.index]}))
    assert list(answers["label"]) == list(rows["predicted"])
    assert answers[list(CLASSES)].sum(axis=1).to_numpy() == pytest.approx([1.0] * len(rows))


@dataclass
class Interrupted:
    """A decision on stage 2 that was stopped after its first pair, gone on with, and repeated."""

    desk: Desk
    after: list[list[Run]]
    decisions: list[Run]


@pytest.fixture(scope="module")
def interrupted(new_desk: Callable[[], Desk]) -> Interrupted:
    desk = new_desk()
    after = []
    with inside(desk.folder):
        with pytest.raises(KeyboardInterrupt, match="stopped by the test"):
            desk.decide("pair 1 (", **STAGE2)
        after.append(runs())
        for _ in range(2):
            desk.decide(**STAGE2)
            after.append(runs())
        return Interrupted(desk, after, runs("decision"))


def test_a_stopped_decision_goes_on_and_again_trains_nothing_and_says_the_same(
    interrupted: Interrupted,
) -> None:
    first, second, third = interrupted.after
    assert [run.data.tags["stage"] for run in first] == ["1", "2", "2"]
    assert len(second) == 6
    assert len({run.data.tags["z.lineage_key"] for run in second}) == 6
    assert {run.info.status for run in second} == {"FINISHED"}
    assert [run.info.status for run in interrupted.decisions] == ["KILLED", "FINISHED", "FINISHED"]
    assert [run.info.run_id for run in third] == [run.info.run_id for run in second]
    _, one, two = interrupted.decisions
    for tag in VERDICT_TAGS:
        assert one.data.tags[tag] == two.data.tags[tag]
    with inside(interrupted.desk.folder):  # register_as=off
        assert mlflow.MlflowClient().search_registered_models() == []
    assert "champion" not in one.data.tags
    assert all("z.is_trial" in run.data.tags for run in third)


def test_stage_2_is_held_against_stage_1_continued(interrupted: Interrupted) -> None:
    second = interrupted.after[1]
    last = [run for run in second if run.data.tags["stage"] == "2"]
    by_draw = [[run for run in last if run.data.tags["draw"] == str(n)] for n in range(2)]
    pairs = []
    for pair in by_draw:
        found = {run.data.tags["z.trains"]: run for run in pair}
        assert set(found) == {"head block4", "head"}
        pairs.append((found["head block4"], found["head"]))
    check(interrupted.decisions[1].data.tags, by_hand(pairs, (2,)))


def test_a_pool_too_small_is_resampled_and_says_what_that_costs(desk: Desk) -> None:
    decision = desk.decide(**{**STAGE2, "test_per_class": "18"})
    # 4 of the 10 images that are left of each class, three quarters of them by measurement
    correction = 0.3 / 0.7
    said = (
        "the pool holds 1 disjoint draw, 2 are needed: pairs are resampled and share "
        "images (40% of two draws, on average), which costs power"
    )
    assert said in desk.said[0]
    run = runs("decision")[0]
    assert said in artifact(run, "report.md").read_text()
    assert "pairs share images (correction 0.43)" in decision.verdict.reason
    stages = runs()
    by_id = {stage.info.run_id: stage for stage in stages}
    pairs = [(by_id[p.treatment.run_id], by_id[p.control.run_id]) for p in decision.pairs]
    check(run.data.tags, by_hand(pairs, (2,), correction=correction, end=None))
    assert len({stage.data.tags["z.data_sha256"] for stage in stages}) == 2
    check_test_images_unseen(stages, decision.treatment.settings, 54)


def test_without_a_test_split_nothing_is_run_and_the_way_out_is_said(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of("decide", {**desk.own, **STAGE2, "test_per_class": "0"})) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "has no test split" in lines[0]
    assert "-P test_per_class=<how many>" in lines[0]
    assert mlflow.search_runs(["0"], output_format="list") == []


@pytest.mark.parametrize("command", ["decide", "compare"])
def test_of_one_test_image_nothing_is_run(
    desk: Desk, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    root = tmp_path / "own"
    fill(root / "train", "ant", "bee", count=14)
    fill(root / "test", "ant", "bee", count=1, start=100)
    (root / "test" / "bee" / "100.png").write_bytes(b"no image")
    own = {"data": str(root), "test_per_class": "0", "skip_unreadable": "true"}
    asked = STAGE2 if command == "decide" else {"draws": "2", "schedules": "full,head_only"}
    assert main(words_of(command, {**desk.own, **asked, **own})) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {root}: 1 image of the test split can be read")
    assert "add images to the test split" in line
    assert mlflow.search_runs(["0"], output_format="list") == []


@pytest.mark.slow
def test_a_stage_that_was_deleted_is_trained_again_with_what_follows_from_it(desk: Desk) -> None:
    with inside(desk.folder):
        before = desk.decide(**STAGE2)
        [first, *_] = [run for run in runs() if run.data.tags["stage"] == "1"]
        mlflow.delete_run(first.info.run_id)
        after = desk.decide(**STAGE2)
        stages = runs()
    assert [pair.gain_pp for pair in after.pairs] == [pair.gain_pp for pair in before.pairs]
    by_id = {run.info.run_id: run for run in stages}
    for pair in after.pairs:
        for arm in (pair.treatment, pair.control):
            assert chain(by_id[arm.run_id], stages)[-1].data.tags["stage"] == "1"


@pytest.mark.slow
def test_two_tasks_at_once_come_to_the_same_verdict_and_make_no_run_twice(
    desk: Desk, interrupted: Interrupted
) -> None:
    with inside(desk.folder):
        desk.decide(**STAGE2, workers="2")
        stages, decision = runs(), runs("decision")
    expected = interrupted.decisions[1].data.tags
    assert len(decision) == 1  # tasks have none of their own
    for tag in VERDICT_TAGS:
        assert decision[0].data.tags[tag] == expected[tag]
    keys = Counter(run.data.tags["z.lineage_key"] for run in stages)
    assert keys == Counter(run.data.tags["z.lineage_key"] for run in interrupted.after[1])
    check_told_once(desk.said, "pair ", 2)
    assert sum("after 2 pairs" in line for line in desk.said) == 1


@pytest.mark.slow
def test_tuned_arms_are_confirmed_on_draws_that_no_study_has_seen(desk: Desk) -> None:
    words = {**STAGE2, "tune": "on", "n_trials": "2", "margin": "0"}
    decision = desk.decide(**words)
    assert [pair.key.draw for pair in decision.pairs] == [1, 2]
    judged = {
        run_id
        for pair in decision.pairs
        for run_id in (pair.treatment.run_id, pair.control.run_id)
    }
    tuned = [
        run for run in runs() if run.info.run_id not in judged and run.data.tags["draw"] == "0"
    ]
    confirmed = [run for run in runs() if run.data.tags["draw"] != "0"]
    assert len(runs()) == len(tuned) + len(confirmed)
    seen, fresh = (
        {
            digest
            for run in part
            for digest in digests_of_draw(settings_of(run), run.data.tags["z.data_sha256"])
        }
        for part in (tuned, confirmed)
    )
    assert seen
    assert len(fresh) == 36
    assert not seen & fresh
    check_test_images_unseen(runs(), decision.treatment.settings, 30)

    treatment, control = decision.tuned
    assert len(treatment.studies) == 2
    assert list(control.studies) == [2]
    epochs = planned_epochs(decision.control)
    assert planned_epochs(control.arm) == planned_epochs(treatment.arm) == epochs
    assert control.arm.settings.training(1) == treatment.arm.settings.training(1)
    for tuned_arm in decision.tuned:  # what was set by hand stays
        for number in range(1, tuned_arm.arm.last + 1):
            training = tuned_arm.arm.settings.training(number)
            assert (training.lr, training.batch_size) == (0.01, 8)
    for pair in decision.pairs:
        runs_of_pair = [mlflow.get_run(one.run_id) for one in (pair.treatment, pair.control)]
        assert epochs_of(runs_of_pair[0]) == epochs_of(runs_of_pair[1])

    decided = runs("decision")[0]
    markdown = artifact(decided, "report.md").read_text()
    for arm, results in zip(
        decision.tuned,
        ([p.treatment for p in decision.pairs], [p.control for p in decision.pairs]),
        strict=True,
    ):
        assert arm.val["val_acc"]
        gap = 100 * (arm.val["val_acc"] - statistics.mean(result.test for result in results))
        assert f"optimism gap {gap:+.2f} pp" in markdown
        for run_id in arm.run_ids:
            study = mlflow.get_run(run_id)
            assert study.data.tags["verdict"] == decision.verdict.state
        last = mlflow.get_run(arm.run_ids[-1])  # without a margin the best trial is taken
        assert last.data.metrics["best/value"] == pytest.approx(arm.val["val_acc"])
        assert last.data.tags["kind"] == "study"

    before = {run.info.run_id for run in runs()}
    run_again(decided, desk)
    assert {run.info.run_id for run in runs()} == before
    again = runs("decision")[-1].data.tags
    assert [again[tag] for tag in VERDICT_TAGS] == [decided.data.tags[tag] for tag in VERDICT_TAGS]


@pytest.mark.slow
def test_a_control_with_stages_of_its_own_has_as_many_trials_in_all_as_the_treatment(
    desk: Desk,
) -> None:
    words = {"treatment": "three_stage", "control": "two_stage", "tune": "on", "n_trials": "1"}
    decision = desk.decide(**words, **OFF, looks="2")
    treatment, control = decision.tuned
    assert (list(treatment.studies), list(control.studies)) == ([1, 2, 3], [1, 2])
    trials = Counter(run.data.tags["study"] for run in runs("trial"))
    assert [trials[name] for name in treatment.studies.values()] == [1, 1, 1]
    assert [trials[name] for name in control.studies.values()] == [2, 2]  # 3 in all, rounded up
    assert decision.steps == [12, 12]
