"""Entry point rank_blocks: which block to release? And is that what releasing it gains?

In: a finished stage run, or settings whose stage 1 is found or trained. Out: the blocks by
relative gradient norm (`block_ranks.py`), on an MLflow run of their own. With `check=N`: each
block is released alone for as many steps as stage 2 has, on N draws, against stage 1 continued,
and the order of the gains on the test split is held against the order of the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.comparing.arms import Arm, at_equal_steps
from pipeline.comparing.draws import Pool, pool_in
from pipeline.comparing.pairs import PairKey, PairRunner, Results, pair_keys, resolution_pp
from pipeline.data.overlap import Overlap
from pipeline.entries.plans import FEWEST_CHECKS, RankPlan, rank_plan
from pipeline.errors import LineageError, SettingsError
from pipeline.reporting.figures import RankRow, ranks_picture
from pipeline.reporting.page import to_html, to_markdown
from pipeline.runs.command import Command
from pipeline.runs.lineage import check_agreement, check_places, inherit
from pipeline.runs.run_stage import find_or_run
from pipeline.runs.scoring import read_test_split, test_split
from pipeline.runs.session import Session, check_draws, source_and_weights
from pipeline.runs.stage_log import log_unreadable
from pipeline.settings.layers import load_settings
from pipeline.settings.run import Settings, plain_values
from pipeline.settings.schedules import RELEASES
from pipeline.stats.posterior import Posterior, posterior
from pipeline.tracking import RunView, Tracking
from pipeline.training.block_ranks import BlockRank, agreement, mean_relative, rank_blocks

BEFORE, CONTROL = "three_stage", "stage1_continued"
"""The schedule whose stage 1 comes before a release and whose stage 2 says how it is trained."""
PICTURE = "figures/ranks.png"
WITHOUT_RUN = "leave run_id out to have a run found or trained"


@dataclass(frozen=True)
class Ranking:
    """What was found.

    Attributes:
        ranks: of the run, the largest relative gradient first.
        gains: by block, over stage 1 continued; empty without a check.
        relative: relative gradient norms, means over the draws of the check.
        tau: Kendall's tau-b between the two; None without a check, NaN where all gains are equal.
        pool: how the check's draws were dealt; None without a check.
    """

    run: RunView
    ranks: Sequence[BlockRank]
    gains: dict[str, Posterior]
    relative: dict[str, float]
    tau: float | None
    pool: Pool | None

    @property
    def sentence(self) -> str:
        """The result in a line or two."""
        order = ", ".join(f"{r.block} {r.relative:.3g}" for r in self.ranks)
        line = f"relative gradient norms, largest first: {order}"
        if self.tau is None:
            return line
        best = max(self.gains, key=lambda block: self.gains[block].mean_pp)
        first = max(self.gains, key=lambda block: self.relative[block])
        verb = "gains most" if self.gains[best].mean_pp > 0 else "loses least"
        return (
            f"{line}. Released alone, {best} {verb} ({self.gains[best].size}); the "
            f"ranking puts {first} first ({self.gains[first].size}); agreement of the two "
            f"orders, Kendall's tau: {_shown(self.tau)}"
        )


def rank_entry(command: Command) -> Ranking:
    """Entry point rank_blocks.

    Raises:
        LineageError: not a finished stage run.
        SettingsError: a check on draws of a run that is not of stage 1.
        DataError: a check without a test split.
    """
    plan = rank_plan(command.options, command.config)
    tracking = Tracking.connect()
    with tracking.explained():
        given = tracking.get(command.run_id) if command.run_id else None
        settings = _settings(plan, command, given) if given else plan.settings
        source, _ = source_and_weights(settings)
        check_draws(source, settings, [settings.draw])
        pool, test = None, None
        if plan.check:
            test_split(source, settings)
            looks = tuple(sorted({FEWEST_CHECKS, plan.check}))
            pool = pool_in(source, settings, looks, asked="check")
            test = read_test_split(source, settings, command.say)
        session = Session.open(settings, tracking, command.say, command.on_epoch)
        if given:
            session.otherwise = f", or {WITHOUT_RUN}"
            session.check_images(given)
        name = f"rank_blocks · {session.draw.source} · {settings.backbone} · draw {settings.draw}"
        with tracking.run(name, {"kind": "ranking"}, target=True) as log:
            run = given or tracking.get(find_or_run(session, 1, log.run_id).run_id)
            ranks = rank_blocks(session.restore(run), session.draw.train, session.device)
            ranking = Ranking(run, ranks, {}, {}, None, None)
            if pool is not None and test is not None:
                log_unreadable(log, test.unreadable)
                overlap = Overlap.of(test, source)
                ranking = _checked(
                    ranking, pool, settings, plan, overlap, command, tracking, log.run_id
                )
            log.params({**plain_values(settings), "check": plan.check})
            log.tags({"ranked_run_id": run.run_id, "mlflow.note.content": ranking.sentence})
            log.metrics({f"grad_relative/{r.block}": r.relative for r in ranks})
            log.metrics({f"gain_pp/{b}": p.mean_pp for b, p in ranking.gains.items()})
            if ranking.tau is not None:
                log.metrics({"kendall_tau": ranking.tau})
            figure = ranks_picture(_rows(ranking))
            log.figure(figure, PICTURE)
            page = page_of(ranking, settings)
            log.text(page, "report.md")
            log.text(to_html(page, {PICTURE: figure}), "report.html")
    command.say(ranking.sentence)
    command.say(f"report: report.html and report.md of run {log.run_id}")
    command.say(f"browse the runs: {tracking.ui_command}")
    return ranking


def _settings(plan: RankPlan, command: Command, given: RunView) -> Settings:
    """The settings of a given run.

    Raises:
        LineageError, SettingsError: not a run that blocks can be ranked on, or released from.
    """
    if given.tags.get("kind") != "stage" or given.status != "FINISHED":
        raise LineageError(
            f"rank_blocks needs a finished stage run, run {given.run_id} is "
            f"{given.tags.get('kind', 'no stage run')}, {given.status}: copy the id of a stage "
            "run from the MLflow UI, or leave run_id out"
        )
    stage, trains = given.tags["stage"], given.tags["trains"]
    if plan.check and (stage, trains) != ("1", "head"):
        raise SettingsError(
            f"check={plan.check}: run {given.run_id} is stage {stage} and trains {trains}, blocks "
            "are released from a stage 1 of the head alone: give such a run, or check=0"
        )
    inherited = inherit(given)
    if plan.check:
        inherited["schedule"] = BEFORE  # whichever the run was made for, the same stage 1
    settings = load_settings(plan.options, config=command.config, inherited=inherited)
    check_agreement(settings, inherited, given, WITHOUT_RUN)
    check_places(settings, given)
    return settings


def _checked(
    ranking: Ranking,
    pool: Pool,
    settings: Settings,
    plan: RankPlan,
    overlap: Overlap,
    command: Command,
    tracking: Tracking,
    run_id: str,
) -> Ranking:
    """The ranking with what releasing each block alone gains, and whether the orders agree."""
    stage2 = Arm(BEFORE, settings, 2)
    control = at_equal_steps(stage2, CONTROL, plan.options, command.config)
    arms = (control, *(_released(name, settings) for name in RELEASES))
    keys = pair_keys(pool, settings)

    def tell(key: PairKey, results: Results) -> str:
        control = results[0].test_acc
        gains = ", ".join(
            f"{_block(arm)} {100 * (result.test_acc - control):+.2f}"
            for arm, result in zip(arms[1:], results[1:], strict=True)
        )
        return f"draw {key.draw}, seed {key.seed}: stage 1 continued {control:.2%}; pp: {gains}"

    runner = PairRunner(arms, overlap, tracking, run_id, command.say, tell)
    results = runner.run_all(keys)
    gains = {
        _block(arm): posterior(
            [100 * (row[number].test_acc - row[0].test_acc) for row in results],
            correction=pool.correction,
            resolution_pp=resolution_pp(len(overlap.test)),
        )
        for number, arm in enumerate(arms[1:], start=1)
    }
    relative = mean_relative([_ranks_of_parent(arms[0], key, tracking) for key in keys])
    tau = agreement(relative, {block: known.mean_pp for block, known in gains.items()})
    return replace(ranking, gains=gains, relative=relative, tau=tau, pool=pool)


def _released(name: str, settings: Settings) -> Arm:
    """A block released alone, with the settings that stage 2 has for its own."""
    changes = {"schedule": name, "stages": settings.stages[:2]}
    return Arm(name, settings.model_copy(update=changes), 2)


def _block(arm: Arm) -> str:
    return arm.name.removeprefix("release_")


def _ranks_of_parent(arm: Arm, key: PairKey, tracking: Tracking) -> list[BlockRank]:
    """The ranking on a pair's own stage-1 checkpoint."""
    session = Session.open(key.apply(arm.settings), tracking, lambda _: None)
    run = tracking.get(find_or_run(session, 1).run_id)
    return rank_blocks(session.restore(run), session.draw.train, session.device)


def _rows(ranking: Ranking) -> list[RankRow]:
    rows = []
    for rank in ranking.ranks:
        known = ranking.gains.get(rank.block)
        gain = (known.mean_pp, *known.interval_pp) if known else None
        rows.append(RankRow(rank.block, rank.relative, gain))
    return rows


def page_of(ranking: Ranking, settings: Settings) -> str:
    """The page as Markdown."""
    return to_markdown(
        "ranking",
        ranking=ranking,
        blocks=sorted(ranking.gains, key=lambda block: -ranking.relative[block]),
        epochs=settings.training(2).epochs,
        tau=_shown,
        picture=PICTURE,
    )


def _shown(tau: float) -> str:
    return "unknown, as all gains are the same" if math.isnan(tau) else f"{tau:+.2f}"
