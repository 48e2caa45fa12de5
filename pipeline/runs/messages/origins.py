"""Which libraries and devices computed runs, and what is told where they are not those of today.

Lineage keys do not name libraries, so that runs stay findable after an upgrade. Such runs are as
good as before, but not what would be computed now to the last bit: commands that reuse them say
so. In: stage runs, of which earlier versions recorded nothing. Out: sentences.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from pipeline.model.networks import distributions_of
from pipeline.system.provenance import libraries
from pipeline.system.text import count_of
from pipeline.tracking.keys import MADE_WITH
from pipeline.tracking.view import RunView

NOT_RECORDED = "libraries that were not recorded"
Origins = Mapping[str, str]
"""Run id -> what computed the run."""


def made_with(device: torch.device, network: str) -> str:
    """What computes that network in this process on that device, as runs record it."""
    model = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{libraries(*distributions_of(network))}, on {device.type}{model}"


def origin_of(run: RunView) -> str:
    """What computed a run."""
    return run.tags.get(MADE_WITH, NOT_RECORDED)


def is_made_with(origin: str, here: str) -> bool:
    """Whether runs were made with what is here.

    Earlier versions name neither a network's library nor the model of a GPU.
    """
    former = re.sub(r" \(.+\)$", "", here)
    return origin in (here, former, re.sub(r"(pillow [^,]+), .+(, on )", r"\1\2", former))


def note_on_origin(run: RunView, here: str) -> str:
    """How a run that was found differs from one made here; empty where it does not."""
    return (
        ""
        if is_made_with(origin_of(run), here)
        else f", made with {origin_of(run)} (here: {here})"
    )


def origins_in_words(origins: Origins) -> str:
    """What computed runs, and how many."""
    counts = Counter(origins.values()).most_common()
    return "; ".join(f"{origin} ({count_of(count, 'run')})" for origin, count in counts)


def of_all(pairs: Iterable[Sequence[Origins]]) -> Origins:
    """What computed the runs of all arms of all pairs."""
    return {run_id: made for arms in pairs for arm in arms for run_id, made in arm.items()}


def note_on_origins(pairs: Sequence[Sequence[Origins]], here: str) -> str:
    """A line about runs that were not made with what is here; empty where there are none.

    `pairs`: for each pair, what computed the runs of each arm, its own run first.
    """
    every = of_all(pairs)
    others = {run_id: origin for run_id, origin in every.items() if not is_made_with(origin, here)}
    if not others:
        return ""
    apart = sum(len({next(iter(arm.values())) for arm in arms}) > 1 for arms in pairs)
    within = f", and the arms of {count_of(apart, 'pair')} with different ones" if apart else ""
    return (
        f"note: {len(others)} of {len(every)} runs were made with {origins_in_words(others)}, "
        f"not with {here}{within}: they count as they are; another experiment "
        "(MLFLOW_EXPERIMENT_NAME) trains all of them anew"
    )
