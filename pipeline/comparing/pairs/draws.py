"""How many draws a pool of images holds for a comparison, and what to do where they are too few.

In: settings, how many pairs are wanted, how many draws there are. Out: a `Pool`: disjoint draws as
far as they reach; resampled draws, which share images, where too few are left for the first look.

Gains of resampled pairs are correlated, and the scale of their posterior is Nadeau and Bengio's
(2003, Machine Learning 52, 239-281), s * sqrt(1 / n + rho / (1 - rho)). Their rho, which is
n_test / (n_train + n_test), is meant for test images that are resampled, too. Here all pairs have
the same test images, and rho is at most the share of its images that a draw has in common with
another (Hoeffding 1948, Annals of Mathematical Statistics 19, 293-325: what a function of n images
owes to c of them is at most c / n of its variance), of which `stats/seeds.py` takes what gains on
real features showed. Seeds are never in common: rho lies below it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.base import Source
from pipeline.data.sampling.draws import draws_held, share_in_common
from pipeline.errors import DesignError
from pipeline.settings.fields import AUTO
from pipeline.settings.run import Settings
from pipeline.stats.design import GRID
from pipeline.stats.seeds import correction_of
from pipeline.system.text import count_of


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How pairs are dealt.

    Attributes:
        first_draw: the first pair's draw; later pairs have the draws that follow.
        resampled: pairs share images.
        most: pairs that the pool holds; None where they are resampled, so that there is no end.
        correction: rho / (1 - rho); 0 where pairs share no image.
        looks: numbers of pairs at which a verdict may fall, as far as the pool reaches.
        sentence: the pool in words.
    """

    first_draw: int = 0
    resampled: bool = False
    most: int | None = None
    correction: float = 0.0
    looks: tuple[int, ...]
    sentence: str


def pool_in(
    source: Source,
    settings: Settings,
    looks: tuple[int, ...],
    *,
    reserved: int = 0,
    asked: str = "looks",
) -> Pool:
    """The pool that the images of a source make; see `pool_of`."""
    held, share = draws_held(source, settings), share_in_common(source, settings)
    return pool_of(settings, looks, reserved=reserved, held=held, share=share, asked=asked)


def pool_of(
    settings: Settings,
    looks: tuple[int, ...],
    *,
    reserved: int,
    held: int,
    share: float,
    asked: str = "looks",
) -> Pool:
    """The pool for pairs at these looks.

    `reserved`: draws that tuning uses, from `settings.draw` on. `held`: draws that the images
    make. `share`: of its images that a draw has in common with a draw of another shuffle. `asked`:
    the setting that says how many pairs there are.

    Raises:
        DesignError: no draw at all is left, or all pairs would have the same images.
    """
    first = settings.draw + reserved
    left = held - first
    beyond = " beyond those used for tuning" if reserved else ""
    if left >= looks[-1]:
        sentence = f"pairs are disjoint draws, of {left} that the pool holds{beyond}"
        return Pool(first_draw=first, most=left, looks=looks, sentence=sentence)
    if left >= looks[0]:
        sentence = (
            f"the pool holds {left} disjoint draws{beyond}, {looks[-1]} were asked for: this "
            f"command ends after {count_of(left, 'pair')}"
        )
        return Pool(
            first_draw=first,
            most=left,
            looks=(*(n for n in looks if n < left), left),
            sentence=sentence,
        )
    _check_resampling(settings, looks[0], held=held, left=left, share=share)
    sentence = (
        f"the pool holds {max(left, 0)} disjoint draw{'' if left == 1 else 's'}{beyond}, "
        f"{looks[0]} are needed: pairs are resampled and share images ({share:.0%} of two draws, "
        "on average), which costs power"
        f"{', and tuning uses images of these pairs' if reserved else ''}: fewer images a class"
        f"{f', or {asked}={left},' if left >= GRID[0] else ''} would give disjoint draws"
    )
    correction = correction_of(share)
    return Pool(resampled=True, correction=correction, looks=looks, sentence=sentence)


def _check_resampling(
    settings: Settings, needed: int, *, held: int, left: int, share: float
) -> None:
    """Raise DesignError where resampled pairs cannot make up for draws that are missing."""
    train = settings.train_per_class
    size = f"{train} + {settings.val_per_class} images a class"
    if held < 1:
        raise DesignError(f"{settings.data} holds no draw of {size}: ask for fewer images a class")
    if settings.draw:
        raise DesignError(
            f"draw={settings.draw}: {max(left, 0)} of the {held} draws of {size} are left, "
            f"{needed} are needed, and resampled pairs would take images of the draws before "
            f"draw {settings.draw}: leave draw out, or ask for fewer images a class"
        )
    if share >= 1:
        raise DesignError(
            f"train_per_class={train} takes all images of the smallest class, "
            f"so that all {needed} pairs would train on the same images of that class: ask for "
            f"fewer images{'' if train == AUTO else f', at best for {max(1, train // needed)}'}"
        )
