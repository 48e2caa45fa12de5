"""How far do pairs that are resampled from one small pool agree with those of other pools?

    python benchmarks/resampling.py --data CIFAR_FOLDER --weights STARTER --out resampling \
        --work FOLDER

The data's own pool is cut into small ones that share no image. In each, `decide` runs resampled
pairs, as it does for a user who has no more images. Since there are many pools, it can be seen
what no single one shows: how far the mean gain of a pool lies from the mean of all, and whether
the interval that a single pool states reaches it. Out: a CSV of all gains, and for each candidate
correction c of the scale s * sqrt(1 / n + c): how often the 95% interval holds the mean of all
pools, and how wide it is. The c that would fit is (variance of the pools' means) / (mean of s^2)
- 1 / n. With `--workers-of K --worker k` only every K-th pool is run: then run once more without,
to gather them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.entries.command_line.table import perform  # noqa: E402

TEST_PER_CLASS = 200


def cut_pools(data: Path, work: Path, size: int, count: int) -> list[Path]:
    """Folders with `size` images a class each, no image in two, and one test split for all."""
    train, test = (
        pd.concat(map(pd.read_parquet, sorted(data.rglob(f"{part}-*.parquet"))))
        .sample(frac=1, random_state=0)
        .reset_index(drop=True)
        for part in ("train", "test")
    )
    place = train.groupby("label").cumcount()
    test = test[test.groupby("label").cumcount() < TEST_PER_CLASS]
    held = int(train["label"].value_counts().min()) // size
    folders = []
    for number in range(min(count, held)):
        folder = work / f"pool-{size}-{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            train[place // size == number].to_parquet(folder / "train-00000.parquet", index=False)
            test.to_parquet(folder / "test-00000.parquet", index=False)
        folders.append(folder)
    return folders


def gains_of(folder: Path, options: dict[str, str], pairs: int) -> list[float]:
    """Gains of resampled pairs of one pool, in pp, as `decide` measures them."""
    kept = folder / "gains.csv"
    if not kept.exists():
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        own = {"data": str(folder), "cache_dir": str(folder / "cache"), "log_model": "off"}
        own |= {"looks": str(pairs), "threshold": "0.999", "beside": "0", "register_as": "off"}
        decision = perform("decide", {**options, **own}, lambda _: None)
        assert decision is not None
        assert decision.pool.resampled
        pd.Series(decision.gains_pp).to_csv(kept, index=False)
        for leftover in ("cache", "mlruns"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
    return pd.read_csv(kept).iloc[:, 0].tolist()


def fitting_correction(gains: np.ndarray) -> float:
    """The c that makes s^2 * (1 / n + c) the variance of the pools' means; (pools, pairs)."""
    return float(gains.mean(1).var(ddof=1) / gains.var(1, ddof=1).mean() - 1 / gains.shape[1])


def fitting_interval(gains: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of `fitting_correction`, pools drawn with replacement."""
    rng = np.random.default_rng(0)
    found = [
        fitting_correction(gains[rng.integers(len(gains), size=len(gains))]) for _ in range(2000)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def coverage(gains: np.ndarray, correction: float) -> tuple[float, float]:
    """Share of pools whose 95% interval holds the mean of all pools; mean half-width in pp."""
    pairs = gains.shape[1]
    half = gains.std(1, ddof=1) * np.sqrt(1 / pairs + correction) * stats.t.ppf(0.975, pairs - 1)
    return float((abs(gains.mean(1) - gains.mean()) <= half).mean()), float(half.mean())


def report(gains: np.ndarray, train: int, size: int) -> str:
    """What fits, and what each candidate does."""
    pairs, share = gains.shape[1], train / size
    fit, (low, high) = fitting_correction(gains), fitting_interval(gains)
    lines = [
        f"{len(gains)} pools of {size} images a class, {pairs} pairs each, {train} training "
        f"images a class: gain {gains.mean():+.2f} pp; spread of the pools' means "
        f"{gains.mean(1).std(ddof=1):.2f}, of gains within a pool "
        f"{np.sqrt(gains.var(1, ddof=1).mean()):.2f} pp; c that fits: {fit:.2f} "
        f"({low:.2f} to {high:.2f})",
        "",
        "| correction c | | 95% interval holds the mean of all pools | half-width, pp |",
        "|---|---|---|---|",
    ]
    for name, c in {
        "none": 0.0,
        "share / (1 - share) of the training images that two pairs have in common": share
        / (1 - share),
        "n_test / n_train": TEST_PER_CLASS / train,
        "the one that fits": max(fit, 0.0),
    }.items():
        held, half = coverage(gains, c)
        lines.append(f"| {name} | {c:.2f} | {held:.0%} | {half:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Cut, run, gather."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--size", type=int, default=50, help="images a class in a pool")
    parser.add_argument("--train", type=int, default=25, help="training images a class of a pair")
    parser.add_argument("--pools", type=int, default=80)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--worker", type=int, help="take only every K-th pool, from this one on")
    parser.add_argument("--workers-of", type=int, default=2, help="K")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="beside the preset"
    )
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--work", type=Path, required=True, help="keeps pools and gains")
    args = parser.parse_args()
    out, data, work = args.out.resolve(), args.data.resolve(), args.work.resolve()
    options = {"preset": "cifar10_small", "weights": str(Path(args.weights).resolve())}
    options |= {"train_per_class": str(args.train), "val_per_class": str(args.train)}
    options |= dict(one.split("=", 1) for one in args.set)
    folders = cut_pools(data, work, args.size, args.pools)
    if args.worker is not None:
        folders = folders[args.worker :: args.workers_of]
    rows = []
    for folder in folders:
        rows.append(gains_of(folder, options, args.pairs))
        sys.stderr.write(f"{folder.name}: {' '.join(f'{gain:+.2f}' for gain in rows[-1])}\n")
    if args.worker is None:
        pd.DataFrame(rows).to_csv(out.with_suffix(".csv"), index_label="pool")
        text = report(np.array(rows), args.train, args.size)
        out.with_suffix(".md").write_text(text)
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
