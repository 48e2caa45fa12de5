"""What a decision leaves behind: one page, tags on the runs it rests on, numbers.

In: a `Decision`, and the tags of its runs. Out: the page (`decision.md.j2`), as HTML that needs no
other file and as Markdown, on the decision's MLflow run; tags `verdict` on the treatment's runs
and on studies, `gate.…` on parents. These runs may be other people's: what another decision or
command has written stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from matplotlib.figure import Figure

from pipeline.comparing.cost import shown_steps
from pipeline.comparing.decision import Decision
from pipeline.comparing.pairs.results import stage0_ahead_of
from pipeline.reporting.figures import gains_picture
from pipeline.reporting.page import to_html, to_markdown
from pipeline.runs.messages.command_line import command_line
from pipeline.runs.messages.origins import (
    Origins,
    made_with,
    note_on_origins,
    of_all,
    origins_in_words,
)
from pipeline.runs.messages.words import minutes, stage_in_words, with_auto_resolved
from pipeline.runs.stage_log import picture_line
from pipeline.settings.layers import CONTROL
from pipeline.settings.run import INHERITED_KEYS, RUN_KEYS
from pipeline.signals.cases import cases_like
from pipeline.signals.claims import claim_of
from pipeline.signals.gate import Gate, gate_over
from pipeline.stats.metrics import DEFAULT_SHARE, METRICS
from pipeline.stats.verdict import shown_probability
from pipeline.system.text import as_markdown, count_of
from pipeline.tracking import RunLog, RunView, Tracking
from pipeline.tracking.history import chain_of
from pipeline.tracking.keys import (
    DATA_SHA256,
    DECISION_RUN_ID,
    GIT_COMMIT,
    MADE_WITH,
    NOTE,
    PARENT_RUN_ID,
    SIGNAL_TAGS,
    STAGE,
    VERDICT,
    VERDICT_PAIRS,
    VERDICT_QUESTION,
)
from pipeline.training.device import pick_device

PICTURE = "figures/gains.png"
EFFECTS = "mended_and_broken.csv"
NOT_SHOWN = ("draw", "data_seed", "seed", "enforce_gate", "cache_dir", "cache_limit")
"""Settings left out of a page: pairs differ in them, or they are always off, or name places."""


def log_decision(
    decision: Decision,
    log: RunLog,
    tracking: Tracking,
    say: Callable[[str], None],
    changes: Mapping[str, Figure] = MappingProxyType({}),
) -> None:
    """The report, the tags and the numbers; prints the verdict.

    `changes`: a picture of the test images that the treatment mends and breaks, by its path.
    """
    runs = [tracking.get(pair.treatment.run_id) for pair in decision.pairs]
    gate, treatment = None, decision.treatment
    last = [run for run in runs if run.number(STAGE) == treatment.last]  # the others diverged
    if last and (treatment.name, treatment.last) == ("three_stage", 3):
        parents = _one_a_draw([tracking.get(run.tags[PARENT_RUN_ID]) for run in last])
        title = f"{count_of(len(parents), 'draw')} of a decision"
        gate = gate_over(tracking, parents, treatment.settings, title, say, only_new=True)[0]
    pictures = {PICTURE: _picture_of(decision), **changes}
    commits = _commits(decision, tracking)
    page = page_of(decision, runs, gate, commits, changes="".join(changes))
    for path, figure in pictures.items():
        log.figure(figure, path)
    log.text(decision.effects.to_csv(index=False), EFFECTS)
    log.text(page, "report.md")
    log.text(to_html(page, pictures), "report.html")
    origins = _origins(decision)
    made = origins_in_words(of_all(origins))
    then = next_of(decision)
    note = [f"**{decision.sentence}**", as_markdown(stage0_ahead(decision)), decision.outlook]
    note += [f"Next: `{then}`" if then else ""]
    note += [picture_line(log.run_id, PICTURE), "The report: artifact `report.html`."]
    log.tags({**decision.tags, NOTE: "\n\n".join(filter(None, note)), MADE_WITH: made})
    log.metrics(decision.metrics)
    for number, gain in enumerate(decision.means_pp, start=1):
        log.metrics({"gain/pair_pp": gain}, step=number)
    studies = [run_id for arm in decision.tuned for run_id in arm.run_ids]
    for run in [*map(tracking.get, studies), *runs]:
        mark(decision, log.run_id, run, tracking)
    here = made_with(pick_device(treatment.settings.device), treatment.settings.backbone)
    other = note_on_origins(origins, here)
    below = f"{decision.floor.sentence}, draw of the first pair" if decision.floor else ""
    told = [decision.sentence, stage0_ahead(decision), decision.outlook]
    told += [decision.test.note, other, below]
    told += [f"next: {then}"] if then else []
    say("\n".join(filter(None, told)))
    say(f"report: report.html and report.md of run {log.run_id}")


def _one_a_draw(runs: Sequence[RunView]) -> list[RunView]:
    """Of each set of images the first run: other seeds on it are no further draws."""
    return list({run.tags[DATA_SHA256]: run for run in reversed(runs)}.values())[::-1]


def stage0_ahead(decision: Decision) -> str:
    """A line where stage 0 is ahead of both arms on the first pair's images; else empty."""
    first = decision.pairs[0]
    arms = {decision.treatment.words: first.treatment, decision.control.words: first.control}
    return stage0_ahead_of(decision.floor, arms, decision.metric, "-P tune=on")


def _origins(decision: Decision) -> list[tuple[Origins, Origins]]:
    """What computed the runs of both arms, by pair."""
    return [(pair.treatment.origins, pair.control.origins) for pair in decision.pairs]


def _picture_of(decision: Decision) -> Figure:
    """Every pair, mean, interval, ROPE, and the looks."""
    found = decision.verdict
    known = found.posterior
    assert known
    title = f"{decision.treatment.words} against {decision.control.words}: {found.state}"
    looks = [look.posterior for look in found.looks]
    path = [(look.pairs, look.p_above, look.p_inside, look.p_below) for look in looks]
    gains = decision.means_pp
    return gains_picture(title, gains, known.mean_pp, known.shown_interval_pp, known.rope_pp, path)


def page_of(
    decision: Decision,
    runs: Sequence[RunView],
    gate: Gate | None,
    commits: Sequence[str],
    changes: str = "",
) -> str:
    """The page as Markdown, of the treatment's runs and the commits that made all runs.

    `changes`: where the picture of mended and broken images stands; empty: there is none.
    """
    settings = decision.treatment.settings
    keys = [key for key in RUN_KEYS if not key.startswith(("gate_", "signal_"))]
    values = {key: getattr(settings, key) for key in keys if key not in NOT_SHOWN}
    values |= {
        key: with_auto_resolved(values[key], [run.tags.get(key, "") for run in runs])
        for key in ("norm_stats", "precision")
    }
    return to_markdown(
        "decision",
        decision=decision,
        treatment=decision.treatment,
        control=decision.control,
        verdict=decision.verdict,
        words=METRICS[decision.metric].words,
        settings=settings,
        weights=Path(settings.weights).name,
        data=settings.data_name,
        steps=shown_steps(decision.steps),
        probability=lambda known, odds: shown_probability(
            odds, decision.design.threshold_at(known.pairs)
        ),
        stage_in_words=stage_in_words,
        wall=minutes(decision.wall_s),
        ahead=stage0_ahead(decision),
        signals=_signals(runs),
        gate=gate,
        cases=cases_like(gate.prior) if gate else "",
        values={key: value for key, value in values.items() if value not in ("", "auto", None)},
        runs=runs,
        commits=commits,
        made_with=origins_in_words(of_all(_origins(decision))),
        command=command_of(decision),
        picture=PICTURE,
        changes=changes,
    )


def _signals(runs: Sequence[RunView]) -> list[tuple[str, str, Counter[str]]]:
    """Of each signal its claim in words, its tag, and how many of the runs have which value."""
    names = {key for run in runs for key in run.tags if key.startswith(SIGNAL_TAGS)}
    return [
        (
            claim_of(name.removeprefix(SIGNAL_TAGS)),
            name,
            Counter(run.tags.get(name, "missing") for run in runs),
        )
        for name in sorted(names, reverse=True)
    ]


def _commits(decision: Decision, tracking: Tracking) -> list[str]:
    """The commits of all runs of both arms, parents included: some may have been found."""
    results = (result for pair in decision.pairs for result in (pair.treatment, pair.control))
    chains = (chain_of(tracking, tracking.get(result.run_id)) for result in results)
    return sorted({run.tags[GIT_COMMIT] for chain in chains for run in chain} - {""})


def mark(decision: Decision, decision_run_id: str, run: RunView, tracking: Tracking) -> None:
    """Tag a run with the verdict that rests on it, unless it carries another question's.

    Runs are found by content, so they may be another person's. The same question asked again, with
    as many pairs or more, has the last word.
    """
    old, new = run.tags, decision.tags
    is_same = old.get(VERDICT_QUESTION) == new[VERDICT_QUESTION]
    if VERDICT in old and not (is_same and run.number(VERDICT_PAIRS) <= int(new[VERDICT_PAIRS])):
        return
    tracking.writing(run.run_id).tags({**new, DECISION_RUN_ID: decision_run_id})


def next_of(decision: Decision) -> str:
    """What was typed, with more looks, for a decision that is open; empty where it is settled."""
    if not decision.next_looks:
        return ""
    request = decision.asked.request
    typed = {**request.typed, **(request.typed_storage if decision.asked.decide.tune else {})}
    return command_line("decide", {**typed, "looks": ",".join(map(str, decision.next_looks))})


def command_of(decision: Decision) -> str:
    """A command line that makes the same decision: what was asked, spelled out."""
    asked, design = decision.asked, decision.design
    settings, treatment = asked.treatment.settings, decision.treatment
    keys = ("preset", *INHERITED_KEYS, "seed", "views", "precision")
    values = {key: getattr(settings, key) for key in keys if key != "schedule"}  # arms have own
    options = {key: value for key, value in values.items() if value != "" and value is not False}
    options |= asked.general
    options |= {f"{CONTROL}{key}": value for key, value in asked.request.control.items()}
    for number in range(1, treatment.last + 1):
        for key, value in settings.training(number).model_dump().items():
            if key in asked.explicit[number] or not asked.decide.tune:  # what is tuned stays open
                options[f"stage{number}.{key}"] = value
    options |= {"rope_pp": design.rope_pp, "looks": ",".join(map(str, design.looks))}
    options["threshold"] = design.threshold
    options |= {k: v for k in ("beside", "register_as") if (v := getattr(asked.decide, k))}
    if asked.decide.refit != "auto":
        options["refit"] = asked.decide.refit
    if decision.metric != DEFAULT_SHARE:
        options["metric"] = decision.metric
    if decision.seeds > 1:
        options["seeds"] = decision.seeds
    if asked.decide.tune:
        study = ("n_trials", "draws", "objective", "margin")
        options |= {"tune": "on", **{key: getattr(asked.tune, key) for key in study}}
        options |= asked.request.typed_storage
    if treatment.is_stage:
        options["question"] = f"stage{treatment.last}"
    else:
        arms = {"treatment": treatment, "control": decision.control}
        options |= {key: arm.settings.schedule for key, arm in arms.items()}
    return command_line("decide", options)
