"""Baseline: the same three stages with Lightning and the callback of `finetuning-scheduler`.

In and out as in `plain_loop.py`, from which loaders and augmentation come too. The stages are an
explicit schedule file: a fixed number of epochs a phase, each with a fresh AdamW and cosine. The
callback's own rule is kept: a phase starts from the best checkpoint of *all* phases so far, and
the best of all is tested. It lets BatchNorm statistics of frozen layers move.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint
from torch import nn

# isort: split
from plain_loop import (
    AUGMENTS,
    BLOCKS,
    STAGES,
    WEIGHT_DECAY,
    load_network,
    make_loaders,
    option_parser,
    stage_rates,
)

Batch = tuple[torch.Tensor, torch.Tensor]


class Classifier(L.LightningModule):
    """A network with AdamW and a cosine schedule; the callback decides what trains."""

    def __init__(self, args: argparse.Namespace, lr: float) -> None:
        """Load the body; `lr` is that of the first phase."""
        super().__init__()
        self.model = load_network(args.backbone, args.weights)
        if args.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if args.compile:
            self.model.compile()
        self.channels_last, self.lr, self.epochs = args.channels_last, lr, args.epochs

    def score(self, batch: Batch, split: str) -> torch.Tensor:
        """Log loss and accuracy, averaged over the epoch; return the loss."""
        x, y = batch
        if self.channels_last:
            x = x.to(memory_format=torch.channels_last)
        logits = self.model(x).float()
        loss = nn.functional.cross_entropy(logits, y)
        accuracy = (logits.argmax(1) == y).float().mean()
        values = {f"{split}_loss": loss, f"{split}_acc": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(y))
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch."""
        return self.score(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score one batch."""
        self.score(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score one batch."""
        self.score(batch, "test")

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and schedule of the first phase."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.lr, weight_decay=WEIGHT_DECAY)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": cosine}


class History(L.Callback):
    """Record when each epoch starts and what it scored."""

    def __init__(self) -> None:
        """Start empty."""
        self.starts: list[float] = []
        self.scores: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the time, before the scheduler's callback changes the phase."""
        self.starts.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the scores of the epoch, validation included."""
        self.scores.append({k: v.item() for k, v in trainer.callback_metrics.items()})

    def stage(self, stage: int, epochs: int, end: float) -> dict[str, float]:
        """Return time of, and numbers at the best epoch of, one stage; `end` closes the last."""
        first = (stage - 1) * epochs
        scores = self.scores[first : first + epochs]
        best = max(range(epochs), key=lambda epoch: scores[epoch]["val_acc"])
        names = ("train_loss", "train_acc", "val_loss", "val_acc")
        return {
            "stage": stage,
            "wall_s": [*self.starts, end][first + epochs] - self.starts[first],
            "best_epoch": best + 1,
            **{name: scores[best][name] for name in names},
        }


def make_schedule(backbone: str, rates: list[float], epochs: int) -> dict[int, dict[str, Any]]:
    """Return the schedule: a phase lists only the block it adds; all its groups share one rate."""
    schedule: dict[int, dict[str, Any]] = {}
    for phase, (modules, lr) in enumerate(zip(BLOCKS[backbone], rates, strict=True)):
        schedule[phase] = {
            "params": [rf"model\.{re.escape(module)}\..*" for module in modules],
            "max_transition_epoch": (phase + 1) * epochs,
        }
        if phase == 0:
            continue  # its optimizer and schedule are the module's own
        optimizer = {"lr": lr, "weight_decay": WEIGHT_DECAY}
        schedule[phase] |= {
            "lr": lr,
            "new_optimizer": {
                "optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": optimizer}
            },
            "new_lr_scheduler": {
                "lr_scheduler_init": {
                    "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
                    "init_args": {"T_max": epochs},
                },
                "init_pg_lrs": [lr] * (phase + 1),
            },
        }
    return schedule


def main() -> None:
    """Run the three stages and print the result."""
    parser = option_parser(__doc__)
    parser.add_argument("--augment", choices=AUGMENTS, default="crop_flip")
    args = parser.parse_args()
    rates = stage_rates(args.lr)
    if args.threads:
        torch.set_num_threads(args.threads)
    train, val, test = make_loaders(args)
    L.seed_everything(args.seed)
    module, history = Classifier(args, rates[0]), History()
    with tempfile.TemporaryDirectory() as folder:
        schedule_file = Path(folder) / "schedule.yaml"
        schedule_file.write_text(yaml.safe_dump(make_schedule(args.backbone, rates, args.epochs)))
        unfreeze = FinetuningScheduler(str(schedule_file), epoch_transitions_only=True)
        checkpoint = FTSCheckpoint(dirpath=folder, monitor="val_acc", mode="max", save_top_k=1)
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            precision="32-true" if args.precision == "float32" else "bf16-mixed",
            max_epochs=len(STAGES) * args.epochs,
            callbacks=[history, unfreeze, checkpoint],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        start = time.perf_counter()
        trainer.fit(module, train, val)
        end = time.perf_counter()
        test_acc = None
        if test:
            scores = trainer.test(module, test, ckpt_path="best", verbose=False)
            test_acc = scores[0]["test_acc"]
        test_s = time.perf_counter() - end
    stages = [history.stage(stage, args.epochs, end) for stage in range(1, len(STAGES) + 1)]
    result = {"tool": "lightning", "stages": stages, "total_wall_s": end - start}
    result |= {"test_acc": test_acc, "test_s": test_s}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
