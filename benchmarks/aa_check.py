"""How often are two arms that are the same procedure told apart? A/A studies on real training.

    python benchmarks/aa_check.py --data CIFAR_FOLDER --weights STARTER --out aa_check

For each draw, stages 1 and 2 once, then stage 3 from that checkpoint with several seeds: any two
of them are one procedure with different seeds. A study takes every draw, in random order, with
two seeds at random as its arms, and goes through the looks. Out: the share of studies by verdict,
the spread of the gains, and a CSV of the bank. The bank's size bounds what can be said: the
standard error counts draws, not studies.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.runs.find_or_run import find_or_run  # noqa: E402
from pipeline.runs.scoring import logits_of, read_test_split  # noqa: E402
from pipeline.runs.session import Session  # noqa: E402
from pipeline.runs.sources import source_of  # noqa: E402
from pipeline.settings.request import Request  # noqa: E402
from pipeline.stats.design import Design  # noqa: E402
from pipeline.stats.metrics import score_logits  # noqa: E402
from pipeline.stats.verdict import verdict  # noqa: E402
from pipeline.tracking import Tracking  # noqa: E402

STUDIES = 2000


def fill_bank(options: dict[str, str], draws: int, seeds: int) -> pd.DataFrame:
    """Test accuracy of stage 3 by draw and seed, (draws, seeds)."""
    tracking, rows = Tracking.connect(), []
    settings = Request.read(options).settings()
    test = read_test_split(source_of(settings), settings, print)
    for draw in range(draws):
        settings = Request.read({**options, "draw": str(draw), "seed": str(draw)}).settings()
        session = replace(Session.open(settings, tracking, lambda _: None), is_trial=True)
        parent = find_or_run(session, 2)
        for number in range(seeds):
            seed = draw if number == 0 else 1000 * number + draw
            own = replace(
                session,
                settings=settings.model_copy(update={"seed": seed}),
                keys={2: session.key(2)},
                done={2: parent},
            )
            run = tracking.get(find_or_run(own, 3).run_id)
            backbone = own.restore(run)
            prefix = backbone.frozen_segments(settings.stage(3).trainable)
            logits = logits_of(own, backbone, test, prefix)
            acc = score_logits(logits, test.labels)["acc"]
            rows.append({"draw": draw, "seed": number, "test_acc": acc})
            sys.stderr.write(f"draw {draw} seed {seed}: {acc:.4f}\n")
    return pd.DataFrame(rows).pivot(index="draw", columns="seed", values="test_acc")


def studies(bank: np.ndarray, design: Design, count: int) -> Counter[str]:
    """Verdicts of A/A studies; `bank`: accuracy 0 to 1, (draws, seeds)."""
    rng = np.random.default_rng(0)
    found: Counter[str] = Counter()
    for _ in range(count):
        order = rng.permutation(len(bank))
        arms = np.stack([rng.permutation(bank.shape[1])[:2] for _ in order])
        gains = 100 * (bank[order, arms[:, 0]] - bank[order, arms[:, 1]])
        found[verdict(gains.tolist(), design).state] += 1
    return found


def main() -> None:
    """Fill the bank, run the studies, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bank", type=Path, help="the CSV of an earlier bank")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--work", type=Path, help="keeps the runs here and goes on from them")
    args = parser.parse_args()
    out = args.out.resolve()
    if args.bank:
        bank = pd.read_csv(args.bank, index_col="draw")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            work = (args.work or Path(temporary)).resolve()
            work.mkdir(parents=True, exist_ok=True)
            data, weights = str(Path(args.data).resolve()), str(Path(args.weights).resolve())
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work / 'mlflow.db'}"
            os.chdir(work)
            options = {"preset": "cifar10_small", "data": data, "weights": weights}
            options |= {"cache_dir": str(work / "cache")}
            bank = fill_bank(options, args.draws, args.seeds)
        bank.to_csv(out.with_suffix(".csv"))
    values = bank.to_numpy()
    looks = tuple(look for look in (5, 10, 20) if look <= len(values))
    differences = 100 * np.diff(values[:, :2], axis=1)
    found = studies(values, Design(looks=looks), STUDIES)
    shares = ", ".join(f"{state} {count / STUDIES:.1%}" for state, count in found.most_common())
    text = (
        f"{STUDIES} studies from {len(values)} draws of {values.shape[1]} seeds, looks "
        f"{looks}: {shares}. Gains of one seed over another: s.d. "
        f"{differences.std(ddof=1):.2f} pp.\n"
    )
    out.with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
