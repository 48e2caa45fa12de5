"""Is tuning worth it? Each stage tuned on some draws, then confirmed on draws no study has seen.

    python benchmarks/tuned.py --data CIFAR_FOLDER --weights STARTER --trials 20 --out tuned

`tune` runs all stages on draws 0 and 1; then each stage is trained on fresh draws with the
defaults (the preset's, and what `--set` says), with the settings of its best trial, and with those
that `tuned=true` takes (the best only where it beats the defaults by more than noise), the two
latter from the stages before as `tuned=true` has them, and scored on the held-out test split.
Out: a CSV with a row a draw, stage and arm, and a Markdown table: paired gains with 95% intervals,
and the winner's curse, the best trial's score minus what the same settings reach on fresh draws'
validation images.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.entries.command_line.table import perform  # noqa: E402
from pipeline.runs.find_or_run import find_or_run  # noqa: E402
from pipeline.runs.scoring import logits_of, read_test_split  # noqa: E402
from pipeline.runs.session import Session  # noqa: E402
from pipeline.runs.sources import source_of  # noqa: E402
from pipeline.settings.request import Request  # noqa: E402
from pipeline.stats.metrics import score_logits  # noqa: E402
from pipeline.tracking import Tracking  # noqa: E402
from pipeline.tuning.worker import Tuned  # noqa: E402

TUNING_DRAWS = 2


def confirm(options: dict[str, str], done: Sequence[Tuned], draws: Sequence[int]) -> pd.DataFrame:
    """Both arms on fresh draws: validation and test accuracy of each tuned stage."""
    tracking, rows, test = Tracking.connect(), [], None
    for draw in draws:
        settings = Request.read({**options, "draw": str(draw)}).settings()
        first = Session.open(settings, tracking, lambda _: None)
        if test is None:
            test = read_test_split(source_of(settings), settings, print)
        chosen = first
        for one in done:  # a study's trials start from what was chosen for the stages before
            number, best = one.study.spec.stage.number, one.study.best
            assert best is not None
            arms = {
                "preset": first,
                "best": chosen.with_training(number, best.params),
                "tuned": chosen.with_training(number, one.settings),
            }
            for arm, session in arms.items():
                quiet = replace(session, is_trial=True)
                summary = find_or_run(quiet, number)
                backbone = quiet.restore(tracking.get(summary.run_id))
                prefix = backbone.frozen_segments(settings.stage(3).trainable)
                logits = logits_of(quiet, backbone, test, prefix)
                acc = score_logits(logits, test.labels)["acc"]
                rows.append(
                    {"draw": draw, "arm": arm, "stage": number, "val_acc": summary.val_acc}
                    | {"test_acc": acc}
                )
                sys.stderr.write(f"draw {draw} {arm} stage {number}: {acc:.4f}\n")
            chosen = arms["tuned"]
    return pd.DataFrame(rows)


def interval(gains: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95% t interval."""
    mean, error = float(gains.mean()), float(stats.sem(gains))
    half = error * float(stats.t.ppf(0.975, len(gains) - 1))
    return mean, mean - half, mean + half


def report(table: pd.DataFrame, done: Sequence[Tuned]) -> str:
    """The Markdown table."""
    lines = [
        "| stage | preset | best trial | its gain, pp (95%) | tuned | its gain, pp (95%) | best "
        "trial when tuning | confirmed | winner's curse, pp |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in done:
        number, best = one.study.spec.stage.number, one.study.best
        assert best is not None
        assert best.value is not None
        part = table[table["stage"] == number].pivot(index="draw", columns="arm")
        arms = {a: 100 * part["test_acc"][a].to_numpy() for a in ("preset", "best", "tuned")}
        cells = [f"{arms['preset'].mean():.1f}%"]
        for arm in ("best", "tuned"):
            mean, low, high = interval(arms[arm] - arms["preset"])
            cells += [f"{arms[arm].mean():.1f}%", f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"]
        confirmed = float(part["val_acc"]["best"].mean())
        curse = 100 * (best.value - confirmed)
        cells += [f"{best.value:.1%}", f"{confirmed:.1%}", f"{curse:+.2f}"]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    settings = [f"- stage {t.study.spec.stage.number}: `{dict(t.settings)}`" for t in done]
    return "\n".join([*lines, "", *settings]) + "\n"


def main() -> None:
    """Tune, confirm, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--draws", type=int, default=10, help="fresh draws for the confirmation")
    parser.add_argument("--stage", default="all", help="one stage, or all of them")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="beside the preset"
    )
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--work", type=Path, help="keeps the runs here and goes on from them")
    args = parser.parse_args()
    out = args.out.resolve()
    data, weights = str(Path(args.data).resolve()), str(Path(args.weights).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work / 'mlflow.db'}"
        os.chdir(work)
        options = {"preset": "cifar10_small", "data": data, "weights": weights}
        options |= {"cache_dir": str(work / "cache"), "log_model": "off"}
        options |= dict(one.split("=", 1) for one in args.set)
        study = {"stage": args.stage, "n_trials": str(args.trials), "draws": str(TUNING_DRAWS)}
        started = time.perf_counter()
        done = perform("tune", {**options, **study}, lambda s: print(s, file=sys.stderr))
        tuned_s = time.perf_counter() - started
        draws = range(TUNING_DRAWS, TUNING_DRAWS + args.draws)
        table = confirm(options, done, draws)
        table.to_csv(out.with_suffix(".csv"), index=False)
        text = f"{report(table, done)}\ntuning took {tuned_s:.0f} s\n"
    out.with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
