"""Baseline: three-stage unfreezing of a torchvision network, as a tutorial writes it by hand.

In: a folder of Hugging Face style parquet files (`img` = {bytes, path}, `label` 0..9) and a
state dict (.safetensors, .pth) of torchvision's network, whose head is dropped. Out: one JSON
object, the last line on stdout. `--cache-head` trains stage 1 on features that are computed once,
as a careful person does; `--probe` times a step of stage 2 with each of the settings that make
such a loop faster. Nothing comes from the `pipeline` package, so that each can check the other.
As in most such loops the whole network is in train mode: BatchNorm statistics of frozen layers
move, but for cached features. Loss and accuracy of training are running means over the epoch,
augmentation included.

The sibling scripts borrow options, images and weights from here: all see the same images.
"""

import argparse
import copy
import io
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import mobilenet_v2, resnet18

CLASSES = 10
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = (1, 2, 3)
MAKERS = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}
BLOCKS = {
    "resnet18": (("fc",), ("layer4",), ("layer3",)),
    "mobilenet_v2": (
        ("classifier",),
        tuple(f"features.{number}" for number in range(14, 19)),
        tuple(f"features.{number}" for number in range(7, 14)),
    ),
}
"""Modules of the head, the last block and the middle block."""
WEIGHT_DECAY = 1e-4
AUGMENTS = ("none", "flip", "crop_flip")

Labelled = list[tuple[Image.Image, int]]


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options that all the baselines share."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train/test parquet")
    parser.add_argument("--weights", type=Path, required=True, help=".safetensors or .pth")
    parser.add_argument("--backbone", choices=sorted(MAKERS), default="resnet18")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--images", type=Path, help=".npz of row indices: train, val, test")
    parser.add_argument("--train-per-class", type=int, default=100)
    parser.add_argument("--val-per-class", type=int, default=100)
    parser.add_argument("--draw", type=int, default=0, help="seed of the choice of images")
    parser.add_argument("--test", action="store_true", help="score every test row at the end")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10, help="epochs a stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", default="3e-3,3e-4,1e-4", help="one rate a stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    return parser


def stage_rates(text: str) -> list[float]:
    """Parse `--lr`, one learning rate a stage."""
    rates = [float(part) for part in text.split(",")]
    if len(rates) != len(STAGES):
        raise SystemExit(f"--lr takes {len(STAGES)} comma-separated rates, got {text!r}")
    return rates


def choose_rows(
    args: argparse.Namespace, train: pa.Table, test: pa.Table
) -> dict[str, np.ndarray]:
    """Return row indices: `train`, `val` into the train table, `test` (if any) into the other."""
    rows: dict[str, np.ndarray] = {}
    if args.images:
        with np.load(args.images) as chosen:
            rows = {key: chosen[key] for key in ("train", "val", "test") if key in chosen}
    else:
        rng, labels = np.random.default_rng(args.draw), train["label"].to_numpy()
        n_train, n_class = args.train_per_class, args.train_per_class + args.val_per_class
        drawn = [rng.permutation(np.flatnonzero(labels == c))[:n_class] for c in range(CLASSES)]
        if min(map(len, drawn)) < n_class:
            raise SystemExit(f"a class has fewer than the {n_class} images asked for")
        rows["train"] = np.concatenate([of_class[:n_train] for of_class in drawn])
        rows["val"] = np.concatenate([of_class[n_train:] for of_class in drawn])
    if args.test and "test" not in rows:
        rows["test"] = np.arange(len(test))
    return rows


def decode(table: pa.Table, rows: np.ndarray) -> Labelled:
    """Decode the given rows to RGB images in memory."""
    picked = table.take(rows)
    blobs = [cell["bytes"] for cell in picked["img"].to_pylist()]
    images = [Image.open(io.BytesIO(blob)).convert("RGB") for blob in blobs]
    return list(zip(images, picked["label"].to_pylist(), strict=True))


def read_images(args: argparse.Namespace) -> tuple[Labelled, Labelled, Labelled]:
    """Return the chosen train, validation and test images; the last may be empty."""
    tables = {}
    for split in ("train", "test"):
        files = sorted(args.data.glob(f"{split}-*.parquet"))
        if not files:
            raise SystemExit(f"no {split}-*.parquet in {args.data}")
        tables[split] = pa.concat_tables(
            [pq.read_table(f, columns=["img", "label"]) for f in files]
        )
    rows = choose_rows(args, tables["train"], tables["test"])
    test = decode(tables["test"], rows["test"]) if "test" in rows else []
    return decode(tables["train"], rows["train"]), decode(tables["train"], rows["val"]), test


def load_network(backbone: str, weights: Path) -> nn.Module:
    """Return a float32 network with the given body and a fresh head."""
    file = load_file(weights) if weights.suffix == ".safetensors" else torch.load(weights)
    head = BLOCKS[backbone][0][0]
    body = {k: v.float() if v.is_floating_point() else v for k, v in file.items()}
    body = {k: v for k, v in body.items() if not k.startswith(f"{head}.")}
    model = MAKERS[backbone](weights=None, num_classes=CLASSES)
    missing, unexpected = model.load_state_dict(body, strict=False)
    missing = [k for k in missing if not k.startswith(f"{head}.") and "num_batches" not in k]
    if missing or unexpected:
        raise SystemExit(f"not a {backbone}: missing {missing}, unexpected {unexpected}")
    return model


def trains(backbone: str, stage: int, name: str) -> bool:
    """Whether a stage trains the parameter of that name."""
    modules = itertools.chain.from_iterable(BLOCKS[backbone][:stage])
    return any(name.startswith(f"{module}.") for module in modules)


def prepared(model: nn.Module, args: argparse.Namespace) -> nn.Module:
    """Return the network as the options want it computed."""
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if args.compile else model  # type: ignore[return-value]


def make_transform(size: int, augment: str) -> transforms.Compose:
    """Return the per-image transform: resize, augment, to tensor, normalise."""
    steps: list[Any] = [transforms.Resize((size, size), antialias=True)]
    if augment == "crop_flip":
        steps.append(transforms.RandomCrop(size, padding=size // 8))
    if augment != "none":
        steps.append(transforms.RandomHorizontalFlip())
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return transforms.Compose([*steps, transforms.ToTensor(), normalise])


class ImageDataset(Dataset):
    """Images in memory, transformed anew each time one is asked for."""

    def __init__(self, images: Labelled, transform: transforms.Compose) -> None:
        """Keep the images and the transform."""
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one tensor (3, size, size) and its label."""
        image, label = self.images[index]
        return self.transform(image), label


def make_loaders(args: argparse.Namespace) -> tuple[DataLoader, DataLoader, DataLoader | None]:
    """Return loaders: training (shuffled, augmented), validation and, if asked for, test."""
    train, val, test = read_images(args)
    plain, batch = make_transform(args.size, "none"), args.batch_size
    augmented = ImageDataset(train, make_transform(args.size, args.augment))
    train_loader = DataLoader(augmented, batch, shuffle=True)
    val_loader = DataLoader(ImageDataset(val, plain), batch)
    return train_loader, val_loader, DataLoader(ImageDataset(test, plain), batch) if test else None


def logits_of(model: nn.Module, x: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    """Return float32 logits (N, classes), computed as the options want it."""
    if args.channels_last and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
        return model(x).float()


def run_epoch(
    model: nn.Module,
    loader: DataLoader,
    args: argparse.Namespace,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[float, float]:
    """Pass once over the loader, training if given an optimizer; return mean loss, accuracy."""
    model.train(optimizer is not None)
    loss_sum, correct, count = 0.0, 0, 0
    with torch.set_grad_enabled(optimizer is not None):
        for x, y in loader:  # (N, 3, size, size) or features (N, C), (N,)
            logits = logits_of(model, x, args)
            loss = nn.functional.cross_entropy(logits, y)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss_sum += loss.item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
            count += len(y)
    return loss_sum / count, correct / count


def train_stage(
    model: nn.Module,
    stage: int,
    lr: float,
    args: argparse.Namespace,
    train: DataLoader,
    val: DataLoader,
) -> dict[str, float]:
    """Train one stage in place, end on the weights of its best epoch; return its numbers."""
    start, epochs = time.perf_counter(), args.epochs
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trains(args.backbone, stage, name)
    trained = model
    if stage == 1 and args.cache_head:
        trained = model.get_submodule(BLOCKS[args.backbone][0][0])
        train, val = cached(model, train, args), cached(model, val, args)
    trainable = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    computed = trained if trained is not model else prepared(model, args)
    best: dict[str, float] = {"val_acc": -1.0}
    best_state: dict[str, Any] = {}
    for epoch in range(1, epochs + 1):
        train_loss, train_acc = run_epoch(computed, train, args, optimizer)
        val_loss, val_acc = run_epoch(computed, val, args)
        scheduler.step()
        if val_acc > best["val_acc"]:
            best = {"best_epoch": epoch, "train_loss": train_loss, "train_acc": train_acc}
            best |= {"val_loss": val_loss, "val_acc": val_acc}
            best_state = copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return {"stage": stage, "wall_s": time.perf_counter() - start, **best}


class FeatureDataset(Dataset):
    """What enters the head, a few views an image; one of them each time an image is asked for."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep features (views, N, C) and labels (N,)."""
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of one view and the label."""
        view = int(torch.randint(len(self.features), ()))
        return self.features[view, index], self.labels[index]


def cached(model: nn.Module, loader: DataLoader, args: argparse.Namespace) -> DataLoader:
    """Return a loader of what enters the head: an image and, in training, its mirror image."""
    shuffled = isinstance(loader.sampler, torch.utils.data.RandomSampler)
    images = ImageDataset(loader.dataset.images, make_transform(args.size, "none"))
    head = model.get_submodule(BLOCKS[args.backbone][0][0])
    taken: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: taken.append(given[0].float()))
    labels, views = [], 2 if shuffled else 1
    model.eval()
    with torch.no_grad():
        for view in range(views):
            for x, y in DataLoader(images, args.batch_size):
                logits_of(model, x.flip(3) if view else x, args)
                labels.append(y)
    hook.remove()
    features = torch.cat(taken).unflatten(0, (views, -1))
    dataset = FeatureDataset(features, torch.cat(labels)[: features.shape[1]])
    return DataLoader(dataset, args.batch_size, shuffle=shuffled)


def probe(args: argparse.Namespace, steps: int = 6) -> list[dict[str, Any]]:
    """Return seconds to begin and seconds a step of stage 2, for each way to compute."""
    found = []
    x = torch.randn(args.batch_size, 3, args.size, args.size)
    y = torch.randint(CLASSES, (args.batch_size,))
    for precision, last, compiled in itertools.product(
        ("float32", "bfloat16"), (False, True), (False, True)
    ):
        way = {"precision": precision, "channels_last": last, "compile": compiled}
        chosen = argparse.Namespace(**{**vars(args), **way})
        network = load_network(args.backbone, args.weights).train()
        for name, parameter in network.named_parameters():
            parameter.requires_grad = trains(args.backbone, 2, name)
        model = prepared(network, chosen)
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            nn.functional.cross_entropy(logits_of(model, x, chosen), y).backward()
            times.append(time.perf_counter() - started)
            if len(times) > 1 and times[-1] > 5 * min([row["step_s"] for row in found] or times):
                break  # slow enough to be told without more of it
        begin_s = max(0.0, times[0] - min(times))
        found.append({**way, "begin_s": begin_s, "step_s": sorted(times)[(len(times) - 1) // 2]})
    return found


def main() -> None:
    """Run the three stages and print the result."""
    parser = option_parser(__doc__)
    parser.add_argument("--augment", choices=AUGMENTS, default="crop_flip")
    parser.add_argument("--cache-head", action="store_true", help="stage 1 on cached features")
    parser.add_argument("--probe", action="store_true", help="time the ways to compute, and end")
    args = parser.parse_args()
    rates = stage_rates(args.lr)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.probe:
        sys.stdout.write(json.dumps(probe(args)) + "\n")
        return
    train, val, test = make_loaders(args)
    torch.manual_seed(args.seed)
    model = load_network(args.backbone, args.weights)
    start = time.perf_counter()
    stages = [
        train_stage(model, stage, lr, args, train, val) for stage, lr in enumerate(rates, start=1)
    ]
    result: dict[str, Any] = {"tool": "plain", "stages": stages}
    result["total_wall_s"] = time.perf_counter() - start
    start = time.perf_counter()
    result["test_acc"] = run_epoch(prepared(model, args), test, args)[1] if test else None
    result["test_s"] = time.perf_counter() - start
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
