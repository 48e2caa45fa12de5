"""Baseline on a device: the plain loop as its users make it fast there.

In and out: as in `plain_loop.py`, which lends its options, images and stages. What is added:
autocast (bfloat16 where the device has it, else float16 with a scaled loss, float32 on MPS and on
a processor), channels-last, pinned batches that are not waited for, worker processes that decode
and flip, one read of the sums an epoch, and, with `--compile`, `torch.compile`.
"""

import copy
import json
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent))

from plain_loop import (
    AUGMENTS,
    STAGES,
    WEIGHT_DECAY,
    ImageDataset,
    load_resnet18,
    make_transform,
    option_parser,
    read_images,
    stage_rates,
)


def precision_of(device: torch.device) -> torch.dtype:
    """What autocast computes in."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


class Loop:
    """A network, and how batches pass through it on a device."""

    def __init__(self, model: nn.Module, device: torch.device, *, compiled: str) -> None:
        """Move the network to the device."""
        self.model = model.to(device, memory_format=torch.channels_last)
        self.run = torch.compile(self.model, backend=compiled) if compiled else self.model
        self.device, self.dtype = device, precision_of(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def epoch(
        self, loader: DataLoader, optimizer: torch.optim.Optimizer | None = None
    ) -> tuple[float, float]:
        """Pass once over the loader, training if given an optimizer; mean loss, accuracy."""
        self.model.train(optimizer is not None)
        sums, count = torch.zeros(2, device=self.device), 0
        with torch.set_grad_enabled(optimizer is not None):
            for images, labels in loader:
                x = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
                y = labels.to(self.device, non_blocking=True)
                cast = self.dtype != torch.float32
                with torch.autocast(self.device.type, self.dtype, enabled=cast):
                    logits = self.run(x)
                loss = nn.functional.cross_entropy(logits.float(), y)
                if optimizer is not None:
                    optimizer.zero_grad()
                    self.scaler.scale(loss).backward()
                    self.scaler.step(optimizer)
                    self.scaler.update()
                sums += torch.stack([loss.detach() * len(y), (logits.argmax(1) == y).sum()])
                count += len(y)
        loss_sum, hits = sums.tolist()
        return loss_sum / count, hits / count

    def train_stage(
        self, stage: int, lr: float, epochs: int, train: DataLoader, val: DataLoader
    ) -> dict[str, float]:
        """Train one stage in place, end on the weights of its best epoch; return its numbers."""
        start = time.perf_counter()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = name.split(".")[0] in STAGES[stage - 1]
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=WEIGHT_DECAY, fused=fused)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
        best: dict[str, float] = {"val_acc": -1.0}
        state: dict[str, Any] = {}
        for epoch in range(1, epochs + 1):
            train_loss, _ = self.epoch(train, optimizer)
            val_loss, val_acc = self.epoch(val)
            scheduler.step()
            if val_acc > best["val_acc"]:
                best = {"best_epoch": epoch, "train_loss": train_loss, "val_loss": val_loss}
                best["val_acc"] = val_acc
                state = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(state)
        return {"stage": stage, "wall_s": time.perf_counter() - start, **best}


def main() -> None:
    """Run the three stages and print the result."""
    parser = option_parser(__doc__)
    parser.add_argument("--augment", choices=AUGMENTS, default="flip")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode and flip")
    parser.add_argument("--compile", default="", metavar="BACKEND", help="inductor; empty: not")
    args = parser.parse_args()
    device, pinned = torch.device(args.device), args.device.startswith("cuda")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    train, val, test = read_images(args)

    def loader(images: list[Any], augment: str, *, shuffled: bool) -> DataLoader:
        return DataLoader(
            ImageDataset(images, make_transform(args.size, augment)),
            args.batch_size,
            shuffle=shuffled,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            pin_memory=pinned,
        )

    both = loader(train, args.augment, shuffled=True), loader(val, "none", shuffled=False)
    torch.manual_seed(args.seed)
    loop = Loop(load_resnet18(args.weights), device, compiled=args.compile)
    start = time.perf_counter()
    stages = [
        loop.train_stage(stage, lr, args.epochs, *both)
        for stage, lr in enumerate(stage_rates(args.lr), start=1)
    ]
    result = {"tool": "plain", "stages": stages, "total_wall_s": time.perf_counter() - start}
    result["test_acc"] = loop.epoch(loader(test, "none", shuffled=False))[1] if test else None
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
