"""Which posterior of the gain holds for other test images, too? Nine at the edge of the ROPE.

    python benchmarks/image_effects.py

Simulated decisions (`pipeline/stats/simulated.py`) for test splits of 150 to 10,000 images, arms
that disagree on 0.5 to 10% of them, of which images decide none to all, pairs that spread by 0.3
or 1 pp beside chance. `edge`: with a true gain of exactly the ROPE, how often each posterior says
`justified` and `not_justified`, at worst over all these worlds; the worst world is simulated again
with other random numbers. `few`: single looks at 2 to 10 pairs. `review`: the worlds of an earlier
review, with a true gain of 0. `power`: how often each says what is true. Takes 20 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from scipy import special

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.stats.crossed import Crossed  # noqa: E402
from pipeline.stats.design import Design  # noqa: E402
from pipeline.stats.posterior import Floats, tails  # noqa: E402
from pipeline.stats.simulated import World  # noqa: E402

Odds = Callable[[Crossed], Floats]
"""P(gain > 0.5 pp) of each study."""
EDGE_PP = 0.5
"""The ROPE of a decision."""
SIZES = (150, 300, 500, 1000, 2000, 10_000)
DESIGNS = {
    "5, 10, 20 at 0.98": Design(looks=(5, 10, 20), threshold=0.98, anytime=False, robust=False),
    "5, 10, 20, 40 at 0.99": Design(robust=False),
}


def parts(table: Crossed) -> tuple[Floats, Floats, Floats]:
    """Mean squares over pairs x images: what pairs, images and the rest add to the variance."""
    floor = 1 / (12 * table.images**2 * table.pairs)
    cells = table.pairs * table.images
    pair, image, rest = (one / cells for one in table.mean_squares)
    return np.maximum(pair, floor), image, rest


def student(variance: Floats, degrees: Floats | float, table: Crossed) -> Floats:
    """The odds by one Student-t."""
    scale_pp = 100 * np.sqrt(np.maximum(variance, 1e-12))
    return np.asarray(special.stdtr(degrees, (100 * table.mean - EDGE_PP) / scale_pp))


def pairs_only(table: Crossed) -> Floats:
    """Student-t over the gains of pairs."""
    return student(parts(table)[0], table.pairs - 1, table)


def images_only(table: Crossed) -> Floats:
    """Student-t over images, of each image's difference averaged over pairs."""
    return student(parts(table)[1], table.images - 1, table)


def added_up(table: Crossed) -> Floats:
    """Both in quadrature; chance counts twice."""
    pair, image, _ = parts(table)
    squares = pair**2 / (table.pairs - 1) + image**2 / (table.images - 1)
    return student(pair + image, (pair + image) ** 2 / squares, table)


def pigeonhole_variance(table: Crossed) -> Floats:
    """The variance that Owen & Eckles' bootstrap (2012) has on average."""
    pair, image, rest = parts(table)
    return pair * (1 - 1 / table.pairs) + image + rest


def pigeonhole(table: Crossed) -> Floats:
    """That variance, and a normal quantile."""
    return student(pigeonhole_variance(table), 1e6, table)


def satterthwaite(table: Crossed, added: float) -> Floats:
    """One Student-t for both parts, with degrees from the variances that were found."""
    of_pairs, of_images = ((one / 100) ** 2 for one in table.scales(added=added))
    chance = parts(table)[2]
    p, n = table.pairs, table.images
    share = of_pairs**2 / (p - 1) + (of_images + chance) ** 2 / (n - 1)
    share += chance**2 / ((p - 1) * (n - 1))
    variance = of_pairs + of_images
    return student(variance, np.clip(variance**2 / share, p - 1, n - 1), table)


def few_degrees(table: Crossed) -> Floats:
    """One Student-t for both parts, with p - 1 degrees."""
    of_pairs, of_images = ((one / 100) ** 2 for one in table.scales())
    return student(of_pairs + of_images, table.pairs - 1, table)


def both_parts(table: Crossed, added: float) -> Floats:
    """A Student-t for the pairs and a normal for the images."""
    of_pairs, of_images = table.scales(added=added)
    return tails(100 * table.mean, of_pairs, table.pairs - 1, EDGE_PP, of_images)[0]


METHODS: dict[str, Odds] = {
    "pairs only": pairs_only,
    "images only": images_only,
    "pairs + images": added_up,
    "pigeonhole bootstrap": pigeonhole,
    "crossed, Satterthwaite": lambda table: satterthwaite(table, 0.0),
    "the same, 1 image added an arm": lambda table: satterthwaite(table, 1.0),
    "the same, p - 1 degrees": few_degrees,
    "both parts, 1/2 image added an arm": lambda table: both_parts(table, 0.5),
    "both parts, 1 image added an arm": lambda table: both_parts(table, 1.0),
}


def bootstrapped(differences: np.ndarray, rng: np.random.Generator, times: int = 2000) -> float:
    """Standard error of the mean, by drawing pairs and images with replacement, in pp."""
    pairs, images = differences.shape
    p = rng.multinomial(pairs, np.full(pairs, 1 / pairs), times) / pairs
    n = rng.multinomial(images, np.full(images, 1 / images), times) / images
    return float(100 * np.einsum("tp,pn,tn->t", p, differences, n, optimize=True).std())


def errors(
    world: World, gain: float, studies: int, seed: int, methods: Sequence[str]
) -> dict[tuple[str, str], np.ndarray]:
    """Shares of `justified` and `not_justified`, by method and design."""
    rng, longest = np.random.default_rng(seed), (5, 10, 20, 40)
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for size in world.chunks(studies, longest[-1]):
        tables = world.studies(rng, size, gain, longest)
        for method in methods:
            above = np.array([METHODS[method](table) for table in tables])
            for name, design in DESIGNS.items():
                odds = above[: len(design.looks)]
                yes, no = odds >= design.threshold, 1 - odds >= design.threshold
                first_yes = np.where(yes.any(0), yes.argmax(0), 99)
                first_no = np.where(no.any(0), no.argmax(0), 99)
                ends = (int((first_yes < first_no).sum()), int((first_no < first_yes).sum()))
                found.setdefault((method, name), []).append(ends)
    return {key: np.sum(counts, axis=0) / studies for key, counts in found.items()}


def worlds(images: int) -> list[World]:
    """Those of `edge`."""
    shares = (0.005, 0.01, 0.02, 0.04, 0.1) if images <= 2000 else (0.005, 0.01, 0.02, 0.04)
    return [
        World(images=images, disagree=q, by_image=own, spread_pp=spread)
        for q, own, spread in product(shares, (0.0, 0.3, 0.6, 0.9, 1.0), (0.3, 1.0))
        if own < 1 or spread < 1
    ]


def edge(studies: int, again: int) -> None:
    """Errors at the edge, at worst."""
    print("| posterior | looks |", " | ".join(f"{n:,}" for n in SIZES), "|")
    print("|---|---|" + "---|" * len(SIZES))
    worst: dict[tuple[str, str], list[str]] = {}
    for images in SIZES:
        rows = [(one, errors(one, 0.5, studies, 1, list(METHODS))) for one in worlds(images)]
        for key in product(METHODS, DESIGNS):
            shown = []
            for side in (0, 1):
                world = max(rows, key=lambda row: row[1][key][side])[0]
                share = errors(world, 0.5, again, 2, [key[0]])[key][side]
                shown.append(f"{share:.1%}")
                print(images, *key, ("justified", "not")[side], world, shown[-1], file=sys.stderr)
            worst.setdefault(key, []).append(" / ".join(shown))
    for key, cells in worst.items():
        print("|", " | ".join([*key, *cells]), "|")


def few(studies: int) -> None:
    """Studies of few pairs at the edge: share that 0.99 errs in on either side, and coverage."""
    print("\n| test images, spread | posterior | 2 pairs | 3 | 4 | 5 | 10 |")
    print("|---|---|---|---|---|---|---|")
    for images, spread in product((300, 2000, 10_000), (0.3, 1.0)):
        world = World(images=images, spread_pp=spread)
        found = {
            pairs: world.studies(np.random.default_rng(7), studies, EDGE_PP, [pairs])[0]
            for pairs in (2, 3, 4, 5, 10)
        }
        for name, method in METHODS.items():
            cells = []
            for table in found.values():
                odds = method(table)
                errs = np.mean((odds >= 0.99) | (odds <= 0.01))
                holds = np.mean((odds > 0.025) & (odds < 0.975))
                cells.append(f"{errs:.1%}, {holds:.0%}")
            print(f"| {images:,}, {spread:g} pp | {name} |", " | ".join(cells), "|")


def review(studies: int) -> None:
    """The review's worlds: a true gain of 0, images decide nearly everything, pairs by 0.3 pp."""
    print("\n| test images | posterior | q = 1% | 2% | 4% |\n|---|---|---|---|---|")
    for images, method in product((150, 250, 600, 2000, 10_000), METHODS):
        shares = []
        for q in (0.01, 0.02, 0.04):
            world = World(images=images, disagree=q * 1.25, by_image=0.8, spread_pp=0.3)
            share = errors(world, 0.0, studies, 3, [method])[method, "5, 10, 20 at 0.98"][0]
            shares.append(f"{share:.1%}")
        print("|", " | ".join([f"{images:,}", method, *shares]), "|")


def power(studies: int) -> None:
    """How often each says what is true."""
    names = [name for name in METHODS if name != "images only"]
    print("\n| test images | q | true gain, pp |", " | ".join(names), "|")
    print("|---|---|---|" + "---|" * len(names))
    for images, q, gain in product((500, 1000, 2000, 10_000), (0.02, 0.04), (0.0, 1.0, 1.5)):
        found = errors(World(images=images, disagree=q), gain, studies, 4, names)
        cells = [
            " / ".join(f"{found[name, design].max():.0%}" for design in DESIGNS) for name in names
        ]
        print("|", " | ".join([f"{images:,}", f"{q:.0%}", f"{gain:g}", *cells]), "|")


def check() -> None:
    """The formula for the bootstrap's variance against the bootstrap."""
    rng = np.random.default_rng(6)
    print("\n| test images | standard error, pp: crossed | formula | 2,000 bootstrap samples |")
    print("|---|---|---|---|")
    for images in (150, 1000):
        own = rng.choice([-1, 0, 1], p=[0.01, 0.97, 0.02], size=images)
        noise = rng.choice([-1, 0, 1], p=[0.02, 0.96, 0.02], size=(10, images))
        differences = np.where(own, own, noise).astype(np.int8)
        table = Crossed.of(differences)
        crossed = float(np.hypot(*table.scales(added=0.0)))
        formula = 100 * float(np.sqrt(pigeonhole_variance(table)))
        shown = crossed, formula, bootstrapped(differences, rng)
        print(f"| {images} |", " | ".join(f"{one:.3f}" for one in shown), "|")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--again", type=int, default=4000)
    parser.add_argument("--tables", nargs="+", default=["edge", "few", "review", "power", "check"])
    args = parser.parse_args()
    if "edge" in args.tables:
        edge(args.studies, args.again)
    if "few" in args.tables:
        few(4 * args.studies)
    if "review" in args.tables:
        review(args.studies)
    if "power" in args.tables:
        power(args.studies)
    if "check" in args.tables:
        check()


if __name__ == "__main__":
    main()
