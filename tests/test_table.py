"""The table of entry points: every row works, YAML files are read once, faults come first."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import mlflow
import pytest

from pipeline.cli import main
from pipeline.entries.command_line.parser import build_parser, parse
from pipeline.entries.command_line.plans import PRETRAIN_DEFAULTS
from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.errors import SettingsError
from pipeline.settings.layers import preset_layer
from pipeline.settings.run import RUN_KEYS, THRESHOLD_KEYS, TRAIN_KEYS, ExperimentSettings
from pipeline.settings.schedules import LEARNING_RATES
from tests.conftest import TINY, enter_store, inside, words_of, write_image_folder

ROOT = Path(__file__).resolve().parent.parent
OPENED: list[Path] = []
"""YAML files that were opened, in order."""


def _note(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and str(args[0]).endswith(".yaml"):
        OPENED.append(Path(str(args[0])))


sys.addaudithook(_note)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    """A store with images, a settings file, and the runs of a chain."""
    root = tmp_path_factory.mktemp("table")
    write_image_folder(root / "images", 24)
    own = {**TINY, "epochs": "1", "train_per_class": "2", "val_per_class": "2"}
    own |= {"data": str(root / "images"), "cache_dir": str(root / "cache")}
    own |= {"test_per_class": "8", "preset": "images", "log_model": "on"}
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in own.items()]
    (root / "mine.yaml").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        enter_store(root / "work", empty_database, patch)
    with inside(root / "work"):
        assert main(["stage2", "--config", str(root / "mine.yaml")]) == 0
        yield root


def stage_run(number: int) -> str:
    runs = mlflow.search_runs(["0"], f"tags.stage = '{number}'", output_format="list")
    return str(runs[-1].info.run_id)


# by setting, not by entry point: a new entry point has its words, too
SMALLEST = {
    "number": "1",
    "n_trials": "1",
    "workers": "1",
    "stage": "1",
    "draws": "2",  # of the four that there are
    "tune": "on",
    "looks": "2",
    "beside": "1",
    "register_as": "off",
    "schedules": "full,two_stage",
}
NOTHING_TYPED = (
    "entries.blocks",
    "entries.clean",
    "entries.gate",
    "entries.refit",
    "entries.predict",
    "runs.",
    "app.",
)
"""Where what is trained, if anything, has the settings of a run that there is."""
ENDLESS = ("app",)
"""Entry points that end by Ctrl-C alone: their own tests start them."""


@pytest.mark.parametrize("name", [name for name in ENTRY_POINTS if name not in ENDLESS])
def test_every_entry_point_reads_each_yaml_file_once(name: str, work: Path) -> None:
    """The whole command: settings are resolved from one reading, and handed on."""
    row = ENTRY_POINTS[name]
    out = work / ("w.safetensors" if name == "pretrain" else "table.csv")
    places = {"run_id": stage_run(2), "out": str(out), "images": str(work / "images")}
    options = {key: text for key, text in {**SMALLEST, **places}.items() if key in row.offered}
    if name == "stage3":
        options["parent_run_id"] = stage_run(2)
    if row.trains:
        text = (work / "mine.yaml").read_text()
        if "norm_stats" in row.refused:
            text = text.replace('norm_stats: "target"\n', "")
        (work / f"{name}.yaml").write_text(text)
        options["config"] = str(work / f"{name}.yaml")
    OPENED.clear()
    preset_layer.cache_clear()
    assert main(words_of(name, options)) == 0
    read = Counter(p for p in OPENED if p.is_relative_to(ROOT) or p.parent == work)
    if "config" in options:
        assert read[Path(options["config"])] == 1
    assert set(read.values()) == ({1} if row.run_keys else set())


def test_a_fault_in_any_entry_points_settings_comes_before_torch() -> None:
    code = (
        "import json, sys\n"
        "from pipeline.cli import main\n"
        "codes = [main(words) for words in json.loads(sys.argv[1])]\n"
        "print(codes, [m for m in ('torch', 'mlflow', 'optuna', 'numpy') if m in sys.modules])\n"
    )
    wrong = {"epochs": "x", "device": "abacus", "gate_flat": "-1"}
    faults = [
        words_of(name, {key: text})
        for name, entry_point in ENTRY_POINTS.items()
        for key, text in {"rope": "1", **wrong}.items()
        if key == "rope" or key in entry_point.offered
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(faults)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == f"{[2] * len(faults)} []"
    assert len(done.stderr.splitlines()) == len(faults)


def help_of(name: str) -> str:
    with redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([name, "--help"])
    return shown.getvalue()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_shows_every_option_that_a_person_types_and_thresholds_last(name: str) -> None:
    shown = re.findall(r"^  --(\w+) ", help_of(name), re.MULTILINE)
    assert set(shown) == set(ENTRY_POINTS[name].offered)
    first_threshold = next((n for n, key in enumerate(shown) if key in THRESHOLD_KEYS), len(shown))
    assert set(shown[first_threshold:]) <= set(THRESHOLD_KEYS)  # what is run comes first
    of_runs = [key for key in shown if key in RUN_KEYS or key in TRAIN_KEYS]
    order = [*ExperimentSettings.model_fields, *TRAIN_KEYS, *RUN_KEYS]
    assert of_runs == sorted(of_runs, key=order.index)


@pytest.mark.parametrize(
    ("name", "key", "offering"),
    [
        ("gate", "signal_confidence", "stage2"),
        ("gate", "enforce_gate", "stage3"),
        ("stage2", "gate_flat", "gate"),
        ("stage1", "signal_spread_p", "stage2"),
        ("compare", "gate_flat", "decide"),
    ],
)
def test_a_setting_without_an_effect_is_taken_and_not_offered(
    name: str, key: str, offering: str
) -> None:
    """So that all stages can be given the same options."""
    assert key in ENTRY_POINTS[offering].offered
    assert key not in ENTRY_POINTS[name].offered
    assert parse([name, f"--{key}", "1"]) == (name, {key: "1"})


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_and_docs_tell_which_settings_are_taken_without_an_effect(name: str) -> None:
    _, told, last = " ".join(help_of(name).split()).partition(f"without an effect on {name}: ")
    assert (
        last.split(", ") == list(ENTRY_POINTS[name].silent)
        if told
        else not ENTRY_POINTS[name].silent
    )
    page = (
        (ROOT / "docs" / "settings.md").read_text().partition("## Settings without an effect")[2]
    )
    row = re.search(rf"^\| `{name}` \| (.*) \|$", page, re.MULTILINE)
    assert (re.findall(r"\w+", row[1]) if row else []) == list(ENTRY_POINTS[name].silent)


def test_a_setting_of_other_entry_points_is_refused_and_names_them() -> None:
    message = r"setting views .* is one of .*stage1.*, not of evaluate: leave it out$"
    with pytest.raises(SettingsError, match=message):
        parse(["evaluate", "--views", "1"])


def test_help_shows_the_values_that_are_used_where_nothing_is_given() -> None:
    shown = {name: " ".join(help_of(name).split()) for name in ENTRY_POINTS}
    for rate in LEARNING_RATES.values():
        assert (
            f"{rate:g} " in shown["stage2"].partition("--lr VALUE")[2].partition("--lr_decay")[0]
        )
    for name in ("evaluate", "gate"):
        data = shown[name].partition("--data VALUE")[2].partition("--label_column")[0]
        assert "(default: that of the run)" in data
        assert "three_stage" not in shown[name]
    for key, value in PRETRAIN_DEFAULTS.items():
        mine = shown["pretrain"].partition(f"--{key} VALUE")[2].partition(" --")[0]
        assert f"(default: {value}" in mine


def test_help_says_which_way_lr_decay_goes() -> None:
    shown = " ".join(help_of("stage3").split()).partition("--lr_decay VALUE")[2]
    for words in (
        "lr * lr_decay ** depth",
        "0 for the head",
        "below 1 .* slowly",
        "above 1 faster",
    ):
        assert re.search(re.escape(words).replace(r"\.\*", ".*"), shown)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_that_train_nothing_offer_no_training_settings(name: str) -> None:
    trained_by = ENTRY_POINTS[name].work.startswith(NOTHING_TYPED)
    assert set(TRAIN_KEYS).isdisjoint(ENTRY_POINTS[name].offered) is trained_by


@pytest.mark.parametrize(("name", "given"), [("stage1", {}), ("stage", {"number": "1"})])
def test_a_parent_of_stage_1_is_refused_before_anything_is_written(
    name: str,
    given: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'm.db'}")
    assert main(words_of(name, {**given, "parent_run_id": "abc"})) == 2
    assert "stage 1 starts from pretrained weights: leave parent_run_id" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert ENTRY_POINTS["stage1"].read({"parent_run_id": "auto"})  # as MLproject's default


def test_a_stage_by_number_is_that_stage_and_needs_the_number() -> None:
    stage, stage2 = ENTRY_POINTS["stage"], ENTRY_POINTS["stage2"]
    options = {"lr": "0.1", "stage1.lr": "0.2"}
    assert (
        stage.plan(stage.read({**options, "number": "2"})).settings
        == stage2.plan(stage2.read(options)).settings
    )
    with pytest.raises(SettingsError, match="number is not given"):
        stage.plan(stage.read(options))
    with pytest.raises(SettingsError, match="three_stage has 3 stages, got stage 4"):
        stage.plan(stage.read({"number": "4"}))
