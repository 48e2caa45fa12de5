"""What a decision leaves behind: one page, tags on the runs it rests on, numbers.

In: a `Decision`, and the tags of its runs. Out: the page (`decision.md.j2`), as HTML that needs no
other file and as Markdown, on the decision's MLflow run; tags `verdict` on the treatment's runs
and on studies, `gate.…` on parents. These runs may be other people's: nothing that another
decision or command has written is written over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.comparing.cost import shown_steps
from pipeline.comparing.results import Decision
from pipeline.reporting.figures import gains_picture
from pipeline.reporting.page import to_html, to_markdown
from pipeline.runs.command_line import command_line
from pipeline.runs.summary import came_to, minutes, stage_in_words
from pipeline.settings.run import INHERITED_KEYS, RUN_KEYS
from pipeline.signals.gate import Gate, gate_over
from pipeline.stats.metrics import DEFAULT_SHARE, METRICS
from pipeline.stats.verdict import shown_probability
from pipeline.tracking import RunLog, RunView, Tracking

PICTURE = "figures/gains.png"
NOT_SHOWN = ("draw", "data_seed", "seed", "enforce_gate")
"""Settings in which pairs differ, which have a table of their own, and one that is always off."""


def log_decision(
    decision: Decision, log: RunLog, tracking: Tracking, say: Callable[[str], None]
) -> None:
    """The report, the tags and the numbers; prints the verdict."""
    runs = [tracking.get(pair.treatment.run_id) for pair in decision.pairs]
    gate = gate_of_parents(decision, tracking, runs, say)
    page, figure = (
        page_of(decision, runs, gate, _commits(decision, tracking)),
        picture_of(decision),
    )
    log.figure(figure, PICTURE)
    log.text(page, "report.md")
    log.text(to_html(page, {PICTURE: figure}), "report.html")
    log.tags({**decision.tags, "mlflow.note.content": decision.sentence})
    log.metrics(decision.metrics)
    for number, gain in enumerate(decision.gains_pp, start=1):
        log.metrics({"gain/pair_pp": gain}, step=number)
    studies = [run_id for arm in decision.tuned for run_id in arm.run_ids]
    for run in [*map(tracking.get, studies), *runs]:
        mark(decision, log.run_id, run, tracking)
    say("\n".join([decision.test.note, decision.sentence]))
    say(f"report: report.html and report.md of run {log.run_id}")


def picture_of(decision: Decision) -> Figure:
    """Every pair, mean, interval, ROPE, and the looks."""
    found = decision.verdict
    known = found.posterior
    assert known
    title = f"{decision.treatment.words} against {decision.control.words}: {found.state}"
    looks = [look.posterior for look in found.looks]
    path = [(look.pairs, look.p_above, look.p_inside, look.p_below) for look in looks]
    gains = decision.gains_pp
    return gains_picture(title, gains, known.mean_pp, known.interval_pp, known.rope_pp, path)


def page_of(
    decision: Decision, runs: Sequence[RunView], gate: Gate | None, commits: Sequence[str]
) -> str:
    """The page as Markdown, of the treatment's runs and the commits that made all runs."""
    settings = decision.treatment.settings
    keys = [key for key in RUN_KEYS if not key.startswith(("gate_", "signal_"))]
    values = {key: getattr(settings, key) for key in keys if key not in NOT_SHOWN}
    values |= {
        key: came_to(values[key], [run.tags.get(key, "") for run in runs])
        for key in ("norm_stats", "precision")
    }
    names = {key for run in runs for key in run.tags if key.startswith("signal.")}
    return to_markdown(
        "decision",
        decision=decision,
        treatment=decision.treatment,
        control=decision.control,
        verdict=decision.verdict,
        words=METRICS[decision.metric].words,
        settings=settings,
        weights=Path(settings.weights).name,
        data=Path(settings.data).name,
        steps=shown_steps(decision.steps),
        probability=partial(shown_probability, threshold=decision.design.threshold),
        stage_in_words=stage_in_words,
        wall=minutes(decision.wall_s),
        signals={
            name.removeprefix("signal."): Counter(run.tags.get(name, "missing") for run in runs)
            for name in sorted(names, reverse=True)
        },
        gate=gate,
        values=values,
        runs=runs,
        commits=commits,
        command=command_of(decision),
        picture=PICTURE,
    )


def _commits(decision: Decision, tracking: Tracking) -> list[str]:
    """The commits of all runs of both arms, parents included: some may have been found."""
    left = [arm.run_id for pair in decision.pairs for arm in (pair.treatment, pair.control)]
    found: dict[str, str] = {"none": ""}
    for run_id in left:
        while run_id not in found:
            run = tracking.get(run_id)
            found[run_id], run_id = run.tags["git_commit"], run.tags["parent_run_id"]
    return sorted({*found.values()} - {""})


def mark(decision: Decision, decision_run_id: str, run: RunView, tracking: Tracking) -> None:
    """Tag a run with the verdict that rests on it, unless it carries that of another question.

    Runs are found by content, so they may be another person's. The same question asked again, with
    as many pairs or more, has the last word.
    """
    new = decision.tags
    same = run.tags.get("verdict.question") == new["verdict.question"]
    if "verdict" in run.tags and not (
        same and run.number("verdict.pairs") <= int(new["verdict.pairs"])
    ):
        return
    tracking.writing(run.run_id).tags({**new, "decision_run_id": decision_run_id})


def gate_of_parents(
    decision: Decision, tracking: Tracking, runs: Sequence[RunView], say: Callable[[str], None]
) -> Gate | None:
    """The gate over the parents of stage 3, where stage 3 is what was judged."""
    if (decision.treatment.name, decision.treatment.last) != ("three_stage", 3):
        return None
    parents = [tracking.get(run.tags["parent_run_id"]) for run in runs]
    title = f"{len(parents)} pairs of a decision"
    settings = decision.treatment.settings
    return gate_over(tracking, parents, settings, title, say, only_new=True)[0]


def command_of(decision: Decision) -> str:
    """A command line that makes the same decision: what was asked, spelled out."""
    asked = decision.asked
    settings = asked.treatment.settings
    keys = ["preset", *INHERITED_KEYS, "seed", "views", "precision"]
    keys.remove("schedule")  # each arm has its own
    values = {key: getattr(settings, key) for key in keys}
    options = {key: value for key, value in values.items() if value != "" and value is not False}
    options |= dict(asked.general)
    for arm_stage in range(1, decision.treatment.last + 1):
        training = settings.training(arm_stage).model_dump()
        # what is tuned must stay open
        kept = asked.explicit[arm_stage] if asked.decide.tune else training.keys()
        options |= {f"stage{arm_stage}.{key}": training[key] for key in training if key in kept}
    options |= {
        "rope_pp": decision.design.rope_pp,
        "looks": ",".join(map(str, decision.design.looks)),
        "threshold": decision.design.threshold,
    }
    for key in ("beside", "register_as"):
        if given := getattr(asked.decide, key):
            options[key] = given
    if decision.metric != DEFAULT_SHARE:
        options["metric"] = decision.metric
    if asked.decide.tune:
        tune = asked.tune
        options |= {"tune": "on", "n_trials": tune.n_trials, "draws": tune.draws}
        options |= {"objective": tune.objective, "margin": tune.margin}
    if decision.treatment.is_stage:
        options["question"] = f"stage{decision.treatment.last}"
    else:
        options |= {
            "treatment": decision.treatment.settings.schedule,
            "control": decision.control.settings.schedule,
        }
    return command_line("decide", options)
