"""Which block wants to move? Relative gradient norms, and whether releasing that block gains most.

    python benchmarks/rank_blocks.py preset=cifar10_small data=CIFAR_FOLDER weights=STARTER \
        stage2.epochs=5 --check 5

In: settings, as `name=value`. Out: on the stage-1 checkpoint of these settings, the blocks in the
order of ||g|| / ||w||. The gradient is that of the mean cross-entropy over all training images,
unaugmented, in float32, with every BatchNorm's statistics as they came. Source: Auto-RGN of Lee et
al. 2022 (arXiv 2210.11466), by block instead of by layer. With `--check N` each block is released
alone for as many steps as stage 2 has, on N draws, against stage 1 continued, and the order of the
gains on the test split is held against the order of the gradients. The runs are in MLflow.
Result: docs/comparisons/rank-blocks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.comparing.arms import Arm, at_equal_steps  # noqa: E402
from pipeline.comparing.pairs.draws import pool_in  # noqa: E402
from pipeline.comparing.pairs.results import pair_keys, resolution_pp  # noqa: E402
from pipeline.comparing.pairs.runner import PairRunner  # noqa: E402
from pipeline.data.image_set import ImageSet  # noqa: E402
from pipeline.data.images import USUAL  # noqa: E402
from pipeline.data.inspection.overlap import Overlap  # noqa: E402
from pipeline.model.backbones import Backbone  # noqa: E402
from pipeline.runs.find_or_run import find_or_run  # noqa: E402
from pipeline.runs.scoring import read_test_split  # noqa: E402
from pipeline.runs.session import Session  # noqa: E402
from pipeline.runs.sources import source_of  # noqa: E402
from pipeline.settings.request import Request  # noqa: E402
from pipeline.settings.run import Settings  # noqa: E402
from pipeline.settings.schedules import BLOCKS, SCHEDULES  # noqa: E402
from pipeline.stats.design import Design  # noqa: E402
from pipeline.stats.metrics import DEFAULT_SHARE  # noqa: E402
from pipeline.stats.posterior import Posterior, posterior  # noqa: E402
from pipeline.tracking import Tracking  # noqa: E402
from pipeline.training.diagnostics import norm_of  # noqa: E402

BATCH = 100
RELEASES = {f"release_{block}(head; head+{block})": block for block in BLOCKS[1:]}
"""Schedules of stage 1 and one block alone beside the head."""


@dataclass(frozen=True)
class BlockRank:
    """A block's gradient norm and weight norm, both Euclidean over all its parameters."""

    block: str
    gradient: float
    size: float

    @property
    def relative(self) -> float:
        """||g|| / ||w||; infinite where all weights are 0."""
        return self.gradient / self.size if self.size else float("inf")


def rank_blocks(backbone: Backbone, images: ImageSet, device: torch.device) -> list[BlockRank]:
    """Every block, the largest relative gradient first; ties in the order head to stem."""
    model = backbone.model.to(device).eval().requires_grad_(True)
    model.zero_grad(set_to_none=True)
    try:
        for start in range(0, len(images), BATCH):
            pixels = USUAL.normalise(images.pixels[start : start + BATCH].to(device))
            labels = images.labels[start : start + BATCH].to(device)
            logits = backbone.run(pixels)
            loss = F.cross_entropy(logits, labels, reduction="sum") / len(images)
            torch.autograd.backward(loss)
        ranks = [_rank(backbone, block) for block in reversed(backbone.order)]
    finally:
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False).to("cpu")
    return sorted(ranks, key=lambda rank: -rank.relative)


def _rank(backbone: Backbone, block: str) -> BlockRank:
    parameters = dict(backbone.model.named_parameters())
    weights = [parameters[n] for n in backbone.tensor_names([block]) if n in parameters]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    sizes = norm_of(gradients), norm_of([w.detach() for w in weights])
    return BlockRank(block, *map(float, sizes))


def agreement(relative: Mapping[str, float], gains_pp: Mapping[str, float]) -> float:
    """Kendall's tau-b between relative gradient norms and gains, over the blocks with a gain."""
    blocks = list(gains_pp)
    found = stats.kendalltau([relative[b] for b in blocks], [gains_pp[b] for b in blocks])
    return float(found.statistic)


def rank_stage1(settings: Settings, tracking: Tracking) -> list[BlockRank]:
    """The ranking on the stage-1 checkpoint of these settings, found or trained."""
    session = Session.open(settings, tracking, lambda _: None)
    run = tracking.get(find_or_run(session, 1).run_id)
    return rank_blocks(session.restore(run), session.draw.train, session.device)


def check(
    options: Mapping[str, str], draws: int, tracking: Tracking
) -> tuple[dict[str, float], dict[str, Posterior]]:
    """By block: the relative gradient norm, mean over the draws, and the gain of releasing it."""
    settings = Request.read(options).settings()
    source = source_of(settings)
    pool = pool_in(source, settings, (draws,))
    overlap = Overlap.of(read_test_split(source, settings, print), source)
    control = at_equal_steps(
        Arm(name="three_stage", settings=settings, last=2),
        SCHEDULES["stage1_continued"],
        Request.read(options),
    )
    arms = [control]
    for name in RELEASES:
        changes = {"schedule": name, "stages": settings.stages[:2]}
        arms.append(Arm(name=name, settings=settings.model_copy(update=changes), last=2))
    keys = pair_keys(pool, settings)
    runner = PairRunner(
        arms=tuple(arms),
        overlap=overlap,
        tracking=tracking,
        nested_under=None,
        say=print,
        tell=lambda key, _: f"draw {key.draw}",
    )
    results = runner.run_all(keys)
    gains = {
        block: posterior(
            [100 * (row[number].test - row[0].test) for row in results],
            rope_pp=Design.rope_pp,
            correction=pool.correction,
            resolution_pp=resolution_pp(overlap.test.labels.numpy(), DEFAULT_SHARE),
        )
        for number, block in enumerate(RELEASES.values(), start=1)
    }
    rankings = [rank_stage1(key.apply(control.settings), tracking) for key in keys]
    relative = {
        block: sum(r.relative for ranks in rankings for r in ranks if r.block == block) / draws
        for block in BLOCKS
    }
    return relative, gains


def main(argv: Sequence[str] | None = None) -> None:
    """Rank, and check where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="*", help="name=value, as for `python -m pipeline`")
    parser.add_argument("--check", type=int, default=0, help="draws, 2 or more; 0: none")
    given = parser.parse_args(argv)
    options = dict(word.split("=", 1) for word in given.settings)
    tracking = Tracking.connect()
    print("| block | g | w | g / w |\n|---|---|---|---|")
    for rank in rank_stage1(Request.read(options).settings(), tracking):
        print(f"| {rank.block} | {rank.gradient:.4g} | {rank.size:.4g} | {rank.relative:.4g} |")
    if given.check:
        relative, gains = check(options, given.check, tracking)
        print("\n| block | mean g / w | gain over stage 1 continued, pp (95%) |\n|---|---|---|")
        for block in sorted(gains, key=lambda block: -relative[block]):
            print(f"| {block} | {relative[block]:.4g} | {gains[block].size} |")
        tau = agreement(relative, {block: known.mean_pp for block, known in gains.items()})
        print(f"\nKendall's tau between the two: {tau:+.2f}")


if __name__ == "__main__":
    main()
