"""Entry point start: what can be known before anything is trained.

In: a `StartPlan`. Out: on the terminal and on a run of its own a report of the data, its splits
and copies, what the frozen features of each backbone here are worth (stage 0), what training and a
decision would take, and what to type next. The test split is counted, never scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipeline.comparing.arms import Arm, decide_plan
from pipeline.comparing.estimate import estimate
from pipeline.comparing.pairs.draws import pool_in
from pipeline.data.base import Source
from pipeline.data.inspection.overlap import copies_in_words, splits_in_words
from pipeline.data.inspection.report import DataReport
from pipeline.data.sampling.draws import with_test_split
from pipeline.entries.command_line.plans import StartPlan
from pipeline.errors import PipelineError, SettingsError, WeightsError
from pipeline.reporting.page import to_html, to_markdown
from pipeline.runs.command import Command
from pipeline.runs.findings.near_duplicates import log_near_duplicates
from pipeline.runs.floor import VAL, Floor, floor_of
from pipeline.runs.messages.command_line import command_line
from pipeline.runs.messages.words import minutes
from pipeline.runs.scoring import test_split
from pipeline.runs.session import Session
from pipeline.runs.sources import (
    TEST_IMAGES,
    check_draws,
    images_to_set_aside,
    source_of,
)
from pipeline.settings.run import Settings, plain_values
from pipeline.system.text import count_of, first_of, in_columns
from pipeline.tracking import RunLog, Tracking
from pipeline.tracking.keys import KIND, NOTE, endings
from pipeline.training.stage0 import KNN, LOGREG
from pipeline.weights.here import Candidate, candidates_here, how_to_get

SHOWN_S = 5.0
"""What `main` takes beside training, for each stage: pictures, the model, a share of the start."""
NOT_FOR_DECIDE = ("schedule", "reuse", "enforce_gate")
"""What `decide` sets itself, and refuses."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Stage 0 of a backbone."""

    candidate: Candidate
    settings: Settings
    floor: Floor
    images: int

    @property
    def best(self) -> float:
        """Accuracy of the better classifier on the validation images, 0 to 1."""
        return max(self.floor.val.values())

    @property
    def error(self) -> float:
        """The standard error of that accuracy, as if a classifier chosen by it were one alone."""
        return math.sqrt(self.best * (1 - self.best) / self.images)


def start_entry(command: Command, plan: StartPlan) -> list[Tried]:
    """Entry point start.

    Raises:
        DataError: the images cannot be used as the settings say.
        WeightsError: of no backbone the weights are here.
    """
    settings, say = plan.settings, command.say
    tracking = Tracking.connect(f"start · {settings.data_name}", settings.data_name)
    with tracking.explained():
        source = source_of(settings)
        check_draws(source, settings, [settings.draw])
        report = DataReport.of(source)
        command = _going_on(command, report)
        say(f"{settings.data}: {count_of(len(source.class_names), 'class')}\n")
        say(f"{in_columns(report.classes)}\n")
        apart = images_to_set_aside(source, settings)
        told = [*report.lines, *source.notes, *_gaps(source, settings, report, apart)]
        for line in told:
            say(line)
        here, missing = _candidates(plan)
        with tracking.run(f"start · {source.name}", {KIND: "start"}, target=True) as log:
            log.params(plain_values(settings))
            lines, tried = _try_all(command, plan, tracking, source, here, log, report)
            table = table_of(tried)
            say(f"\nstage 0: frozen features, nothing trained\n\n{in_columns(table)}")
            best = _chosen(command, plan, tried)
            costs, can_decide = _costs(command, tracking, best, source, apart)
            steps = _next(command, best, apart, can_decide=can_decide)
            title = f"what to type next{_instead(command, plan, best)}:"
            say("\n".join([*missing, "", *costs, "", title]))
            for question, words in steps.items():
                say(f"# {question}\n{words}")
            page = to_markdown(
                "start",
                name=source.name,
                report=report,
                lines=[*told, *lines],
                table=table,
                missing=missing,
                costs=costs,
                steps=steps,
            )
            log.text(page, "report.md")
            log.text(to_html(page, {}), "report.html")
            scored = f"{best.best:.1%} of validation images with {best.candidate.name}"
            log.tags({NOTE: f"**Frozen features, nothing trained: {scored}.**\n\n{page}"})
            log.metrics(_metrics(tried))
    say(f"\n{tracking.how_to_browse}")
    return tried


def _metrics(tried: Sequence[Tried]) -> dict[str, float]:
    """The metrics of all floors, by names that end with the candidates'."""
    names = endings([one.candidate.name for one in tried])
    return {
        f"{key}/{of}": value
        for one, of in zip(tried, names, strict=True)
        for key, value in one.floor.metrics.items()
    }


def _candidates(plan: StartPlan) -> tuple[list[Candidate], list[str]]:
    """The backbones to try, and a line for each whose weights are not here.

    Raises:
        WeightsError: there is none to try.
    """
    asked = Candidate(plan.settings.backbone, plan.settings.weights)
    here, missing = candidates_here(asked, plan.backbones)
    lines = [how_to_get(one) for one in missing]
    if not here:
        raise WeightsError(f"the weights of no backbone are here: {'; '.join(lines)}")
    return here, lines


def _going_on(command: Command, report: DataReport) -> Command:
    """The command, from here on without images that the report names as damaged."""
    if not report.unreadable or command.request.settings().skip_unreadable:
        return command
    options = {**command.request.options, "skip_unreadable": "true"}
    return replace(command, request=replace(command.request, options=options))


def _gaps(source: Source, settings: Settings, report: DataReport, apart: int) -> list[str]:
    """What the images lack, and what this command, and those below, do about that.

    `apart`: test images of each class to set aside, where there is no test split.
    """
    lines = []
    if report.unreadable and not settings.skip_unreadable:
        lines.append(
            "start goes on without the images that cannot be read, and so do the commands below "
            "(-P skip_unreadable=true)"
        )
    if source.test is not None:
        missing = np.flatnonzero(source.class_sizes(source.test) == 0).tolist()
        if missing:
            names = first_of([source.class_names[label] for label in missing])
            lines.append(f"no test image is of class {names}")
        return lines
    without = "no test split, without which evaluate and decide have nothing to score on"
    if apart:
        few = f" (fewer than {TEST_IMAGES}: no more are left)" if apart < TEST_IMAGES else ""
        return [*lines, f"{without}: pass -P test_per_class={apart} before you train{few}"]
    return [
        *lines,
        f"{without}, and no image is left for one: leave train_per_class and val_per_class out, "
        "or pass lower numbers",
    ]


def _try_all(
    command: Command,
    plan: StartPlan,
    tracking: Tracking,
    source: Source,
    here: list[Candidate],
    log: RunLog,
    report: DataReport,
) -> tuple[list[str], list[Tried]]:
    """Stage 0 of every backbone, and what is to be said of the images, which all of them share."""
    lines: list[str] = []
    tried: list[Tried] = []
    asked = {plan.settings.backbone, *plan.backbones}

    def tell(line: str) -> None:
        lines.append(line)
        command.say(line)

    for candidate in here:
        own, weights = candidate.backbone, candidate.weights
        try:
            settings = command.request.settings(backbone=own, weights=weights)
            session = Session.open(settings, tracking, lambda _: None)
        except (WeightsError, SettingsError) as err:
            if isinstance(err, SettingsError) and own in asked:
                raise
            command.say(f"note: {candidate.name} is left out: {err}")
            continue
        if not lines:
            words = splits_in_words(session.draw, source, report.unreadable_test)
            for line in (words, *copies_in_words(session.draw, source)):
                tell(line)
            session.pretrained_backbone()  # its features tell what is nearly the same
            log_near_duplicates(session, log, tell)
        if floor := floor_of(session):
            own_settings, images = session.settings, len(session.draw.val)
            tried.append(
                Tried(candidate=candidate, settings=own_settings, floor=floor, images=images)
            )
    if not tried:
        raise WeightsError("no backbone here gives usable features: pass -P backbones=<names>")
    return lines, tried


def table_of(tried: list[Tried]) -> pd.DataFrame:
    """Every backbone, the best first; accuracy on the validation images."""
    rows = [
        {
            "backbone": one.candidate.backbone,
            "weights": one.candidate.weights.rpartition("/")[2],
            "px": str(one.settings.image_size),
            "nearest neighbours": one.floor.in_words(VAL, KNN),
            "logistic regression": one.floor.in_words(VAL, LOGREG),
            "time": f"{one.floor.seconds:.1f} s",
        }
        for one in sorted(tried, key=lambda one: -one.best)
    ]
    return pd.DataFrame(rows)


def _costs(
    command: Command, tracking: Tracking, best: Tried, source: Source, apart: int
) -> tuple[list[str], bool]:
    """What training takes on the best backbone here, by measured training steps.

    Also: whether `decide` can be asked with these images.
    """
    arm = Arm(name="main", settings=best.settings, last=len(best.settings.stages))
    main = estimate([arm], 0, tracking)
    is_shown = best.settings.log_pictures or best.settings.log_model
    main_s = main.seconds(1) + SHOWN_S * arm.last * is_shown
    lines = [f"main takes about {minutes(main_s)} here with {best.candidate.name}"]
    options = {**command.request.options, **_own(best)}
    options = {key: text for key, text in options.items() if key not in NOT_FOR_DECIDE}
    if apart:
        options["test_per_class"] = str(apart)
    try:
        plan = decide_plan(replace(command.request, options=options))
        if source.test is None:
            source = with_test_split(source, plan.treatment.settings)
            test_split(source, plan.treatment.settings)
        pool = pool_in(source, plan.treatment.settings, plan.decide.design.looks)
    except PipelineError as err:
        return [*lines, f"decide cannot be asked so: {err}"], False
    assert source.test
    images = len(source.test.labels)
    seeds = plan.decide.seeds
    pair = estimate((plan.treatment, plan.control), images, tracking, seeds=seeds)
    shown = ", ".join(
        f"{count_of(pairs, 'pair')} {minutes(pair.seconds(pairs * seeds))}" for pairs in pool.looks
    )
    return [*lines, f"decide takes about {pair.mean_s:.0f} s a pair: {shown}"], True


def _own(best: Tried) -> dict[str, str]:
    return {"backbone": best.candidate.backbone, "weights": best.candidate.weights}


def _chosen(command: Command, plan: StartPlan, tried: Sequence[Tried]) -> Tried:
    """The best; what was typed, unless the best leads it by more than two standard errors."""
    best = max(tried, key=lambda one: one.best)
    given = _typed(command, plan)
    typed = next((one for one in tried if one.candidate == given), best)
    is_near = best.best - typed.best <= 2 * math.hypot(best.error, typed.error)
    return typed if is_near else best


def _typed(command: Command, plan: StartPlan) -> Candidate | None:
    """The network and weights that were typed, if either was."""
    is_typed = {"backbone", "weights"} & command.request.typed.keys()
    return Candidate(plan.settings.backbone, plan.settings.weights) if is_typed else None


def _instead(command: Command, plan: StartPlan, best: Tried) -> str:
    """Words where the commands name another network or weights than those that were typed."""
    given = _typed(command, plan)
    if given in (None, best.candidate):
        return ""
    return f", with {best.candidate.name}, the best here, in place of {given.name}"


def _next(command: Command, best: Tried, apart: int, *, can_decide: bool) -> Mapping[str, str]:
    """What to type, by what it answers: the options that were typed, and the best backbone.

    `apart`: test images of each class to set aside.
    """
    typed = {key: text for key, text in command.request.typed.items() if key != "backbones"}
    options = {**typed, **_own(best)}
    if apart:
        options["test_per_class"] = str(apart)
    without = {key: text for key, text in options.items() if key not in NOT_FOR_DECIDE}
    return {
        "a first look": command_line("main", options),
        **({"is stage 3 justified?": command_line("decide", without)} if can_decide else {}),
        "better settings": command_line("tune", {**options, "stage": "all"}),
    }
