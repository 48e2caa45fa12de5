"""A decision as people read it: one page, as HTML that needs no other file, and as Markdown.

In: a `Decision`, and what its runs say of themselves. Out: the page, on the decision's MLflow run;
tags on that run, on studies and on the treatment's runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.comparing.arms import Arm, TunedArm
from pipeline.comparing.cost import shown_steps
from pipeline.comparing.decision import ArmCost, Decision
from pipeline.comparing.decision_marks import gate_of_parents, mark
from pipeline.comparing.reproduce import command_of
from pipeline.reporting.figures import gains_picture
from pipeline.reporting.page import Page, Part, Table, to_html, to_markdown
from pipeline.runs.summary import came_to, minutes, training_in_words
from pipeline.settings.run import RUN_KEYS
from pipeline.signals.gate import Gate
from pipeline.stats.metrics import METRICS
from pipeline.stats.verdict import Verdict, shown_probability
from pipeline.tracking import RunLog, RunView, Tracking

PICTURE = "figures/gains.png"


def log_decision(
    decision: Decision, log: RunLog, tracking: Tracking, say: Callable[[str], None]
) -> None:
    """The report, the tags and the numbers; says the verdict."""
    runs = [tracking.get(pair.treatment.run_id) for pair in decision.pairs]
    gate = gate_of_parents(decision, tracking, runs, say)
    page, figure = page_of(decision, runs, gate, _code(decision, tracking)), picture_of(decision)
    log.figure(figure, PICTURE)
    markdown = to_markdown(page)
    log.text(markdown, "report.md")
    log.text(to_html(page, figure), "report.html")
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
    return gains_picture(
        title, decision.gains_pp, known.mean_pp, known.interval_pp, known.rope_pp, _path(found)
    )


def _path(found: Verdict) -> list[tuple[int, float, float, float]]:
    """Pairs, P(gain), P(equivalent) and P(harm) at every look."""
    looks = [look.posterior for look in found.looks]
    return [(look.pairs, look.p_above, look.p_inside, look.p_below) for look in looks]


def page_of(
    decision: Decision, runs: Sequence[RunView], gate: Gate | None, code: Sequence[str]
) -> Page:
    """The page, whatever it is written as; `code`: commits that its runs were made by."""
    found = decision.verdict
    settings = decision.treatment.settings
    page: Page = [
        Part("title", f"Is {decision.treatment.words} justified? {found.state.replace('_', ' ')}"),
        Part("lead", decision.sentence),
        Part(
            "text",
            f"{settings.backbone} with {Path(settings.weights).name} weights on "
            f"{Path(settings.data).name}, {settings.train_per_class} training images of each of "
            f"{decision.classes} classes. Recommended: {decision.recommended.words}. Both arms "
            f"had {shown_steps(decision.steps)} optimizer steps on the same images with the same "
            f"seeds, and were scored by {METRICS[decision.metric].words} on "
            f"{decision.test.words}; all pairs share them: the interval "
            "holds for these test images. "
            f"{found.reason[:1].upper()}{found.reason[1:]}.",
        ),
        Part("picture", PICTURE),
        Part("heading", "The way to the verdict"),
        Table(
            (
                "pairs",
                "mean gain, pp",
                "95% interval",
                "P(gain)",
                "P(equivalent)",
                "P(harm)",
                "found",
            ),
            [
                (
                    str(pairs),
                    f"{look.posterior.mean_pp:+.2f}",
                    "{:+.2f} to {:+.2f}".format(*look.posterior.interval_pp),
                    *(shown_probability(p, decision.design.threshold) for p in odds),
                    look.state.replace("_", " "),
                )
                for look, (pairs, *odds) in zip(found.looks, _path(found), strict=True)
            ],
        ),
        Part(
            "text",
            f"Gain: more than {decision.design.rope_pp:g} pp. Looks after "
            f"{', '.join(map(str, decision.design.looks))} pairs; a verdict falls at "
            f"{decision.design.threshold:g}. Of the images: {decision.pool.sentence}.",
        ),
        Part("heading", "Every pair"),
        Table(
            (
                *("pair", "data_seed", "draw", "seed"),
                *(decision.treatment.words, decision.control.words, "gain, pp"),
            ),
            [
                (
                    str(pair.key.number + 1),
                    str(pair.key.data_seed),
                    str(pair.key.draw),
                    str(pair.key.seed),
                    f"{pair.treatment.test:.2%}",
                    f"{pair.control.test:.2%}",
                    f"{pair.gain_pp:+.2f}",
                )
                for pair in decision.pairs
            ],
        ),
        *_costs(decision),
        *_signals(runs, gate),
    ]
    if decision.beside:
        page += [
            Part("heading", "Beside them, not judged"),
            Table(
                ("arm", "pairs", "mean gain over the control, pp", "every pair"),
                [
                    (
                        arm.words,
                        str(len(gains)),
                        f"{sum(gains) / len(gains):+.2f}",
                        " ".join(f"{gain:+.2f}" for gain in gains),
                    )
                    for arm, gains in decision.beside.values()
                ],
            ),
        ]
    values = {
        key: getattr(settings, key)
        for key in RUN_KEYS
        if not key.startswith(("gate_", "signal_"))
        and key not in ("draw", "data_seed", "seed")  # every pair has its own, above
    }
    values |= {
        key: came_to(values[key], [run.tags.get(key, "") for run in runs])
        for key in ("norm_stats", "precision")
    }
    page += [
        Part("heading", "What it rests on"),
        Table(("setting", "value"), [(key, str(value)) for key, value in values.items()]),
        Table(
            ("stage", *(arm.words for arm in (decision.treatment, decision.control))),
            _stage_rows(decision),
        ),
        Table(
            ("pair", "images (SHA-256)", "treatment run", "control run"),
            [
                (
                    str(p.key.number + 1),
                    run.tags["data_sha256"][:16],
                    p.treatment.run_id,
                    p.control.run_id,
                )
                for p, run in zip(decision.pairs, runs, strict=True)
            ],
        ),
        Part(
            "text",
            f"Weights (SHA-256): {runs[0].tags['weights_sha256']}; code: {', '.join(code)}.",
        ),
        Part("code", command_of(decision)),
    ]
    return page


def _costs(decision: Decision) -> Page:
    costs: list[ArmCost] = [decision.cost(arm) for arm in (decision.treatment, decision.control)]
    known = decision.verdict.posterior
    assert known
    extra = costs[0].training_s - costs[1].training_s
    work = costs[0].operations - costs[1].operations
    released = costs[0].trained - costs[1].trained
    if known.mean_pp > 0 and max(extra, work, released) > 0:
        price = (
            f"A point gained costs {extra / known.mean_pp:+.1f} s, "
            f"{released / known.mean_pp:+,.0f} parameters released and "
            f"{work / 1e9 / known.mean_pp:+,.1f} GFLOP of training."
        )
    elif known.mean_pp > 0:
        price = "What was gained costs nothing more."
    else:
        price = "Nothing was gained for it."
    words = METRICS[decision.metric].words
    page: Page = [
        Part("heading", "What it costs"),
        Table(
            (
                *("arm", "training, s", "parameters trained", "training, GFLOP"),
                *("validation", "test", "optimism, pp"),
            ),
            [
                (
                    cost.arm.words,
                    f"{cost.training_s:.1f}",
                    f"{cost.trained:,}",
                    f"{cost.operations / 1e9:,.1f}",
                    f"{cost.val:.2%}",
                    f"{cost.test:.2%}",
                    f"{cost.optimism_pp:+.2f}",
                )
                for cost in costs
            ],
        ),
        Part(
            "text",
            f"{price} Seconds and operations: of all stages, without the frozen prefix, which is "
            "computed once and shared; parameters: of the largest stage. Optimism: "
            f"validation {words} at the selected epoch minus test {words}. "
            f"This command took {minutes(decision.wall_s)}, without the runs that it found.",
        ),
    ]
    for tuned, cost in zip(decision.tuned, costs, strict=False):
        page.append(Part("text", _tuning(tuned, cost, decision.metric)))
    return page


def _tuning(tuned: TunedArm, cost: ArmCost, metric: str) -> str:
    """What the chosen trial promised, and what came of it."""
    chosen, gap = "the chosen trial's run is gone", ""
    val = tuned.val.get(f"val_{metric}")
    if val is not None:
        chosen = f"chosen trial {val:.2%} on its tuning draws"
        gap = f": optimism gap {100 * (val - cost.test):+.2f} pp"
    return (
        f"Tuning of {tuned.arm.words}: {chosen}, confirmed {cost.test:.2%}{gap} "
        f"(studies {', '.join(tuned.studies.values())})."
    )


def _signals(runs: Sequence[RunView], gate: Gate | None) -> Page:
    names = sorted(
        {key for run in runs for key in run.tags if key.startswith("signal.")}, reverse=True
    )
    rows = []
    for name in names:
        states = Counter(run.tags.get(name, "missing") for run in runs)
        rows.append(
            (name.removeprefix("signal."), *(str(states[s]) for s in ("true", "false", "unknown")))
        )
    page: Page = [
        Part("heading", "What the runs said beforehand"),
        Table(("signal of the treatment's runs", "true", "false", "unknown"), rows),
    ]
    if gate is not None:
        page += [
            Part("text", f"The gate, over the stage-2 runs of these pairs: {gate.prior}."),
            Table(("gate", "", ""), [(r.name, r.state, r.sentence) for r in gate.readings]),
        ]
    return [*page, Part("text", "What signals are worth: docs/signals.md.")]


def _code(decision: Decision, tracking: Tracking) -> list[str]:
    """The commits of all runs of both arms, parents included: some may have been found."""
    left = [arm.run_id for pair in decision.pairs for arm in (pair.treatment, pair.control)]
    found: dict[str, str] = {"none": ""}
    for run_id in left:
        while run_id not in found:
            run = tracking.get(run_id)
            found[run_id], run_id = run.tags["git_commit"], run.tags["parent_run_id"]
    return sorted({*found.values()} - {""})


def _stage_rows(decision: Decision) -> list[tuple[str, ...]]:
    def shown(arm: Arm, number: int) -> str:
        if number > arm.last:
            return ""
        blocks = " + ".join(arm.settings.stage(number).trainable)
        return f"{blocks}: {training_in_words(arm.settings.training(number))}"

    arms = decision.treatment, decision.control
    last = max(arm.last for arm in arms)
    return [(str(n), *(shown(arm, n) for arm in arms)) for n in range(1, last + 1)]
