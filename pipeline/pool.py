"""How many draws a pool of images holds for a comparison, and what to do where they are too few.

In: settings, how many pairs are wanted, how many draws there are. Out: a `Pool`: disjoint draws as
far as they reach; where not even the first look has them, resampled ones with Nadeau and Bengio's
correction (2003, Machine Learning 52, 239-281).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import DesignError
from pipeline.settings import Settings


@dataclass(frozen=True)
class Pool:
    """How pairs are dealt.

    Attributes:
        first_draw: the first pair's draw; later pairs have the draws that follow.
        resampled: pairs share images.
        correction: Nadeau and Bengio's c; 0 where pairs share no image.
        looks: the design's looks, as far as the pool reaches.
        sentence: the same in words.
    """

    first_draw: int
    resampled: bool
    correction: float
    looks: tuple[int, ...]
    sentence: str


def pool_of(
    settings: Settings,
    looks: tuple[int, ...],
    *,
    reserved: int,
    held: int,
    test_count: int,
    classes: int,
    asked: str = "looks",
) -> Pool:
    """The pool for pairs at these looks.

    Args:
        settings: of any arm.
        looks: numbers of pairs at which a verdict may fall.
        reserved: draws that tuning uses, from `settings.draw` on.
        held: draws that the images make.
        test_count: test images.
        classes: how many there are.
        asked: the setting that says how many pairs there are.

    Raises:
        DesignError: no draw at all is left.
    """
    first = settings.draw + reserved
    left = held - first
    beyond = " beyond those used for tuning" if reserved else ""
    if left >= looks[-1]:
        told = f"pairs are disjoint draws, of {left} that the pool holds{beyond}"
        return Pool(first, False, 0.0, looks, told)
    if left >= looks[0]:
        kept = tuple(look for look in looks if look < left)
        return Pool(
            first,
            False,
            0.0,
            (*kept, left),
            f"the pool holds {left} disjoint draws{beyond}, {looks[-1]} were asked for: it ends "
            f"after {left} pairs",
        )
    size = f"{settings.train_per_class} + {settings.val_per_class} images a class"
    if held < 1:
        raise DesignError(f"{settings.data} holds no draw of {size}: ask for fewer")
    if settings.draw:
        raise DesignError(
            f"draw={settings.draw}: {max(left, 0)} of the {held} draws of {size} are left, "
            f"{looks[0]} are needed, and resampled pairs would take images of the draws before "
            "it: leave draw out, or ask for fewer images a class"
        )
    correction = test_count / (settings.train_per_class * classes)
    return Pool(
        0,
        True,
        correction,
        looks,
        f"the pool holds {max(left, 0)} disjoint draws{beyond}, {looks[0]} are needed: pairs are "
        f"resampled and share images (n_test / n_train = {correction:.2g}), which costs power"
        f"{', and tuning uses images of theirs' if reserved else ''}: fewer images a class"
        f"{f', or {asked}={left},' if left > 1 else ''} would give disjoint draws",
    )
