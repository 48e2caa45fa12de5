"""The epoch loop of one stage: it yields a row of metrics an epoch and touches nothing else.

In: a backbone holding the weights that the stage starts from, the suffix's inputs for training and
validation images, and the stage's settings. Out: a `History`; the selected epoch's weights are in
`Trainer.best`. The backbone itself is never changed. Each stage has a fresh optimizer and a fresh
learning-rate schedule. Not covered: logging, checkpoints, which parent the weights came from.

L2-SP: Li, Grandvalet & Davoine 2018 (arXiv 1802.01483). Cosine schedule: Loshchilov & Hutter 2017
(arXiv 1608.03983).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.augment import pick_views
from pipeline.data.image_set import ImageSet
from pipeline.model.backbones import Backbone
from pipeline.model.freezing import set_trainable
from pipeline.model.grouping import HEAD
from pipeline.settings.augmentation import mixing_of
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import Stage
from pipeline.stats.metrics import OBJECTIVES, Row, rounded, score_logits
from pipeline.system.transfers import send, send_rows
from pipeline.tracking import keys
from pipeline.tracking.history import History
from pipeline.training.device import compute_copy, images_at_once, run_segments
from pipeline.training.diagnostics import RiskMeter
from pipeline.training.master_weights import MasterWeight, unrounded
from pipeline.training.mixing import mix
from pipeline.training.prefix.features import Features
from pipeline.training.trainer_state import State, put_state

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    # groups have their rates
    "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9, nesterov=True),
}


def learning_rates(
    settings: TrainSettings, trainable: Iterable[str], backbone: Backbone
) -> dict[str, float]:
    """Peak rate of each trainable block: `lr * lr_decay ** depth`, depth 0 being the head."""
    return {b: settings.lr * settings.lr_decay ** backbone.depth(b) for b in trainable}


def schedule_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at a step from 0: a ramp over `warmup * steps`, then a cosine."""
    ramp = int(warmup * steps)
    if step < ramp:
        return (step + 1) / (ramp + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def split_batches(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """The order cut into batches of nearly equal size, at most `batch_size`, none of one image.

    BatchNorm has no variance over a single image, so with two or more images a batch of one is
    avoided even if its neighbour then exceeds `batch_size`.
    """
    count = math.ceil(len(order) / batch_size)
    if count > 1 and len(order) // count < 2:
        count -= 1
    return np.array_split(order, count)


@dataclass(kw_only=True)
class Trainer:
    """One stage's training; iterate `epochs()`, then take `best`.

    Attributes:
        history: every epoch so far, and which of them is selected.
        best: state-dict name -> tensor of the selected epoch, for every trainable block.
        best_logits: validation logits of the selected epoch, float32, (N, classes).
        on_step: called with 1 after each optimizer step.
        done: epochs that are over; what else goes on in another process: `trainer_state.py`.
    """

    backbone: Backbone
    stage: Stage
    settings: TrainSettings
    seed: int
    views: int
    device: torch.device
    dtype: torch.dtype
    best: dict[str, Tensor] = field(default_factory=dict)
    best_logits: Tensor = field(default_factory=lambda: torch.empty(0))
    on_step: Callable[[int], object] = lambda _: None
    done: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)
    best_rank: tuple[float, ...] = (-math.inf, -math.inf)
    continued: State | None = None

    def __post_init__(self) -> None:
        self.history = History(planned=self.settings.epochs)
        self.rng = np.random.default_rng([self.seed, self.stage.number])
        suffix = self.backbone.segments[self.backbone.frozen_segments(self.stage.trainable) :]
        self.segments = compute_copy(suffix, self.dtype, self.device)
        set_trainable(self.segments, self.stage.trainable, self.settings.norm)
        source, owners = self.backbone.model.state_dict(keep_vars=True), self.backbone.owners
        self.weights: list[MasterWeight] = []
        self.computed: dict[str, Tensor] = {}  # every tensor that may move, as it computes
        for segment in self.segments:
            for name, tensor in segment.module.state_dict(keep_vars=True).items():
                if owners.get(name) not in self.stage.trainable:
                    continue  # frozen, or a constant that the network's state dict leaves out
                self.computed[name] = tensor
                if isinstance(tensor, nn.Parameter):
                    start = source[name].detach().to(self.device)
                    self.weights.append(MasterWeight(name, owners[name], tensor, start))
        self.optimizer = self._make_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def trainable_parameters(self) -> int:
        """Parameters that are trained."""
        return sum(weight.master.numel() for weight in self.weights)

    def steps(self, images: int) -> int:
        """Optimizer steps of all planned epochs on so many images."""
        return self.settings.epochs * len(
            split_batches(np.arange(images), self.settings.batch_size)
        )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        rates = learning_rates(self.settings, self.stage.trainable, self.backbone)
        by_group: dict[tuple[str, bool], list[nn.Parameter]] = {
            (block, decayed): [] for block in self.stage.trainable for decayed in (True, False)
        }
        named = getattr(self.backbone.model, "no_weight_decay", set)  # of timm
        exempt: set[str] = named() if callable(named) else named
        for w in self.weights:  # biases and norms have one dimension: not decayed
            by_group[w.block, w.computed.ndim > 1 and w.name not in exempt].append(w.master)
        groups = [
            {
                "params": masters,
                "lr": rates[block],
                "peak": rates[block],
                "block": block,
                "weight_decay": self.settings.weight_decay if decayed else 0.0,
            }
            for (block, decayed), masters in by_group.items()
            if masters
        ]
        make = OPTIMIZERS[self.settings.optimizer]
        return make(groups, fused=self.device.type in ("cpu", "cuda"))

    def epochs(
        self, train: ImageSet, train_features: Features, val: ImageSet, val_features: Features
    ) -> Iterator[Row]:
        """Train, yielding each epoch's row of `history`; ends early by patience or divergence.

        The selected epoch is the best by the metric that `select` names; ties go to the lower
        loss, then to the earlier epoch.
        """
        objective, history = OBJECTIVES[self.settings.select], self.history
        torch.manual_seed(self.seed)  # dropout
        meter = RiskMeter(self.weights, len(val))
        validate = partial(self._validate, images_at_once(self.segments, val.pixels.shape[-1]))
        _, outputs = validate(val_features, meter.probes, np.arange(len(meter.probes)))
        meter.start(outputs)
        classes = outputs[HEAD].shape[1]
        put_state(self)
        while not self._is_over:
            started = time.perf_counter()
            loss, acc = self._train_once(train, train_features, classes, meter)
            trained = time.perf_counter()
            val_logits, outputs = validate(val_features, np.arange(len(val)), meter.probes)
            val_scores = score_logits(val_logits, val.labels)
            validated = time.perf_counter()
            risks = meter.read(outputs)
            measured = time.perf_counter()
            rank = objective.rank(val_scores)
            if not history.selected or rank > self.best_rank:
                self.best_rank, history.selected = rank, self.done
                self.best, self.best_logits = self.snapshot(), val_logits
            row = {
                keys.TRAIN_ACC: acc,
                keys.VAL_ACC: val_scores["acc"],
                keys.TRAIN_LOSS: loss,
                **{keys.VAL[name]: value for name, value in val_scores.items()},
                f"{keys.RISKS}gap/acc": acc - val_scores["acc"],
                f"{keys.RISKS}gap/loss": val_scores["loss"] - loss,
                keys.TRAIN_S: trained - started,
                keys.VAL_S: validated - trained,
                keys.RISKS_S: measured - validated,
                **risks,
                **{f"lr/{group['block']}": group["lr"] for group in self.optimizer.param_groups},
            }
            history.rows.append({name: rounded(value) for name, value in row.items()})
            yield history.rows[-1]

    @property
    def _is_over(self) -> bool:
        """Whether there is no further epoch: by plan, by patience, or by divergence."""
        history, patience = self.history, self.settings.patience
        waits = bool(patience) and len(history) - history.selected >= patience
        return self.done >= self.settings.epochs or (self.done > 0 and (waits or history.diverged))

    def without_validation(
        self, train: ImageSet, features: Features, classes: int
    ) -> Iterator[tuple[float, float]]:
        """Train every epoch, yielding its loss and accuracy; `best` is the last epoch.

        How long was decided before: no image is validated on, and nothing is selected.
        """
        torch.manual_seed(self.seed)  # dropout
        put_state(self)
        while self.done < self.settings.epochs:
            self.losses.append(self._train_once(train, features, classes))
            yield self.losses[-1]
        self.best = self.snapshot()

    def _train_once(
        self, images: ImageSet, features: Features, classes: int, meter: RiskMeter | None = None
    ) -> tuple[float, float]:
        """Train the next epoch, every image once; returns mean loss and accuracy.

        Loss and accuracy are those of each batch before its optimizer step. `meter` keeps the
        gradients of the last batch, or of the last that did not overflow a scaled loss.
        """
        epoch = self.done
        batches = split_batches(self.rng.permutation(len(images)), self.settings.batch_size)
        augment, mixing = self.settings.augment, mixing_of(self.settings.augment)
        views = pick_views(
            images.keys, seed=self.seed, epoch=epoch, augment=augment, stored_views=self.views
        )
        order = torch.from_numpy(np.concatenate(batches))
        labels = send_rows(images.labels, order, self.device)
        targets = torch.split(labels, [len(rows) for rows in batches])
        steps = len(batches) * self.settings.epochs
        sums = torch.zeros(2, device=self.device)
        loss_sum, hits = sums.unbind()
        for number, (rows, target) in enumerate(zip(batches, targets, strict=True)):
            factor = schedule_factor(epoch * len(batches) + number, steps, self.settings.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            inputs = features.batch(rows, views[rows])
            if mixing:
                place = (self.seed, self.stage.number, epoch, number)
                inputs, target = mix(inputs, target, mixing, classes, place)
            is_seen = number == len(batches) - 1 or self.scaler.is_enabled()
            logits = self._step(inputs, target, meter if is_seen else None)
            loss_sum += F.cross_entropy(logits, target, reduction="sum")
            self.on_step(1)
            hits += (logits.argmax(1) == (target.argmax(1) if mixing else target)).sum()
        self.done += 1
        loss, hit = sums.tolist()  # a device is waited for, and read from, here and not before
        return loss / len(images), hit / len(images)

    def _step(self, inputs: Tensor, target: Tensor, meter: RiskMeter | None = None) -> Tensor:
        """One optimizer step; returns the batch's logits, detached. `meter` sees the gradients."""
        logits = run_segments(self.segments, inputs, self.dtype)
        loss = F.cross_entropy(logits, target, label_smoothing=self.settings.label_smoothing)
        torch.autograd.backward(self.scaler.scale(loss))
        for weight in self.weights:
            weight.pull_gradient()
        self.scaler.unscale_(self.optimizer)
        for weight in self.weights:
            weight.pull_to_start(self.settings.l2_sp)
        if meter:
            meter.see_gradients(may_overflow=self.scaler.is_enabled())
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_([w.master for w in self.weights], self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for weight in self.weights:
            weight.push_value()
        return logits.detach()

    def _validate(
        self, size: int, features: Features, images: NDArray[np.int64], probes: NDArray[np.int64]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of these images, `size` at a time, and blocks' outputs for places among them."""
        logits, seen = [], []
        if self.device.type != "cpu":  # a smaller `batch_size` mends what does not fit
            size = min(size, 2 * self.settings.batch_size)
        for start in range(0, len(images), size):
            outputs = self._outputs(features, images[start : start + size])
            logits.append(outputs[HEAD])
            here = probes[(probes >= start) & (probes < start + size)] - start
            chosen = send(torch.from_numpy(here), self.device)
            seen.append({block: x.index_select(0, chosen) for block, x in outputs.items()})
        return torch.cat(logits).cpu(), {b: torch.cat([part[b] for part in seen]) for b in seen[0]}

    @torch.no_grad()
    def _outputs(self, features: Features, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """What each trainable block makes of view 0 of these images, in eval mode.

        Of blocks that share a segment, what the last makes counts for each of them.
        """
        for segment in self.segments:
            segment.module.eval()
        outputs: dict[str, Tensor] = {}
        x = features.batch(rows, np.zeros_like(rows))
        for segment in self.segments:
            x = run_segments([segment], x, self.dtype)
            outputs |= dict.fromkeys(set(segment.blocks) & set(self.stage.trainable), x)
        set_trainable(self.segments, self.stage.trainable, self.settings.norm)
        return outputs | {HEAD: x.float()}

    def snapshot(self) -> dict[str, Tensor]:
        """Every tensor of the trainable blocks as it is now: float32 masters, and buffers."""
        tensors = {name: tensor.detach() for name, tensor in self.computed.items()}
        tensors |= {weight.name: weight.value for weight in self.weights}
        original = self.backbone.model.state_dict()
        now = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        return {name: unrounded(tensor, original[name]) for name, tensor in now.items()}
