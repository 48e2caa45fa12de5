"""How often are two arms that are the same procedure told apart? A/A studies on real training.

    python benchmarks/aa_check.py --data FOLDER --weights FILE --out aa_check preset=cifar10_small

For each draw, stages 1 and 2 once, then stage 3 from that checkpoint with several seeds: any two
of them are one procedure with different seeds. A study takes every draw, in random order, with
two seeds at random as its arms, and goes through the looks, image by image. Out: the share of
studies by verdict for several sizes of gain, how P(gain > 0) is distributed after the last look
(uniform where nothing has changed and images do not favour a seed), and an .npz of the bank: which
test images each run recognises. The bank's size bounds what can be said: the standard error counts
draws, not studies.
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
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.runs.find_or_run import find_or_run  # noqa: E402
from pipeline.runs.scoring import logits_of, read_test_split  # noqa: E402
from pipeline.runs.session import Session  # noqa: E402
from pipeline.runs.sources import source_of  # noqa: E402
from pipeline.settings.request import Request  # noqa: E402
from pipeline.stats.design import Design  # noqa: E402
from pipeline.stats.verdict import verdict  # noqa: E402
from pipeline.tracking import Tracking  # noqa: E402

STUDIES = 1000
ROPES_PP = (0.5, 0.25, 0.1, 0.0)


def fill_bank(options: dict[str, str], draws: int, seeds: int) -> NDArray[np.bool_]:
    """Which test images stage 3 recognises, (draws, seeds, images)."""
    tracking = Tracking.connect()
    settings = Request.read(options).settings()
    test = read_test_split(source_of(settings), settings, print)
    bank = np.zeros((draws, seeds, len(test)), dtype=np.bool_)
    for draw in range(draws):
        settings = Request.read({**options, "draw": str(draw), "seed": str(draw)}).settings()
        session = replace(Session.open(settings, tracking, lambda _: None), is_trial=True)
        settings = session.settings
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
            answers = logits_of(own, backbone, test, prefix).argmax(1)
            bank[draw, number] = (answers == test.labels).numpy()
            sys.stderr.write(f"draw {draw} seed {seed}: {bank[draw, number].mean():.4f}\n")
    return bank


def studies(
    bank: NDArray[np.bool_], design: Design, count: int
) -> tuple[Counter[str], NDArray[np.float64]]:
    """Verdicts of A/A studies, and P(gain > ROPE) after the last look of each."""
    rng = np.random.default_rng(0)
    found: Counter[str] = Counter()
    odds = []
    for _ in range(count):
        order = rng.permutation(len(bank))
        arms = np.stack([rng.permutation(bank.shape[1])[:2] for _ in order])
        ours, theirs = bank[order, arms[:, 0]], bank[order, arms[:, 1]]
        table = ours.astype(np.int8) - theirs.astype(np.int8)
        gains = 100 * table.mean(axis=1)
        found[verdict(gains, design, differences=table).state] += 1
        whole = replace(design, looks=design.looks[-1:])
        known = verdict(gains, whole, differences=table).posterior
        assert known
        odds.append(known.p_above)
    return found, np.array(odds)


def main() -> None:
    """Fill the bank, run the studies, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bank", type=Path, help="the .npz of an earlier bank")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--work", type=Path, help="keeps the runs here and goes on from them")
    parser.add_argument("settings", nargs="*", help="name=value, as the stages take them")
    args = parser.parse_args()
    out = args.out.resolve()
    if args.bank:
        packed = np.load(args.bank)
        shape = tuple(packed["shape"])
        bank = np.unpackbits(packed["correct"], axis=-1, count=shape[-1]).astype(bool)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            work = (args.work or Path(temporary)).resolve()
            work.mkdir(parents=True, exist_ok=True)
            data, weights = str(Path(args.data).resolve()), str(Path(args.weights).resolve())
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work / 'mlflow.db'}"
            os.chdir(work)
            options = {"preset": "auto", "data": data, "weights": weights}
            options |= {"cache_dir": str(work / "cache")}
            options |= dict(one.split("=", 1) for one in args.settings)
            bank = fill_bank(options, args.draws, args.seeds)
        np.savez_compressed(
            out.with_suffix(".npz"), correct=np.packbits(bank, axis=-1), shape=bank.shape
        )
    looks = tuple(look for look in (5, 10, 20) if look <= len(bank)) or (len(bank),)
    gains = 100 * (bank[:, 0].mean(axis=-1) - bank[:, 1].mean(axis=-1))
    lines = [
        f"{STUDIES} studies from {len(bank)} draws of {bank.shape[1]} seeds on {bank.shape[2]} "
        f"test images, looks {looks}; gains of one seed over another: s.d. "
        f"{gains.std(ddof=1):.2f} pp.",
        "",
        "| ROPE, pp | justified | not justified | P(gain > ROPE) below 0.05 | above 0.95 |",
        "|---|---|---|---|---|",
    ]
    for rope_pp in ROPES_PP:
        found, odds = studies(bank, Design(rope_pp=rope_pp, looks=looks), STUDIES)
        shares = [found[state] / STUDIES for state in ("justified", "not_justified")]
        shares += [float(np.mean(odds < 0.05)), float(np.mean(odds > 0.95))]
        lines.append(f"| {rope_pp:g} | " + " | ".join(f"{x:.1%}" for x in shares) + " |")
    text = "\n".join(lines) + "\n"
    out.with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
