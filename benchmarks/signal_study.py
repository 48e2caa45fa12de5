"""Do the signals mean anything? How well each predicts what stage 3 truly gains.

    python benchmarks/signal_study.py --data CIFAR_FOLDER --weights STARTER --out docs/signal_study

For each draw stages 1 and 2 are trained, then stage 3 under several recipes, good and deliberately
bad ones. The true gain is stage 3's accuracy minus its parent's on the whole held-out test split,
which no signal has seen. Out: a CSV with a row a run, and a Markdown table of the area under the
ROC curve of each signal, once over all runs and once without the recipes that ruin any network.

Runs of one draw share their images and runs of one recipe their settings, so the 95% intervals
come from a bootstrap that draws both anew ("pigeonhole", Owen 2007, doi:10.1214/07-AOAS122).
`--table` reads the rows of an earlier study instead of training.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.data.base import read_images  # noqa: E402
from pipeline.data.open import open_source  # noqa: E402
from pipeline.runs.find_or_run import find_or_run  # noqa: E402
from pipeline.runs.scoring import predict  # noqa: E402
from pipeline.runs.session import Session  # noqa: E402
from pipeline.settings.request import Request  # noqa: E402
from pipeline.stats.metrics import score_logits  # noqa: E402
from pipeline.tracking import RunView, Tracking  # noqa: E402

RECIPES: dict[str, dict[str, str]] = {
    "default": {},
    "cautious": {"stage3.lr": "3e-5"},
    "short": {"stage3.epochs": "4"},
    "hot": {"stage3.lr": "2e-3"},
    "burning": {"stage3.lr": "2e-2", "stage3.warmup": "0"},
    "regularised": {"stage3.augment": "strong", "stage3.label_smoothing": "0.1"},
    "early parent": {"stage2.epochs": "2"},
}
RUINOUS = ("hot", "burning")
WANTED = {"positive": 1.0, "negative": -1.0}
NUMBERS = {
    "positive.val_acc_gain": ("signal/acc_gain", 1.0),
    "positive.val_loss_stable": ("signal/nll_change", -1.0),
    "positive.no_early_spike": ("signal/saturation_share", 1.0),
    "negative.train_acc_saturates": ("signal/saturation_share", 1.0),
    "negative.val_loss_rises": ("signal/loss_rise", -1.0),
    "negative.unstable_across_runs": ("signal/spread_p", 1.0),
}
"""The number behind each signal, and the direction in which it should go with a gain."""
TAGS = dict.fromkeys(NUMBERS, str)


def train_all(data: str, weights: str, draws: Sequence[int], cache: Path) -> pd.DataFrame:
    """Train every recipe on every draw; a row for each stage-3 run."""
    tracking, rows = Tracking.connect(), []
    test = None
    base = {"preset": "cifar10_small", "data": data, "weights": weights, "log_model": "off"}
    for draw in draws:
        session: Session | None = None
        accuracy: dict[str, float] = {}
        for recipe, changes in RECIPES.items():
            options = base | {"draw": str(draw), "cache_dir": str(cache)} | changes
            settings = Request.read(options).settings()
            if session is None:
                session = Session.open(settings, tracking, lambda _: None)
            session = replace(session, settings=settings, keys={}, done={})
            if test is None:
                split = open_source(data, cache).test
                assert split is not None
                test = read_images(split, np.arange(len(split.labels)), settings.image_size)
            parent = tracking.get(find_or_run(session, 2).run_id)
            run = tracking.get(find_or_run(session, 3).run_id)
            for one in (parent, run):
                if one.run_id not in accuracy:
                    backbone = session.restore(one)
                    logits = predict(backbone, test, session.dtype, session.device)
                    accuracy[one.run_id] = score_logits(logits, test.labels)["acc"]
            gain = 100 * (accuracy[run.run_id] - accuracy[parent.run_id])
            rows.append({"draw": draw, "recipe": recipe, "run_id": run.run_id, "gain_pp": gain})
            sys.stderr.write(f"draw {draw} {recipe}: {gain:+.2f} pp\n")
    return pd.DataFrame([row | _read(tracking.get(row["run_id"])) for row in rows])


def _read(run: RunView) -> dict[str, object]:
    """A run's signals, as they are once all siblings have finished."""
    signals = {
        k.removeprefix("signal."): v for k, v in run.tags.items() if k.startswith("signal.")
    }
    numbers = {key: run.metrics.get(key) for key, _ in NUMBERS.values()}
    return {"val_acc": run.metrics["best/val_acc"], **signals, **numbers}


def area(gained: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Area under the ROC curve; NaN where every run gained, or none."""
    if gained.all() or not gained.any():
        return float("nan")
    return float(roc_auc_score(gained, score))


def with_interval(
    table: pd.DataFrame, scores: NDArray[np.float64], margin_pp: float, rounds: int = 2000
) -> tuple[float, float, float]:
    """Area under the ROC curve for gains beyond `margin_pp`, with its 95% bootstrap interval."""
    gained = table["gain_pp"].to_numpy() > margin_pp
    draws, draw_of = np.unique(table["draw"], return_inverse=True)
    recipes, recipe_of = np.unique(table["recipe"], return_inverse=True)
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(rounds):
        draw_count = np.bincount(rng.integers(0, len(draws), len(draws)), minlength=len(draws))
        recipe_count = np.bincount(
            rng.integers(0, len(recipes), len(recipes)), minlength=len(recipes)
        )
        rows = np.repeat(np.arange(len(table)), draw_count[draw_of] * recipe_count[recipe_of])
        areas.append(area(gained[rows], scores[rows]))
    low, high = np.nanpercentile(areas, [2.5, 97.5])
    return area(gained, scores), float(low), float(high)


def report(table: pd.DataFrame, margin_pp: float) -> str:
    """The table of areas, of the tag and of the number behind it, as Markdown."""
    lines = [
        "| signal | fires in | AUC of the tag | AUC of its number | worth |",
        "|---|---|---|---|---|",
    ]
    for name, (number, direction) in NUMBERS.items():
        known = table[table[name].isin(["true", "false"])]
        sign = WANTED[name.partition(".")[0]]
        tag = with_interval(known, sign * (known[name] == "true").to_numpy(float), margin_pp)
        values = known[number].astype(float).fillna(2.0)  # never saturated: later than the end
        behind = with_interval(known, direction * values.to_numpy(), margin_pp)
        cells = [f"{a:.2f} ({low:.2f} to {high:.2f})" for a, low, high in (tag, behind)]
        low, high = max(tag[1], behind[1]), min(tag[2], behind[2])
        worth = "predictive" if low > 0.5 else "advisory"
        worth += ", points the wrong way" if high < 0.5 else ""
        fires = f"{(known[name] == 'true').sum()} of {len(known)}"
        lines.append(f"| `{name}` | {fires} | {cells[0]} | {cells[1]} | {worth} |")
    return "\n".join(lines)


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--table", type=Path, help="the CSV of an earlier study")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--margin", type=float, default=0.0, help="gains beyond it count, in pp")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--work", type=Path, help="keeps the runs here and goes on from them")
    args = parser.parse_args()
    if args.table:
        write_report(pd.read_csv(args.table, dtype=TAGS), args.out, args.margin)
        return
    with tempfile.TemporaryDirectory() as temporary:
        name = str((args.work or Path(temporary)).resolve())
        Path(name).mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(name) / 'mlflow.db'}"
        data, weights = str(Path(args.data).resolve()), str(Path(args.weights).resolve())
        out = args.out.resolve()
        os.chdir(name)  # artifacts of the runs go below the working directory
        table = train_all(data, weights, range(args.draws), Path(name) / "cache")
    table.drop(columns="run_id").to_csv(out.with_suffix(".csv"), index=False)
    write_report(table, out, args.margin)


def write_report(table: pd.DataFrame, out: Path, margin_pp: float) -> None:
    """The tables of areas and of gains, to a file and to the terminal."""
    lines = ["| recipe | mean gain, pp | s.d. | runs |", "|---|---|---|---|"]
    for recipe, gains in table.groupby("recipe", sort=False)["gain_pp"]:
        lines.append(f"| {recipe} | {gains.mean():+.2f} | {gains.std():.2f} | {len(gains)} |")
    mild = table[~table["recipe"].isin(RUINOUS)]
    parts = [
        f"All {len(table)} runs:",
        report(table, margin_pp),
        f"The {len(mild)} runs of recipes other than {' and '.join(RUINOUS)}:",
        report(mild, margin_pp),
        "\n".join(lines),
    ]
    text = "\n\n".join(parts) + "\n"
    out.with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
