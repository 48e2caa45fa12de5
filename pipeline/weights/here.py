"""Which pretrained weights are on this machine: what can be tried without a download.

In: torch's download folder, the starter weights, names that a person gives. Out: `Candidate`s, and
for a backbone whose weights are not here a line on how to get them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import WeightsError
from pipeline.model.factories import is_factory
from pipeline.model.networks import TIMM
from pipeline.system.provenance import typed
from pipeline.weights.pretrained import STARTER_BACKBONE, is_here
from pipeline.weights.published import (
    DEFAULT,
    PRETRAINED,
    is_published_name,
    kept_files,
    published,
)

STARTER_WEIGHTS = "tiny_imagenet"


@dataclass(frozen=True)
class Candidate:
    """A backbone with weights."""

    backbone: str
    weights: str

    @property
    def name(self) -> str:
        """Both in a word."""
        return f"{self.backbone} ({self.weights.rpartition('/')[2]})"


def candidates_here(
    asked: Candidate, backbones: Sequence[str]
) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates to try, and those asked for whose weights are not on this machine.

    To try: `asked`, the starter, and every network of torchvision whose published weights torch
    keeps. `backbones`, if any, are tried instead: each with the weights of `asked`, or with its
    library's default where `asked` has a file, the starter of another network, or a name of
    another library; where these weights are not here or were never published, with a
    published file of the backbone that torch keeps.
    """
    kept = kept_files()
    by_name = dict(reversed(kept))
    wanted, found = [asked], [Candidate(STARTER_BACKBONE, STARTER_WEIGHTS)]
    found += [Candidate(*pair) for pair in kept]
    if backbones:
        wanted, found = [Candidate(name, _own_weights(name, asked)) for name in backbones], []
    there = [one for one in wanted if _is_here(one)]
    for one in wanted:
        if one not in there and one.backbone in by_name:
            found.append(Candidate(one.backbone, by_name[one.backbone]))
    unique: dict[tuple[str, str], Candidate] = {}
    for one in (*there, *found):
        unique.setdefault(_file_of(one), one)
    here = list(unique.values())
    names = {one.backbone for one in here}
    return here, [o for o in wanted if o not in there and not (backbones and o.backbone in names)]


def _is_here(one: Candidate) -> bool:
    try:
        return is_here(one.weights, one.backbone)
    except WeightsError:  # of a name that its library does not have: `how_to_get` says so
        return False


def _file_of(one: Candidate) -> tuple[str, str]:
    """What tells whether two are the same: `imagenet` stands for the newest of torchvision's."""
    is_torchvision = not one.backbone.startswith(TIMM) and not is_factory(one.backbone)
    if is_torchvision and is_published_name(one.weights):
        return one.backbone, str(published(one.weights, one.backbone)[1])
    return one.backbone, one.weights


def _own_weights(backbone: str, asked: Candidate) -> str:
    """The weights that a backbone of a list is tried with."""
    if backbone == asked.backbone or asked.weights == "none":
        return asked.weights
    if is_factory(backbone):
        return PRETRAINED
    if backbone.startswith(TIMM):
        return asked.weights if asked.weights == DEFAULT else PRETRAINED
    return asked.weights if is_published_name(asked.weights) else DEFAULT


def how_to_get(candidate: Candidate) -> str:
    """What to do for weights that are not here."""
    backbone, weights = candidate.backbone, candidate.weights
    if backbone.startswith(TIMM):
        return f"{candidate.name}: not here: `{typed('main')} -P backbone={backbone}` fetches them"
    try:
        url, path = published(weights, backbone)
    except WeightsError as err:
        return f"{candidate.name}: {err}"
    return (
        f"{candidate.name}: not here: the first command with -P backbone={backbone} -P "
        f"weights={weights} fetches {url}; without a network put the file into {path.parent}"
    )
