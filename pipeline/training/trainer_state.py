"""Everything that the rest of a stage's training depends on, taken out between two epochs.

In: a trainer that has finished an epoch. Out: plain values and tensors, from which a trainer of
another process, built from the same weights, images and settings, trains the rest to the same
bits: master weights and buffers, the optimizer, the order of the images, what is selected so far,
and the state of every random number generator. Views and mixing need none: they are functions of
seed and epoch. Not covered: a state within an epoch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.tracking.history import History
from pipeline.training.master_weights import MasterWeight

State = dict[str, Any]
"""Tensors, numbers, text, and lists and dictionaries of these."""


class Resumable(Protocol):
    """What a trainer is made of that moves.

    Attributes:
        done: epochs that are over.
        losses: mean loss and accuracy of each epoch of a training without validation.
        rng: of the order of the images.
        best_rank: of the selected epoch, as the objective ranks it.
        continued: the state that the next training begins with; None: from the start.
    """

    device: torch.device
    weights: list[MasterWeight]
    computed: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    history: History
    best: dict[str, Tensor]
    best_logits: Tensor
    best_rank: tuple[float, ...]
    rng: np.random.Generator
    done: int
    losses: list[tuple[float, float]]
    continued: State | None

    def snapshot(self) -> dict[str, Tensor]:
        """Every tensor of the trainable blocks as it is now."""


def state_of(trainer: Resumable) -> State:
    """The state after the last finished epoch; its tensors are the trainer's own, not copies."""
    history = trainer.history
    is_best = bool(history.selected) and history.selected == len(history)
    return {
        "done": trainer.done,
        "losses": list(trainer.losses),
        "rows": [dict(row) for row in history.rows],
        "selected": history.selected,
        "best_rank": list(trainer.best_rank),
        "best": {} if is_best else trainer.best,  # else they are the weights of now
        "best_logits": trainer.best_logits,
        "masters": {weight.name: weight.master.detach() for weight in trainer.weights},
        "buffers": _buffers(trainer),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "order": json.dumps(trainer.rng.bit_generator.state),
        "random": _random_state(trainer.device),
    }


def go_on(trainer: Resumable, state: State) -> None:
    """Have the trainer train what is left after `state`: its history is there at once."""
    trainer.done = state["done"]
    trainer.losses = [(loss, acc) for loss, acc in state["losses"]]
    trainer.history.rows = [dict(row) for row in state["rows"]]
    trainer.history.selected = state["selected"]
    trainer.best_rank = tuple(state["best_rank"])
    trainer.best, trainer.best_logits = state["best"], state["best_logits"]
    trainer.continued = state


@torch.no_grad()
def put_state(trainer: Resumable) -> None:
    """Put `continued` into weights, optimizer and generators, just before the next epoch.

    What is measured of the weights that the stage started from comes before this.
    """
    if state := trainer.continued:
        _put(trainer, state)
    _begin_momentum(trainer.optimizer)


def _put(trainer: Resumable, state: State) -> None:
    for weight in trainer.weights:
        weight.master.copy_(state["masters"][weight.name])
        weight.push_value()
    for name, buffer in _buffers(trainer).items():
        buffer.copy_(state["buffers"][name])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.rng.bit_generator.state = json.loads(state["order"])
    _put_random_state(state["random"], trainer.device)
    if trainer.history.selected and not trainer.best:
        trainer.best = trainer.snapshot()
    trainer.continued = None


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Have SGD's momentum begin at zero where there is none yet: the first steps are the same.

    PyTorch's fused SGD takes memory as it comes for it, also in a step that is left out because a
    gradient has overflowed, and fails where a parameter has its first gradient after others.
    """
    for group in optimizer.param_groups:
        for master in group["params"] if "momentum" in group else ():
            optimizer.state[master].setdefault("momentum_buffer", torch.zeros_like(master))


def _buffers(trainer: Resumable) -> dict[str, Tensor]:
    """Tensors that move without being optimized, such as statistics of BatchNorm."""
    optimized = {weight.name for weight in trainer.weights}
    return {n: t.detach() for n, t in trainer.computed.items() if n not in optimized}


def _random_state(device: torch.device) -> State:
    """The generators of torch, on the device too, of NumPy and of Python."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - a network may draw from it
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": _state_on(device),
        "numpy": json.dumps(numpy_state, default=lambda array: array.tolist()),
        "python": json.dumps([version, words, gauss]),
    }


def _put_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["device"], device)
        else:
            torch.mps.set_rng_state(state["device"])
    np.random.set_state(json.loads(state["numpy"]))  # noqa: NPY002
    version, words, gauss = json.loads(state["python"])
    random.setstate((version, tuple(words), gauss))


def _state_on(device: torch.device) -> Tensor | None:
    """The state of the generator of that very device; None where it is the host's."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None
