"""Is a treatment's gain worth having? Looks at the posterior, and a verdict.

In: paired gains in percentage points, in the order in which the pairs were run; a `Design`. Out:
what each look finds, and a `Verdict` with its reason and one sentence. Pure functions. Not
covered: how the pairs are made, and how often such verdicts are wrong (`operating.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.stats.crossed import Table, posterior_of
from pipeline.stats.design import Design
from pipeline.stats.posterior import INTERVAL, Floats, Gains, Posterior
from pipeline.stats.robustness import Robustness, robustness, still_enough
from pipeline.stats.seeds import correction_by_seeds
from pipeline.system.text import count_of

VerdictState = Literal["justified", "not_justified", "inconclusive", "go_on"]
Kind = Literal["equivalent", "no_gain", "harmful"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look: what was believed, and what follows; `kind` is that of `not_justified`."""

    posterior: Posterior
    state: VerdictState
    kind: Kind | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The whole path of a decision, and where it stands.

    Attributes:
        kind: of `not_justified`; otherwise None. `harmful`: a loss beyond the ROPE is shown;
            `equivalent`: a gain and a loss beyond it are both ruled out; `no_gain`: a gain above
            it is ruled out, a loss beyond it is neither shown nor ruled out.
        looks: every look taken, first to last; empty before the first.
        pairs_needed: further pairs until the next look; 0 unless the state is `go_on`.
    """

    state: VerdictState
    kind: Kind | None = None
    reason: str
    looks: tuple[Look, ...]
    pairs_needed: int = 0

    @property
    def posterior(self) -> Posterior | None:
        """What was believed at the last look; None before the first."""
        return self.looks[-1].posterior if self.looks else None

    @property
    def pairs(self) -> int:
        """Pairs that the verdict rests on."""
        return self.looks[-1].posterior.pairs if self.looks else 0

    def sentence(self, treatment: str = "stage 3", control: str = "") -> str:
        """The verdict in one sentence, with the names of the arms as they are given."""
        name = treatment[:1].upper() + treatment[1:]
        known = self.posterior
        if known is None:
            return f"{name}: no verdict yet, {_pairs(self.pairs_needed)} to the first look."
        low, high = known.shown_interval_pp
        loses = round(known.mean_pp, 1) < 0
        size = f"loses {-known.mean_pp:.1f}" if loses else f"gains {known.mean_pp:+z.1f}"
        against = f" against {control}" if control else ""
        interval = f"{INTERVAL:.0%} interval {low:+z.1f} to {high:+z.1f}"
        rests_on = f"{interval}, {_pairs(known.pairs)}"
        return f"{name} {size} pp{against} ({rests_on}): {self._in_words(known.rope_pp)}."

    def _in_words(self, rope_pp: float) -> str:
        if self.state == "go_on":
            return f"no verdict yet, {_pairs(self.pairs_needed)} to the next look"
        if self.kind == "harmful":
            return "not justified, harmful"
        if self.kind in {"equivalent", "no_gain"}:
            return f"not justified, a gain above {rope_pp:g} pp is ruled out"
        if self.state == "inconclusive":
            return f"inconclusive, whether it gains more than {rope_pp:g} pp stays open"
        return self.state


def rule(above: Floats, below: Floats, threshold: float) -> NDArray[np.str_]:
    """What a look finds: `justified`, `harmful`, `equivalent`, `no_gain` or `open`; any shape.

    P(gain < ROPE), which rules a gain out, includes the losses. Equivalence asks for two one-sided
    tests (Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680). A threshold
    above one half keeps the findings apart.
    """
    no_gain, no_loss = 1 - above >= threshold, 1 - below >= threshold
    found = [above >= threshold, below >= threshold, no_gain & no_loss, no_gain]
    return np.select(found, ["justified", "harmful", "equivalent", "no_gain"], "open")


def decide_at_look(
    gains_pp: Gains,
    design: Design,
    correction: float = 0.0,
    resolution_pp: float = 0.0,
    differences: Table | None = None,
) -> Look:
    """One look at all of `gains_pp`; what earlier looks found plays no part.

    `justified` at P(gain > ROPE) >= threshold. `not_justified` at P(gain < ROPE) >= threshold:
    `harmful` if P(gain < -ROPE) reaches it too, `equivalent` if a loss is ruled out as well, else
    `no_gain`. Otherwise `go_on`, after the last look `inconclusive`. With `differences` (pairs,
    images), from which the gains come, the posterior covers other test images, too, and brings its
    own resolution. A `robust` design does not say `justified` where a single pair carries the
    verdict (`robustness.py`). Gains (draws, seeds) and their correction become those of draws'
    means (`seeds.py`).
    """
    gains_pp = np.asarray(gains_pp, dtype=float)
    if gains_pp.ndim == 2:
        correction = correction_by_seeds(gains_pp, correction) if correction else 0.0
        gains_pp = gains_pp.mean(axis=1)
    known = posterior_of(
        gains_pp,
        rope_pp=design.rope_pp,
        correction=correction,
        resolution_pp=resolution_pp,
        differences=differences,
    )
    threshold = design.threshold_at(known.pairs)
    found = str(rule(np.asarray(known.p_above), np.asarray(known.p_below), threshold))
    more = design.pairs_to_next_look(known.pairs)
    otherwise: Literal["go_on", "inconclusive"] = "go_on" if more else "inconclusive"
    state: VerdictState = otherwise
    kind: Kind | None = None
    if found == "justified":
        state = "justified"
    elif found != "open":
        state, kind = "not_justified", cast("Kind", found)
    reason = _reason(known, state, kind, threshold)
    if state == "justified" and design.robust and known.pairs > 2:
        record = robustness(
            gains_pp,
            rope_pp=design.rope_pp,
            correction=correction,
            resolution_pp=resolution_pp,
            differences=differences,
        )
        if not record.stands(threshold):
            state, reason = otherwise, f"{reason}, but {_carried(record, threshold)}"
    return Look(posterior=known, state=state, kind=kind, reason=reason)


def verdict(
    gains_pp: Gains,
    design: Design,
    correction: float = 0.0,
    resolution_pp: float = 0.0,
    differences: Table | None = None,
) -> Verdict:
    """Walk through the looks until a verdict falls, over gains in the order they were run.

    Gains beyond the last look taken are not used: with 7 gains and looks after 5 and 10, the state
    `go_on` rests on 5. Before the first look the state is `go_on`.
    """
    taken: list[Look] = []
    for pairs in (look for look in design.looks if look <= len(gains_pp)):
        table = None if differences is None else differences[:pairs]
        look = decide_at_look(gains_pp[:pairs], design, correction, resolution_pp, table)
        taken.append(look)
        if look.state != "go_on":
            return Verdict(
                state=look.state, kind=look.kind, reason=look.reason, looks=tuple(taken)
            )
    needed = design.pairs_to_next_look(len(gains_pp))
    have = f"{_pairs(len(gains_pp))}, the next look needs {needed} more"
    reason = f"{taken[-1].reason}; {have}" if taken else have
    return Verdict(state="go_on", reason=reason, looks=tuple(taken), pairs_needed=needed)


def shown_probability(probability: float, threshold: float) -> str:
    """Three digits, or as many as the threshold has; never rounded up to a verdict."""
    digits = max(3, len(f"{threshold}") - 2)
    rounded = f"{probability:.{digits}f}"
    if probability < threshold <= float(rounded):
        return f"{math.floor(probability * 10**digits) / 10**digits:.{digits}f}"
    return rounded


def _reason(known: Posterior, state: VerdictState, kind: Kind | None, threshold: float) -> str:
    def odds(edge: str, probability: float) -> str:
        return f"P(gain {edge} pp) = {shown_probability(probability, threshold)}"

    above = odds(f"> {known.rope_pp:g}", known.p_above)
    at_most = odds(f"<= {known.rope_pp:g}", 1 - known.p_above)
    below = odds(f"< {-known.rope_pp:zg}", known.p_below)
    if state == "justified":
        words = f"{above} is at least {threshold}"
    elif kind == "harmful":
        words = f"{below} is at least {threshold}"
    elif kind:
        words = f"{at_most} is at least {threshold}, {below} is not"
    else:
        last = "the last look, " if state == "inconclusive" else ""
        words = f"after {last}{_pairs(known.pairs)}, {above} and {at_most} are below {threshold}"
    equal = "; all gains are equal" if known.sd_pp == 0 else ""
    shared = f"; pairs share images (correction {known.correction:.2g})"
    return words + equal + (shared if known.correction else "")


def _carried(record: Robustness, threshold: float) -> str:
    if not record.keeps_sign:
        return "leaving out a single pair changes the sign"
    wanted = f"the {still_enough(threshold):.3g} that must remain"
    odds = f"P = {record.p_above[record.weakest]:.3f}, below {wanted}"
    return f"pair {record.weakest + 1} carries it: without this pair {odds}"


def _pairs(count: int) -> str:
    return count_of(count, "pair")
