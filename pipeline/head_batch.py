"""Many heads over the same features, trained at once: trials or seeds of a head-only stage.

In: tasks (where a head starts, its settings, its seed) and the head's inputs. Out: for each task
what `Trainer` would come to, up to rounding: the same batches, views, rates and selection. One
batched product stands for one product a task, and one optimizer step for theirs.

The directions of AdamW and SGD do not depend on the rate, so the library's optimizer steps all
heads at rate 1, and each head takes its own rate's share of that step. Heads do not meet, so a
task that ends early is trained to the end of the longest and cut off afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.backbones import Backbone
from pipeline.data.augment import pick_views
from pipeline.data.images import ImageSet
from pipeline.features import Features
from pipeline.settings import TrainSettings
from pipeline.training import (
    SGD_MOMENTUM,
    Scores,
    rank,
    schedule_factor,
    score_logits,
    split_batches,
)


@dataclass(frozen=True)
class HeadTask:
    """One head to be trained: its start, (classes, channels) and (classes,), and how."""

    weight: Tensor
    bias: Tensor
    settings: TrainSettings
    seed: int
    stage_number: int = 1


@dataclass(frozen=True)
class HeadResult:
    """A trained head: scores by epoch, and the weights of the selected epoch (from 1)."""

    train: list[Scores]
    val: list[Scores]
    best_epoch: int
    weight: Tensor
    bias: Tensor


def linear_head(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Weight and bias of a head that is one linear layer.

    Raises:
        ValueError: the head has hidden layers or dropout.
    """
    layers = list(backbone.blocks["head"])
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise ValueError(f"the head of {backbone.name} is not one linear layer")
    return layers[0].weight.detach().clone(), layers[0].bias.detach().clone()


def train_heads(
    tasks: Sequence[HeadTask],
    train: ImageSet,
    train_features: Features,
    val: ImageSet,
    val_features: Features,
    *,
    views: int,
) -> list[HeadResult]:
    """Train all tasks at once.

    Args:
        tasks: they must agree on batch_size, optimizer and augment.
        train: the training images.
        train_features: the head's inputs, (B, channels) for given rows and views.
        val: the validation images.
        val_features: the head's inputs for them.
        views: stored views an image, as in `pick_views`.

    Raises:
        ValueError: the tasks disagree on what must be equal.
    """
    heads = _Heads(tasks)
    generators = [np.random.default_rng([task.seed, task.stage_number]) for task in tasks]
    everything = np.arange(len(val))
    val_inputs = val_features.batch(everything, np.zeros_like(everything)).float()
    train_scores: list[list[Scores]] = [[] for _ in tasks]
    val_scores: list[list[Scores]] = [[] for _ in tasks]
    for epoch in range(max(task.settings.epochs for task in tasks)):
        orders = np.stack([generator.permutation(len(train)) for generator in generators])
        chosen = np.stack([_views(task, train, epoch, views) for task in tasks])
        steps = split_batches(np.arange(len(train)), tasks[0].settings.batch_size)
        loss_sum, hits = torch.zeros(len(tasks)), torch.zeros(len(tasks))
        for number, positions in enumerate(steps):
            rows = orders[:, positions]  # (tasks, B)
            picked = np.take_along_axis(chosen, rows, axis=1)
            inputs = train_features.batch(rows.ravel(), picked.ravel()).float()
            target = train.labels[torch.from_numpy(rows)]
            done = epoch * len(steps) + number
            logits = heads.step(inputs.view(*rows.shape, -1), target, done, len(steps))
            nll = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
            loss_sum += nll.sum(1)
            hits += (logits.argmax(2) == target).sum(1)
        for head, logits in enumerate(heads.end_epoch(val_inputs)):
            mean = Scores(loss_sum[head].item() / len(train), hits[head].item() / len(train))
            train_scores[head].append(mean)
            val_scores[head].append(score_logits(logits, val.labels))
    return [heads.result(k, train_scores[k], val_scores[k]) for k in range(len(tasks))]


def _views(task: HeadTask, train: ImageSet, epoch: int, views: int) -> NDArray[np.int64]:
    augment = task.settings.augment
    return pick_views(train.keys, seed=task.seed, epoch=epoch, augment=augment, stored_views=views)


def _epochs_run(settings: TrainSettings, train: Sequence[Scores], val: Sequence[Scores]) -> int:
    """How many epochs `Trainer` would have run: its patience, and divergence."""
    best = 0
    for epoch in range(settings.epochs):
        if epoch == 0 or rank(val[epoch]) > rank(val[best]):
            best = epoch
        waited = bool(settings.patience) and epoch - best >= settings.patience
        if waited or not math.isfinite(train[epoch].loss):
            return epoch + 1
    return settings.epochs


class _Heads:
    """All heads' weights, (tasks, classes, channels) and (tasks, classes), and one optimizer."""

    def __init__(self, tasks: Sequence[HeadTask]) -> None:
        self.settings = [task.settings for task in tasks]
        shared = {(s.batch_size, s.optimizer, s.augment) for s in self.settings}
        if len(shared) != 1:
            raise ValueError("heads trained at once must agree on batch_size, optimizer, augment")
        self.weight = nn.Parameter(torch.stack([task.weight for task in tasks]))
        self.bias = nn.Parameter(torch.stack([task.bias for task in tasks]))
        self.smoothing = torch.tensor([[s.label_smoothing] for s in self.settings])
        self.decay = torch.tensor([s.weight_decay for s in self.settings]).view(-1, 1, 1)
        self.limit = torch.tensor([s.clip_norm or math.inf for s in self.settings])
        self.kept: list[tuple[Tensor, Tensor]] = []
        parameters = [self.weight, self.bias]
        self.adaptive = self.settings[0].optimizer == "adamw"
        self.optimizer: torch.optim.Optimizer
        if self.adaptive:
            self.optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0, fused=True)
        else:
            self.optimizer = torch.optim.SGD(
                parameters, lr=1.0, momentum=SGD_MOMENTUM, nesterov=True, fused=True
            )

    def step(self, inputs: Tensor, target: Tensor, done: int, steps: int) -> Tensor:
        """One step of every head; logits before it, (tasks, B, classes), detached."""
        logits = torch.baddbmm(self.bias[:, None], inputs, self.weight.transpose(1, 2))
        log_p = F.log_softmax(logits, 2)
        nll = -log_p.gather(2, target[..., None])[..., 0]
        loss = (1 - self.smoothing) * nll - self.smoothing * log_p.mean(2)
        torch.autograd.backward(loss.mean(1).sum())
        rates = torch.tensor([self._rate(s, done, steps) for s in self.settings])
        with torch.no_grad():
            self._take(rates.view(-1, 1, 1))
        self.optimizer.zero_grad()
        return logits.detach()

    def _rate(self, settings: TrainSettings, done: int, steps: int) -> float:
        total = steps * settings.epochs
        if done >= total:
            return 0.0
        return settings.lr * schedule_factor(done, total, settings.warmup)

    def _take(self, rates: Tensor) -> None:
        weight_grad, bias_grad = self.weight.grad, self.bias.grad
        assert weight_grad is not None
        assert bias_grad is not None
        norms = (weight_grad.square().sum((1, 2)) + bias_grad.square().sum(1)).sqrt()
        share = (self.limit / (norms + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        weight_grad.mul_(share.view(-1, 1, 1))
        bias_grad.mul_(share.view(-1, 1))
        if not self.adaptive:  # SGD's decay is part of the gradient
            weight_grad.add_(self.decay * self.weight)
        weight, bias = self.weight.clone(), self.bias.clone()
        self.optimizer.step()
        kept = 1 - rates * self.decay if self.adaptive else 1.0
        self.weight.copy_(weight * kept + rates * (self.weight - weight))
        self.bias.copy_(bias + rates[:, 0] * (self.bias - bias))

    @torch.no_grad()
    def end_epoch(self, val_inputs: Tensor) -> Tensor:
        """Keep the weights; validation logits of every head, (tasks, N, classes)."""
        self.kept.append((self.weight.detach().clone(), self.bias.detach().clone()))
        return torch.matmul(val_inputs, self.weight.transpose(1, 2)) + self.bias[:, None]

    def result(self, head: int, train: list[Scores], val: list[Scores]) -> HeadResult:
        """What one head came to."""
        epochs = _epochs_run(self.settings[head], train, val)
        best = max(range(epochs), key=lambda epoch: rank(val[epoch]))
        weight, bias = self.kept[best]
        return HeadResult(train[:epochs], val[:epochs], best + 1, weight[head], bias[head])
