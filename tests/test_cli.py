"""The command line: words to options, exit codes, one line a fault, Ctrl-C."""

from __future__ import annotations

import io
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.entries.command_line.parser import parse
from pipeline.errors import SettingsError
from tests.conftest import Command, PointAt


def test_options_are_taken_as_words_or_with_an_equals_sign_or_as_for_mlflow_run() -> None:
    words = [
        "stage2",
        "--lr",
        "0.1",
        "--stage1.epochs=3",
        "--data=a b",
        "-P",
        "draw=1",
        "-Pseed=2",
    ]
    options = {"lr": "0.1", "stage1.epochs": "3", "data": "a b", "draw": "1", "seed": "2"}
    assert parse(words) == ("stage2", options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stage2 --epoch 3", r"unknown setting epoch .*did you mean epochs\?"),
        ("mian", r"unknown entry point mian .*did you mean main\?"),
        ("stage-3", r"unknown entry point stage-3 .*did you mean stage3\?"),
        ("xyzzy", r"unknown entry point xyzzy .*name one of these"),
        ("stage2 --lr 0.1 -P lr=0.2", r"^lr .*more than once: leave all but one out"),
        ("stage2 what", "unexpected words on the command line: what: see --help"),
        ("stage2 lr=1", "unexpected words on the command line: lr=1: write -P lr=1"),
        ("main --rope_pp 1", r"rope_pp .* is one of decide, compare, not of main"),
        (
            "tune --run_id abc",
            r"run_id .* is one of evaluate, refit, predict, app, gate, not of tune",
        ),
        ("stage3 -P", "^-P .*is no setting: write -P key=value"),
        ("stage3 -P =1", "^-P =1 .*is no setting: write -P key=value"),
        ("stage3 -P lrr=1", "unknown setting lrr"),
        ("evaluate --stage1.epochs 1", r"stage1\.epochs .*evaluate trains no stage"),
        ("main --control.lr 1", r"control\.lr .*is one of decide, not of main"),
        ("stage3 -P lr", "^-P lr .*is no setting: write -P key=value"),
    ],
)
def test_words_that_are_no_settings_are_refused(words: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(words.split())


@pytest.mark.parametrize("dashed", [r"-cam(\d+)", "-1", "-"])
def test_a_value_may_begin_with_a_dash_however_it_is_typed(dashed: str) -> None:
    """`mlflow run` passes options on as two words."""
    for words in (["--group", dashed, "--lr", "1"], ["-P", f"group={dashed}", "-Plr=1"]):
        _, options = parse(["main", *words])
        assert options == {"group": dashed, "lr": "1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "resnet19"], "did you mean resnet18"),
        (["--data", "nowhere"], "data=nowhere: neither digits"),
        (["--weights", "nowhere.pth"], "weights=nowhere.pth: neither imagenet"),
        (["--backbone", "resnet34"], "weights=tiny_imagenet are for resnet18"),
        (["--train_per_class", "100"], "too few images in class"),
        (["--draw", "1"], "draw 1 asked for, the pool holds 1 draw (0 to 0)"),
        (["--device", "cuda"], "device=cuda is not available here"),
        (["--config", "nowhere.yaml"], "cannot read"),
        (["--parent_run_id", "abc"], "run abc does not exist"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (
            ["--parent_run_id", "abc", "--parent_run_id", "abc"],
            "parent_run_id (command line) is given more",
        ),
        (["--data", ""], "data must not be empty"),
    ],
)
def test_a_fault_is_one_line_exit_code_2_and_no_open_run(
    store: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    import mlflow

    assert main(["stage2", *words, "--cache_dir", str(store / "cache")]) == 2
    output = capfd.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in output.err + output.out
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_a_named_cache_folder_that_cannot_be_made_is_one_line(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["stage1", "--cache_dir", str(tmp_path / "file" / "cache")]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: cache_dir={tmp_path}/file/cache cannot be made (")
    assert "leave cache_dir out" in error


def test_unreadable_images_are_named_all_at_once(
    store: Path, image_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in (image_folder / "apple").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    words = ["--data", str(image_folder), "--train_per_class", "2", "--val_per_class", "2"]
    words += ["--weights", "tiny_imagenet"]
    assert main(["stage1", *words, "--cache_dir", str(store / "cache")]) == 2
    error = capfd.readouterr().err
    assert "cannot read 4 of 12 images: " in error
    assert error.count(str(image_folder / "apple")) == 4


def test_an_unreachable_server_is_one_line_at_once(
    store: Path, point_at: PointAt, capfd: pytest.CaptureFixture[str]
) -> None:
    point_at("http://127.0.0.1:9")
    assert main(["stage1"]) == 2
    assert "no tracking server answers at MLFLOW_TRACKING_URI" in capfd.readouterr().err


class _Trap:
    """Its finaliser is interrupted: Python drops what a finaliser raises."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class _Terminal(io.StringIO):
    """Sets off a trap at the first word, then is slow."""

    trapped = False

    def write(self, text: str) -> int:
        if not self.trapped:
            self.trapped = True
            _Trap()
            time.sleep(1)
        return super().write(text)


def test_ctrl_c_that_comes_inside_a_finaliser_stops_the_command_all_the_same(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("sys.stdout", _Terminal())
    try:
        assert command("stage1") == 130
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    runs = mlflow.search_runs(["0"], output_format="list")
    assert {run.info.status for run in runs} <= {"KILLED"}
    assert all("acc/val" not in run.data.metrics for run in runs)  # nothing was trained


def test_a_16_bit_image_folder_trains(store: Path, tmp_path: Path) -> None:
    root = tmp_path / "deep"
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(4):
            level = 10_000 + 40_000 * label + 500 * number
            Image.new("I;16", (40, 30), level).save(root / name / f"{number}.png")
    words = ["--data", str(root), "--train_per_class", "2", "--val_per_class", "2"]
    words += ["--image_size", "32", "--epochs", "1", "--log_model", "off", "--log_pictures", "off"]
    words += ["--weights", "tiny_imagenet"]
    assert main(["stage1", *words, "--cache_dir", str(store / "cache")]) == 0
