"""Do the signals mean anything? How well each predicts what stage 3 gains over going on.

    python benchmarks/signal_study.py --stores sqlite:///one.db … --out docs/signal_pairs

Reads the pairs that decisions made, from the stores they were made in. The gain of a pair is stage
3's accuracy minus that of stage 2 continued, on test images that no signal has seen. Out: a CSV
with a row a pair, and Markdown tables: the area under the ROC curve (AUC) of each signal and of
the number behind it over all pairs, and within each data set (the mean of these: what is left when
data sets are not told apart by it); all numbers together by a logistic regression that has not
seen the data set it is tried on; and what was known of each case after stage 2.

A case is a data set, a backbone and a recipe. Pairs of a case have much in common, so the 95%
intervals come from a bootstrap of cases. `--table` reads the rows of an earlier study.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.stats.posterior import posterior  # noqa: E402
from pipeline.tracking import RunView  # noqa: E402

CASE = ["data", "backbone", "recipe"]
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
NEVER = 2.0
"""`saturation_share` of a run that never saturated: later than the end."""
TAGS = dict.fromkeys(NUMBERS, str)
Floats = NDArray[np.floating[Any]]


def pairs_in(store: str) -> pd.DataFrame:
    """A row for each pair of a decision on stage 3 in an MLflow store."""
    mlflow.set_tracking_uri(store)
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.kind = 'stage' AND attributes.status = 'FINISHED'",
        output_format="list",
    )
    found = [RunView.of(run) for run in found]  # of any version
    by_id = {run.run_id: run for run in found}
    scored = [run for run in found if run.tags["stage"] == "3" and "test/acc" in run.metrics]
    controls = {_start(run): run for run in scored if run.tags["schedule"] == "stage2_continued"}
    rows = []
    for run in scored:
        control = controls.get(_start(run))
        if run.tags["schedule"] == "three_stage" and control and _alike(run, control):
            second = by_id[run.tags["parent_run_id"]]
            rows.append(_row(run, control, second, by_id[second.tags["parent_run_id"]]))
    return pd.DataFrame(rows)


def _start(run: RunView) -> tuple[str, ...]:
    """Where a last stage began, and how it was trained."""
    keys = ("lr", "epochs", "l2_sp", "weight_decay", "augment", "norm", "seed")
    return (run.tags["parent_run_id"], *(run.params[key] for key in keys))


def _alike(run: RunView, control: RunView) -> bool:
    return bool(run.tags["test_sha256"] == control.tags["test_sha256"])


def _row(run: RunView, control: RunView, second: RunView, first: RunView) -> dict[str, object]:
    tags, numbers, before = run.tags, run.metrics, second.metrics
    settings = json.loads(tags["settings"])
    parts = [f"{key} {settings[key]}" for key in ("image_size", "train_per_class")]
    parts += [f"{key} {run.params[key]}" for key in ("lr", "l2_sp")]
    signals = {k.removeprefix("signal."): v for k, v in tags.items() if k.startswith("signal.")}
    return {
        "data": tags["data"],
        "backbone": tags["backbone"],
        "recipe": ", ".join(parts),
        "draw": f"{settings['data_seed']}/{tags['draw']}",
        "gain_pp": 100 * (numbers["test/acc"] - control.metrics["test/acc"]),
        "verdict": tags.get("verdict", "none"),
        "gate": second.tags.get("gate.prior", "unknown"),
        "stage2_val_acc": before["selected/val_acc"],
        "stage2_gain": before["selected/val_acc"] - first.metrics["selected/val_acc"],
        "stage2_train_acc": before["selected/train_acc"],
        "stage2_gap_nats": before["selected/val_loss"] - before["selected/train_loss"],
        **{name: signals.get(name, "unknown") for name in NUMBERS},
        **{number: numbers.get(number) for number, _ in NUMBERS.values()},
    }


def area(gained: NDArray[np.bool_], score: Floats) -> float:
    """Area under the ROC curve; NaN where every pair gained, or none."""
    if len(gained) == 0 or gained.all() or not gained.any():
        return float("nan")
    return float(roc_auc_score(gained, score))


def bootstrap(table: pd.DataFrame, of: Callable[[pd.DataFrame], float]) -> str:
    """A value of the table with its 95% interval over cases, as text."""
    cases = [rows for _, rows in table.groupby(CASE, sort=False)]
    rng, values = np.random.default_rng(0), []
    for _ in range(1000):
        taken = rng.integers(0, len(cases), len(cases))
        values.append(of(pd.concat([cases[i] for i in taken])))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return f"{of(table):.2f} ({low:.2f} to {high:.2f})"


def signal_table(table: pd.DataFrame, margin_pp: float) -> str:
    """A row a signal: how often it fires, and how well it ranks pairs by whether they gained."""
    lines = [
        "| signal | fires in | AUC of the tag | AUC of its number | within data sets |",
        "|---|---|---|---|---|",
    ]
    for name, (number, direction) in NUMBERS.items():
        known = table[table[name].isin(["true", "false"])]
        if known.empty:
            lines.append(f"| `{name}` | unknown in all | | | |")
            continue
        sign = WANTED[name.partition(".")[0]]

        def of_tag(rows: pd.DataFrame, name: str = name, sign: float = sign) -> float:
            score = sign * (rows[name] == "true").to_numpy(float)
            return area(rows["gain_pp"].to_numpy() > margin_pp, score)

        def of_number(rows: pd.DataFrame, number: str = number, sign: float = direction) -> float:
            score = sign * rows[number].astype(float).fillna(NEVER).to_numpy()
            return area(rows["gain_pp"].to_numpy() > margin_pp, score)

        def within(rows: pd.DataFrame, of: Callable[[pd.DataFrame], float] = of_number) -> float:
            areas = [of(some) for _, some in rows.groupby("data")]
            return float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")

        fires = f"{(known[name] == 'true').sum()} of {len(known)}"
        cells = [bootstrap(known, of) for of in (of_tag, of_number, within)]
        lines.append(f"| `{name}` | {fires} | {' | '.join(cells)} |")
    return "\n".join(lines)


def together(table: pd.DataFrame, columns: Sequence[str], margin_pp: float) -> str:
    """AUC and Brier score of columns together, on data sets that the fit has not seen."""
    values = table[list(columns)].astype(float)
    values = values.fillna({"signal/saturation_share": NEVER}).fillna(values.mean()).fillna(0.0)
    gained = (table["gain_pp"] > margin_pp).to_numpy()
    groups = table["data"].to_numpy()
    odds = np.zeros(len(table))
    for name in np.unique(groups):
        others = groups != name
        if gained[others].all() or not gained[others].any():
            odds[~others] = gained[others].mean()
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(values.to_numpy()[others], gained[others])
        odds[~others] = model.predict_proba(values.to_numpy()[~others])[:, 1]
    rest = [np.mean(gained[groups != name]) for name in groups]
    areas = [area(gained[groups == name], odds[groups == name]) for name in np.unique(groups)]
    brier, base = np.mean((odds - gained) ** 2), np.mean((np.array(rest) - gained) ** 2)
    return (
        f"AUC {area(gained, odds):.2f}, within data sets {np.nanmean(areas):.2f}; Brier score "
        f"{brier:.3f}, of the share alone {base:.3f}"
    )


def cases_of(table: pd.DataFrame) -> pd.DataFrame:
    """A row a case that was decided, as `pipeline/signals/cases.py` reads it."""
    decided = table[table["verdict"] != "none"]
    found = decided.groupby(CASE, sort=False).agg(
        gate=("gate", lambda gates: gates.mode()[0]),
        verdict=("verdict", lambda ends: ends.mode()[0]),
        pairs=("gain_pp", "size"),
        gain_pp=("gain_pp", "mean"),
    )
    return found.reset_index()


def case_table(table: pd.DataFrame) -> str:
    """A row a case: what was known after stage 2, and what stage 3 came to."""
    lines = [
        "| data | backbone | recipe | pairs | gate | stage 2, % | from stage 1, pp | "
        "gain, pp (95%) | P(gain > 0.5 pp) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, backbone, recipe), rows in table.groupby(CASE, sort=False):
        known = posterior(rows["gain_pp"].to_numpy(), rope_pp=0.5) if len(rows) > 1 else None
        said = f"{known.size} | {known.p_above:.3f}" if known else "one pair |"
        gates = ", ".join(sorted(set(rows["gate"])))
        lines.append(
            f"| {data} | {backbone} | {recipe} | {len(rows)} | {gates} | "
            f"{100 * rows['stage2_val_acc'].mean():.1f} | {100 * rows['stage2_gain'].mean():+.1f} "
            f"| {said} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read, score, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stores", nargs="+", default=[], help="MLflow tracking URIs")
    parser.add_argument("--table", type=Path, help="the CSV of an earlier study")
    parser.add_argument("--margin", type=float, default=0.5, help="gains beyond it count, in pp")
    parser.add_argument("--cases", type=Path, help="writes the cases that the gate tells of")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    args = parser.parse_args()
    if args.table:
        table = pd.read_csv(args.table, dtype=TAGS)
    else:
        table = pd.concat([pairs_in(store) for store in args.stores])
        table.to_csv(args.out.with_suffix(".csv"), index=False, float_format="%.5g")
    if args.cases:
        cases_of(table).to_csv(args.cases, index=False, float_format="%.3f")
    after = [number for number, _ in NUMBERS.values() if number != "signal/spread_p"]
    before = ["stage2_val_acc", "stage2_gain", "stage2_train_acc", "stage2_gap_nats"]
    share = np.mean(table["gain_pp"] > args.margin)
    text = (
        f"{len(table)} pairs of {len(table.groupby(CASE))} cases on {table['data'].nunique()} "
        f"data sets; {share:.0%} gained more than {args.margin:g} pp.\n\n"
        f"{signal_table(table, args.margin)}\n\n"
        f"All numbers of signals together: {together(table, sorted(set(after)), args.margin)}.\n"
        f"What is known after stage 2: {together(table, before, args.margin)}.\n\n"
        f"{case_table(table)}\n"
    )
    args.out.with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
