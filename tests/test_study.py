"""Studies: names by content, what counts as finished, which is best, the storage's faults."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline.errors import StudyError
from pipeline.runs.session import Session
from pipeline.settings.search_space import Choices, Range, SearchSpace, tune_plan
from pipeline.tracking import Tracking
from pipeline.tuning.spec import Spec, suggest
from pipeline.tuning.storage.access import open_storage, patiently, storage_url
from pipeline.tuning.storage.trial_state import best_of, finished_of, outcomes
from pipeline.tuning.study import Study, sampler_seed
from tests.conftest import SMALL_NET, TINY, Command
from tests.helpers import request_of
from tests.postgres import Postgres
from tests.test_run_stage import runs
from tests.test_trials import LR, SPEC
from tests.test_tuning import TUNE, space_file, studies

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


def study_name(options: dict[str, str]) -> str:
    """The name of the study that a command works on."""
    plan = tune_plan(request_of("tune", options))
    tracking = Tracking.connect()
    draws = range(plan.settings.draw, plan.settings.draw + plan.tune.draws)
    sessions = {
        draw: Session.open(
            plan.settings.model_copy(update={"draw": draw}), tracking, lambda _: None
        )
        for draw in draws
    }
    [(number, space)] = plan.spaces.items()
    return Spec.of(sessions, number, space, plan.tune.objective).name


OTHER_STUDIES = [
    {"draw": "1"},
    {"draws": "2"},
    {"seed": "1"},
    {"data_seed": "1"},
    {"objective": "val_loss"},
    {"objective": "val_macro_f1"},
    {"select": "val_loss"},
    {"optimizer": "sgd"},
    {"stage1.epochs": "3"},
    {"stage1.lr": "0.004"},
    {"image_size": "33"},
    {"norm_stats": "source"},
    {"schedule": "lp_ft"},
    {"backbone": "mobilenet_v2"},
    {"val_per_class": "2"},
]
SAME_STUDY = [
    {"select": "val_acc"},
    {"n_trials": "50"},
    {"timeout": "9"},
    {"workers": "3"},
    {"heartbeat": "7"},
    {"stage2.lr": "0.1"},
    {"cache": "off"},
    {"device": "cpu"},
    {"log_model": "on"},
    {"log_pictures": "on"},
    {"gate_flat": "0.1"},
]


def test_a_study_is_named_by_all_that_its_values_depend_on_and_by_nothing_else(
    store: Path, image_folder: Path
) -> None:
    text = "lr: {low: 1.0e-3, high: 0.1, log: true}\nnorm: [keep, adapt]\n"
    base = {"data": str(image_folder), "cache_dir": str(store / "cache"), **TINY, **TUNE}
    base |= {"train_per_class": "3", "val_per_class": "3", "space": space_file(store, text)}
    name = study_name(base)
    assert name.startswith(f"stage1-three_stage-{SMALL_NET}-")
    others = [study_name({**base, **change}) for change in OTHER_STUDIES]
    others += [
        study_name({**base, "space": space_file(store, other, "other.yaml")})
        for other in (
            text.replace("0.1,", "0.2,"),
            text.replace(", log: true", ""),
            text.replace(", adapt", ""),
            "norm: [keep, adapt]\n",
        )
    ]
    assert len({name, *others}) == 1 + len(others)
    same = [study_name({**base, **change}) for change in SAME_STUDY]
    elsewhere = space_file(store, f"# words\n{text}", "elsewhere.yaml")
    assert {*same, study_name({**base, "space": elsewhere})} == {name}


def test_the_same_command_again_finds_its_study_and_adds_nothing(
    command: Command, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {**TUNE, "space": space_file(store, "lr: {low: 1.0e-3, high: 0.1, log: true}\n")}
    assert command("tune", **{**options, "n_trials": "2"}) == 0
    before = [len(runs(kind)) for kind in ("study", "trial", "stage")]
    assert before == [1, 2, 2]
    capfd.readouterr()
    for fewer in ("2", "1"):
        assert command("tune", **{**options, "n_trials": fewer}) == 0
        assert "has its 2 trials: none is added" in capfd.readouterr().out
    assert [len(runs(kind)) for kind in ("study", "trial", "stage")] == before
    assert len(studies(store)) == 1
    assert set(runs("study")["status"]) == {"FINISHED"}


def trial(state: TrialState, value: float | None = None, *, reason: bool = False) -> FrozenTrial:
    """A trial that has come to that state."""
    attrs = {"reason": "said"} if reason else {}
    return optuna.create_trial(state=state, value=value, user_attrs=attrs)


@pytest.mark.parametrize(
    ("trials", "finished", "running"),
    [
        ([trial(FAIL, reason=True)], 1, 0),
        ([trial(FAIL)], 0, 0),  # its worker was lost: the retry counts
        ([trial(FAIL), trial(WAITING)], 0, 0),
        ([trial(FAIL), trial(RUNNING)], 0, 1),
        ([trial(FAIL), trial(COMPLETE, 0.5)], 1, 0),
        ([trial(COMPLETE, 0.5), trial(PRUNED), trial(RUNNING), trial(WAITING)], 2, 1),
    ],
)
def test_a_trial_counts_once_it_has_ended_by_itself(
    trials: list[FrozenTrial], finished: int, running: int
) -> None:
    counts = outcomes(trials)
    assert (finished_of(counts), counts["running"]) == (finished, running)


@pytest.mark.parametrize(
    ("trials", "highest", "lowest"),
    [
        ([trial(PRUNED), trial(FAIL, reason=True), trial(RUNNING), trial(WAITING)], None, None),
        ([trial(COMPLETE, 0.5), trial(COMPLETE, 0.7), trial(COMPLETE, 0.2)], 1, 2),
        ([trial(FAIL), trial(COMPLETE, 0.0), trial(COMPLETE, 0.0)], 1, 1),
        ([trial(PRUNED, 0.9), trial(COMPLETE, 0.5), trial(PRUNED, 0.1)], 1, 1),
        ([trial(COMPLETE, -0.5), trial(COMPLETE, 0.0)], 1, 0),
    ],
)
def test_the_best_trial_is_a_completed_one_and_the_earliest_of_equals(
    trials: list[FrozenTrial], highest: int | None, lowest: int | None
) -> None:
    study = optuna.create_study()
    study.add_trials(trials)
    for maximised, wanted in ((True, highest), (False, lowest)):
        best = best_of(study.trials, maximised=maximised)
        assert (best.number if best else None) == wanted


def test_suggestions_are_of_the_settings_own_types_and_inside_the_space() -> None:
    space = SearchSpace(
        "",
        {
            "epochs": Range(low=5, high=20, step=5),
            "lr": Range(low=1e-4, high=1e-2, log=True),
            "label_smoothing": Range(low=0.0, high=0.2, step=0.05),
            "norm": Choices(("adapt", "keep")),
        },
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        values = suggest(study.ask(), space)
        assert [type(value) for value in values.values()] == [int, float, float, str]
        assert [k for k, d in space.dimensions.items() if not d.holds(values[k])] == []
    assert {t.params["epochs"] for t in study.trials} == {5, 10, 15, 20}
    assert study.trials[0].distributions["lr"] == FloatDistribution(1e-4, 1e-2, log=True)


def test_the_settings_of_the_stage_before_are_tried_second(tmp_path: Path) -> None:
    """Both arms of a decision start from the same two points, whatever stage 2 was tuned to."""
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    study = Study.join(storage, replace(SPEC, parents={"lr": 5e-3}), seed=0)
    assert [suggest(study.optuna.ask(), LR)["lr"] for _ in range(2)] == [1e-3, 5e-3]
    for name, parents in (("same", SPEC.defaults), ("outside", {"lr": 5.0})):
        spec = replace(SPEC, name=name, parents=parents)
        assert len(Study.join(storage, spec, seed=0).trials) == 1


def test_a_seed_gives_the_same_trials_but_not_to_those_who_join(tmp_path: Path) -> None:
    def rates(study: Study) -> list[object]:
        return [suggest(study.optuna.ask(), LR)["lr"] for _ in range(3)]

    first, again, other = (
        Study.join(open_storage(f"sqlite:///{tmp_path}/{name}.db"), SPEC, seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    joined = Study.join(first.storage, SPEC, seed=0)
    assert [first.created, joined.created] == [True, False]
    wanted = rates(first)
    assert wanted[0] == 1e-3
    assert rates(again) == wanted
    assert rates(other)[1:] != wanted[1:]
    assert not {*rates(joined)} & {*wanted}


def test_stages_begin_with_other_random_trials_and_arms_of_a_stage_with_the_same() -> None:
    seeds = {(seed, stage): sampler_seed(seed, stage) for seed in (0, 1) for stage in (1, 2, 3)}
    assert len({*seeds.values()}) == len(seeds)
    assert sampler_seed(1, 3) == seeds[1, 3]


@pytest.mark.parametrize(
    ("given", "tracking_uri", "url"),
    [
        ("", "sqlite:////data/mlflow.db", "sqlite:////data/optuna.db"),
        ("", "http://host:5000", "sqlite:///optuna.db"),
        ("sqlite:///mine.db", "sqlite:////data/mlflow.db", "sqlite:////data/mine.db"),
        ("sqlite:////mine.db", "sqlite:////data/mlflow.db", "sqlite:////mine.db"),
        ("", r"sqlite:////da\g<2>ta\1/mlflow.db", r"sqlite:////da\g<2>ta\1/optuna.db"),
        (
            "sqlite+pysqlite:///mine.db?timeout=5",
            "sqlite:////data/mlflow.db",
            "sqlite+pysqlite:////data/mine.db?timeout=5",
        ),
        ("postgresql://u:p@h/o", "postgresql://u:***@h/mlflow", "postgresql://u:p@h/o"),
    ],
)
def test_the_storage_lies_beside_mlflows_unless_said_otherwise(
    given: str, tracking_uri: str, url: str
) -> None:
    assert storage_url(given, tracking_uri) == url


@pytest.mark.parametrize(
    ("given", "tracking_uri"),
    [
        ("sqlite:///mlflow.db", "sqlite:////data/mlflow.db"),
        ("postgresql://u:secret@h/mlflow", "postgresql://u:***@h/mlflow"),
    ],
)
def test_mlflows_own_database_is_no_storage(given: str, tracking_uri: str) -> None:
    with pytest.raises(StudyError, match="is MLflow's own database: give Optuna one") as caught:
        storage_url(given, tracking_uri)
    assert "secret" not in str(caught.value)


STORAGES = [
    ("sqlite:///mlflow.db", r"mlflow\.db is MLflow's own database: give Optuna one of its own"),
    ("sqlite:///../work/mlflow.db", r"mlflow\.db is MLflow's own database"),
    ("sqlite+pysqlite:///mlflow.db", r"mlflow\.db is MLflow's own database"),
    ("sqlite:///other.db", r"holds tables of another program, or of another version"),
    ("sqlite:////nowhere/optuna.db", r"cannot be used: there is no folder /nowhere: name"),
    ("sqlite:///new/optuna.db", r"cannot be used: there is no folder .*/work/new: name"),
    ("sqlite:///images.txt/optuna.db", r"cannot be used: .*images\.txt is not a folder"),
    ("sqlite:///.", r"cannot be used: .* is a folder"),
    ("sqlite:///images.txt", r"cannot be used \(.*file is not a database\)"),
    ("sqlite://", r"storage=sqlite:// is forgotten when this command ends: name a file"),
    ("optuna.db", r"write it like sqlite:///optuna.db"),
    ("sqlite:///:memory:", r"is forgotten when this command ends"),
    ("journal:////nowhere/o.journal", r"cannot be used: there is no folder /nowhere: name"),
    ("journal:///images.txt", r"images\.txt is not a journal of Optuna: name another file"),
    ("journal:///other.db", r"other\.db is not a journal of Optuna: .*write sqlite:/// before"),
    ("images.txt", r"images\.txt is not a journal of Optuna"),
    ("other.db", r"other\.db is not a journal of Optuna: .*write sqlite:/// before"),
    ("journal://o.journal", r"a journal is a file: write journal:///"),
    ("redis://:qqq@host/0", r"redis://:\*\*\*@host/0: Optuna can keep a journal there, but"),
    ("grpc://host:13000", r"Optuna's proxy passes no heartbeats on: name the database behind it"),
    ("foo://me:qqq@host/db", r"foo://me:\*\*\*@host/db is not the URL of a storage"),
    ("postgresql+foo://me:qqq@host/db", r"\*\*\*@host/db is not the URL of a storage"),
    ("mysql://me:qqq@host/db", r"me:\*\*\*@host/db: its driver is not installed \(.*pip"),
    ("postgresql+asyncpg://me:qqq@host/db", r"driver is not installed \(No module named"),
    ("postgresql://me:qqq@127.0.0.1:9/db", r"cannot be used \(.*Connection refused\)"),
    ("postgresql://me@realm:qqq@127.0.0.1:9/db", r"realm:\*\*\*@127\.0\.0\.1:9/db cannot be"),
    ("postgresql://127.0.0.1:9/db?user=me&password=qqq", r"password=\*\*\* cannot be used"),
    ("postgresql://me:qqq@host:port/db", r"me:\*\*\*@host:port/db is not the URL of a storage"),
    ("postgresql://me:q@qqq@host/db", r"me:\*\*\*@host/db: .* as it is"),
    ("postgresql://me:q@q/qq@host/db", r"me:\*\*\*@host/db: it holds a /, .* as it"),
    ("postgres://me:qqq@host/db", r"SQLAlchemy knows no postgres://: write postgresql://"),
    (
        "/nowhere/optuna.db",
        r"storage=/nowhere/optuna\.db is not the URL of a storage .* sqlite:///",
    ),
]


@pytest.mark.parametrize(("storage", "message"), STORAGES)
def test_a_storage_that_cannot_be_is_one_line_without_a_password_and_no_open_run(
    command: Command,
    store: Path,
    capfd: pytest.CaptureFixture[str],
    storage: str,
    message: str,
) -> None:
    (store / "images.txt").write_text("no database\n" * 100)
    (store / "other.db").write_bytes((store / "mlflow.db").read_bytes())
    space = space_file(store, "lr: [0.01]\n")
    assert command("tune", **TUNE, space=space, storage=storage) == 2
    output = capfd.readouterr()
    [line] = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert "Traceback" not in output.err
    assert not re.search("q[@/q]", output.out + output.err)
    assert "training and validation images" not in output.out
    assert mlflow.search_runs(["0"], output_format="list") == []


@pytest.mark.parametrize("entry_point", ["main", "stage1", "decide", "compare"])
def test_studies_that_cannot_be_read_are_missed_before_images_are_read(
    entry_point: str, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    tuned = {"decide": {"tune": "on"}}.get(entry_point, {"tuned": "on"})
    assert command(entry_point, **tuned, storage="sqlite:////nowhere/optuna.db") == 2
    output = capfd.readouterr()
    (line,) = output.err.splitlines()
    assert "storage=sqlite:////nowhere/optuna.db" in line
    assert output.out == ""
    assert mlflow.search_runs(["0"], output_format="list") == []


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql"])
def test_a_study_is_kept_gone_on_with_and_used_in_every_kind_of_storage(
    kind: str, command: Command, store: Path, request: pytest.FixtureRequest
) -> None:
    storage = f"{kind}:///{store}/studies.{kind}"
    if kind == "postgresql":
        storage = request.getfixturevalue("postgres").url("kinds")
    space = space_file(store, "lr: [3.0e-3, 1.0e-2]\n")
    assert command("tune", **TUNE, space=space, storage=storage) == 0
    assert command("tune", **{**TUNE, "n_trials": "4"}, space=space, storage=storage) == 0
    assert len(runs("trial")) == 4
    assert set(runs("trial")["status"]) == {"FINISHED"}
    assert command("stage1", tuned="on", storage=storage, **{"stage1.epochs": "2"}) == 0


def test_a_password_is_shown_nowhere(
    command: Command, store: Path, postgres: Postgres, capfd: pytest.CaptureFixture[str]
) -> None:
    url = postgres.url("studies").replace("postgres@", "postgres:xyzzy@")
    space = space_file(store, "lr: [3.0e-3]\n")
    assert command("tune", **TUNE, space=space, storage=url) == 0
    assert command("stage1", tuned="on", storage=url, **{"stage1.epochs": "2"}) == 0
    output = capfd.readouterr()
    assert "postgres:***@127.0.0.1" in output.out
    assert "-P tuned=true (with the same storage in OPTUNA_STORAGE)" in output.out
    assert "xyzzy" not in output.out + output.err
    # MLflow's database and artifacts
    assert [p for p in store.rglob("*") if p.is_file() and b"xyzzy" in p.read_bytes()] == []


def test_a_password_that_mlflow_run_has_recorded_is_told(
    command: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, notes in (("sqlite:////nowhere/o.db", 0), ("postgresql://me:qqq@127.0.0.1:9/o", 1)):
        monkeypatch.setenv("MLFLOW_RUN_ID", mlflow.MlflowClient().create_run("0").info.run_id)
        assert command("tune", **TUNE, storage=url) == 2
        said = capfd.readouterr().out
        assert said.count("name it in OPTUNA_STORAGE instead of on the command line") == notes
        assert "qqq" not in said


def test_a_storage_is_named_by_the_environment_or_by_a_journal_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://me@host/optuna")
    assert storage_url("", "http://host:5000") == "postgresql://me@host/optuna"
    assert storage_url(" sqlite:///o.db ", "http://host:5000") == "sqlite:///o.db"
    (tmp_path / "o.journal").touch()
    for given in ("o.journal", f"{tmp_path}/o.journal"):
        assert storage_url(given, "sqlite:////data/m.db") == f"journal:///{tmp_path}/o.journal"


def test_a_server_that_is_away_is_waited_for_and_told_once_but_not_for_ever_nor_a_bug() -> None:
    lines: list[str] = []
    answers: list[Exception] = [OSError("away"), OSError("still away"), KeyError("bug")]

    def ask() -> int:
        raise answers.pop(0) if len(answers) > 1 else answers[0]

    with pytest.raises(KeyError, match="bug"):
        patiently(ask, (OSError,), lines.append, every_s=0)
    assert lines == ["note: waiting for the storage or MLflow (away)"]
    answers = [OSError("away")]
    with pytest.raises(OSError, match="away"):
        patiently(ask, (OSError,), lines.append, for_s=-1, every_s=0)
