"""How strongly do gains of pairs agree that share a part f of their images? Readouts of features.

    python benchmarks/shared_images.py --data CIFAR_FOLDER --weights RESNET18 --out features.npz

Real images, real features of a pretrained ResNet-18 at 64 px (kept in --out), and pairs of cheap
arms on them, so that thousands of pools can be resampled. Pools of 50 images a class share no
image; in each, pairs are drawn as `decide` draws them, f = 0.3, 0.5 and 0.8 of the pool's images
for training, others for validation where some are left. Arms without seeds are the worst case: all
that makes a gain differ is its images. Out: the rho that fits (correlation of two gains of one
pool, shown as share of f), its 95% bootstrap interval; and for c = kappa f / (1 - kappa f) how
often the 95% interval holds the true gain, on the pools that kappa was not chosen on (odd ones),
and on the recorded pools of docs/resampling.csv.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.stats.seeds import images_part  # noqa: E402

Floats = np.ndarray
CLASSES, POOL, PAIRS = 10, 50, 8
KAPPAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def extract(data: Path, weights: Path, out: Path, train: int, test: int) -> None:
    """Pooled outputs of block3 and block4, and labels."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from torch.nn.functional import interpolate
    from torchvision.models import resnet18

    net = resnet18().eval()
    state = {k: v for k, v in load_file(weights).items() if not k.startswith("fc.")}
    net.load_state_dict(state, strict=False)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        table = pd.concat(map(pd.read_parquet, sorted(data.rglob(f"{part}-*.parquet"))))
        table = table.sample(frac=1, random_state=0)[:count]
        column = "img" if "img" in table else "image"
        middle, last = [], []
        for start in range(0, count, 250):
            images = [
                np.asarray(Image.open(io.BytesIO(one["bytes"])).convert("RGB"))
                for one in table[column][start : start + 250]
            ]
            batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
            batch = (interpolate(batch, size=64, mode="bilinear") - mean) / std
            with torch.inference_mode():
                x = net.maxpool(net.relu(net.bn1(net.conv1(batch))))
                x = net.layer3(net.layer2(net.layer1(x)))
                middle.append(x.mean((2, 3)).numpy())
                last.append(net.layer4(x).mean((2, 3)).numpy())
        arrays |= {f"{part}3": np.concatenate(middle), f"{part}4": np.concatenate(last)}
        arrays[f"{part}y"] = table["label"].to_numpy()
    np.savez(out, **arrays)


class Images:
    """Features and labels; a readout's accuracy on the test images in per cent."""

    def __init__(self, file: Path, test: int) -> None:
        kept = np.load(file)
        self.y, self.test_y = kept["trainy"], kept["testy"][:test]
        self.x, self.test_x = {}, {}
        for block in (3, 4):
            x, t = kept[f"train{block}"], kept[f"test{block}"][:test]
            mean, sd = x.mean(0), x.std(0) + 1e-6
            self.x[block], self.test_x[block] = (x - mean) / sd, (t - mean) / sd

    def ridge(self, rows: Floats, val: Floats, block: int, strengths: tuple[float, ...]) -> float:
        """Ridge regression to one-hot labels; the strength that validates best."""
        x, hot = self.x[block][rows], np.eye(CLASSES)[self.y[rows]] - 1 / CLASSES
        values, vectors = np.linalg.eigh(x @ x.T)
        best = (-1.0, 0.0)
        for strength in strengths:
            dual = vectors @ ((vectors.T @ hot) / (values + strength * len(rows))[:, None])
            found = 0.0
            if len(strengths) > 1:
                found = float(
                    np.mean((self.x[block][val] @ (x.T @ dual)).argmax(1) == self.y[val])
                )
            if found > best[0]:
                guess = (self.test_x[block] @ (x.T @ dual)).argmax(1)
                best = found, 100 * float(np.mean(guess == self.test_y))
        return best[1]

    def means(self, rows: Floats, block: int) -> float:
        """The nearest class mean."""
        x = self.x[block][rows]
        centres = np.stack([x[self.y[rows] == k].mean(0) for k in range(CLASSES)])
        score = self.test_x[block] @ centres.T - (centres**2).sum(1) / 2
        return 100 * float(np.mean(score.argmax(1) == self.test_y))

    def stepped(self, rows: Floats, block: int, steps: int, rng: np.random.Generator) -> float:
        """Softmax regression by so many steps of stochastic gradient descent, random batches."""
        x, hot = self.x[block][rows], np.eye(CLASSES)[self.y[rows]]
        w = 0.01 * rng.standard_normal((x.shape[1], CLASSES))
        for _ in range(steps):
            some = rng.integers(len(rows), size=32)
            z = x[some] @ w
            p = np.exp(z - z.max(1, keepdims=True))
            w -= 0.02 * x[some].T @ (p / p.sum(1, keepdims=True) - hot[some]) / 32
        return 100 * float(np.mean((self.test_x[block] @ w).argmax(1) == self.test_y))


Gain = Callable[[Images, Floats, Floats, np.random.Generator], float]
GRID = (0.1, 1.0, 10.0)
ARMS: dict[str, Gain] = {
    "ridge on block4, chosen strength, against class means": lambda i, r, v, _: (
        i.ridge(r, v, 4, GRID) - i.means(r, 4)
    ),
    "ridge: block3 against block4": lambda i, r, v, _: (
        i.ridge(r, v, 3, (1.0,)) - i.ridge(r, v, 4, (1.0,))
    ),
    "ridge: strength 0.1 against 10": lambda i, r, v, _: (
        i.ridge(r, v, 4, (0.1,)) - i.ridge(r, v, 4, (10.0,))
    ),
    "softmax by SGD: 120 steps against 40, with seeds": lambda i, r, _, rng: (
        i.stepped(r, 4, 120, rng) - i.stepped(r, 4, 40, rng)
    ),
}


def gains(images: Images, gain: Gain, share: float, seed: int) -> Floats:
    """Gains in pp, (pools, pairs)."""
    rng = np.random.default_rng(seed)
    train = round(share * POOL)
    val = min(train, POOL - train)
    by_class = [rng.permutation(np.flatnonzero(images.y == k)) for k in range(CLASSES)]
    pools = min(map(len, by_class)) // POOL
    found = np.empty((pools, PAIRS))
    for pool in range(pools):
        own = [rows[pool * POOL : (pool + 1) * POOL] for rows in by_class]
        for pair in range(PAIRS):
            dealt = [rng.permutation(rows) for rows in own]
            first = np.concatenate([rows[:train] for rows in dealt])
            other = np.concatenate([rows[train : train + val] for rows in dealt])
            found[pool, pair] = gain(images, first, other, rng)
    return found


def fitting_rho(found: Floats) -> tuple[float, float, float]:
    """Correlation of two gains of one pool (one-way intraclass), and its bootstrap interval."""

    def rho(x: Floats) -> float:
        between, within = x.shape[1] * x.mean(1).var(ddof=1), x.var(1, ddof=1).mean()
        return float((between - within) / (between + (x.shape[1] - 1) * within))

    rng = np.random.default_rng(0)
    again = [rho(found[rng.integers(len(found), size=len(found))]) for _ in range(1000)]
    return rho(found), *np.quantile(again, [0.025, 0.975]).tolist()


def held(found: Floats, true: float, share: float, kappa: float) -> tuple[float, float]:
    """How often the 95% interval of a pool holds the true gain, and its mean half-width."""
    rho, pairs = kappa * share, found.shape[1]
    c = rho / (1 - rho) if rho < 1 else np.inf
    half = found.std(1, ddof=1) * np.sqrt(1 / pairs + c) * stats.t.ppf(0.975, pairs - 1)
    return float(np.mean(abs(found.mean(1) - true) <= half)), float(half.mean())


def by_seeds(studies: int = 10_000) -> None:
    """Intervals over draws with several seeds, normal gains: what is held, and how wide."""
    rng = np.random.default_rng(0)
    parts = (0.0, 0.1, 0.3, 0.6, 1.0)
    print("\n| f | draws | seeds |", " | ".join(f"images' part {part:g}" for part in parts), "|")
    print("|---|---|---|" + "---|" * len(parts))
    for share in (0.5, 0.8):
        for draws, seeds in ((5, 2), (5, 3), (10, 2), (20, 2), (20, 3)):
            cells = []
            for part in parts:
                pool = np.sqrt(part * share) * rng.standard_normal((studies, 1, 1))
                own = np.sqrt(part * (1 - share)) * rng.standard_normal((studies, draws, 1))
                seed = np.sqrt(1 - part) * rng.standard_normal((studies, draws, seeds))
                found = pool + own + seed
                means, full = found.mean(2), share / (1 - share)
                root = means.std(1, ddof=1) * stats.t.ppf(0.975, draws - 1)
                half = root * np.sqrt(1 / draws + full * images_part(found))
                bound = root * np.sqrt(1 / draws + full)
                inside = np.mean(abs(means.mean(1)) <= half)
                cells.append(f"{inside:.1%} ({half.mean() / bound.mean():.2f})")
            print(f"| {share:g} | {draws} | {seeds} |", " | ".join(cells), "|")


def main() -> None:
    """Extract if need be, resample, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=26_000)
    parser.add_argument("--test", type=int, default=2000)
    args = parser.parse_args()
    by_seeds()
    if not args.out.exists():
        extract(args.data, args.weights, args.out, args.train, args.test)
    images = Images(args.out, args.test)
    heads = [f"kappa {kappa:g}" for kappa in KAPPAS]
    print("| arms | f | gain, SD in a pool, pp | rho / f that fits |", " | ".join(heads), "|")
    print("|---|---|---|---|" + "---|" * len(heads))
    for name, gain in ARMS.items():
        for share in (0.3, 0.5, 0.8):
            found = gains(images, gain, share, seed=1)
            fits = [one / share for one in fitting_rho(found[::2])]
            sd, true = np.sqrt(found.var(1, ddof=1).mean()), found.mean()
            cells = [held(found[1::2], true, share, kappa) for kappa in KAPPAS]
            print(
                f"| {name} | {share:g} | {true:+.2f}, {sd:.2f} | {fits[0]:+.2f} "
                f"({fits[1]:+.2f} to {fits[2]:+.2f}) |",
                " | ".join(f"{one:.0%} ({half:.2f} pp)" for one, half in cells),
                "|",
                flush=True,
            )
    real = pd.read_csv(ROOT / "docs" / "resampling.csv", index_col="pool").to_numpy()
    cells = [held(real, real.mean(), 0.5, kappa) for kappa in KAPPAS]
    shown = " | ".join(f"{one:.0%} ({half:.2f} pp)" for one, half in cells)
    fits = [one / 0.5 for one in fitting_rho(real)]
    print(
        f"| recorded: stage 3 | 0.5 | | {fits[0]:+.2f} ({fits[1]:+.2f} to {fits[2]:+.2f}) |", shown
    )


if __name__ == "__main__":
    main()
