"""Networks by name: torchvision's, timm's (`timm:NAME`), and a factory's (`package.module:build`).

In: a name, a number of classes, a size of images. Out: a `Recipe`, and a network with random
weights whose forward pass takes (N, 3, H, W) images and returns (N, classes) logits. Networks that
are made for one size of images, such as transformers with learnt positions, are made for this one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pipeline.errors import PipelineError, SettingsError, first_line
from pipeline.model.factories import (
    distribution_of,
    distribution_with,
    factory_of,
    is_factory,
)

TIMM = "timm:"
_ADVICE = "pass another -P image_size= or another backbone"
_OF_TORCHVISION: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True, "transform_input": True},
    "inception_v3": {"aux_logits": False, "init_weights": True, "transform_input": True},
}
"""Arguments that fit torchvision's weights: without auxiliary classifiers."""


@cache
def distributions_of(name: str) -> tuple[str, ...]:
    """Installed distributions, beside torch and torchvision, that outputs of a network depend on.

    Of a factory, those that have the code of its modules; its own files are digested.
    """
    if not is_factory(name):
        return ("timm",) if name.startswith(TIMM) else ()
    modules = build_network(name, 2, 0, seed=0).modules()
    packages = {type(module).__module__.partition(".")[0] for module in modules}
    found = {distribution_with(package) for package in packages - {"torch", "torchvision"}}
    return tuple(sorted(each for each in found - {distribution_of(name)} if each))


@dataclass(frozen=True)
class Recipe:
    """How a network is made: a function, `package.module:function`, and its arguments.

    The served model, which has nothing of this package, makes its network by the same recipe.
    """

    function: str
    arguments: Mapping[str, Any]

    def build(self) -> Any:  # noqa: ANN401 - a person's function may return anything
        """Call the function."""
        module, _, function = self.function.partition(":")
        return getattr(import_module(module), function)(**self.arguments)


def recipe_of(name: str, classes: int, image_size: int) -> Recipe:
    """The recipe of the network of that name.

    Raises:
        SettingsError: there is none; names the nearest.
    """
    check_name(name)
    if name.startswith(TIMM):
        own = name.removeprefix(TIMM)
        size = {"img_size": image_size} if _takes_size(own) else {}
        arguments = {"model_name": own, "pretrained": False, "num_classes": classes, **size}
        return Recipe("timm:create_model", arguments)
    if is_factory(name):
        return Recipe(name, {"num_classes": classes})
    size = {"image_size": image_size} if name.startswith("vit_") else {}
    arguments = {"name": name, "weights": None, "num_classes": classes, **size}
    return Recipe("torchvision.models:get_model", {**arguments, **_OF_TORCHVISION.get(name, {})})


def build_network(name: str, classes: int, image_size: int, seed: int) -> nn.Module:
    """The network in eval mode, its random weights drawn from `seed`.

    Raises:
        SettingsError: there is no such network, or it cannot be made.
    """
    recipe = recipe_of(name, classes, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = recipe.build()
        except PipelineError:
            raise
        except (Exception, SystemExit) as err:  # noqa: BLE001 - a factory's or a library's own code
            why = f"({type(err).__name__}: {first_line(err)})"
            raise SettingsError(
                f"backbone={name}: the function raised an error with num_classes={classes} {why}: "
                "mend it; it must make a network of any number of classes"
                if is_factory(name)
                else f"backbone={name}: no such network for {image_size} px {why}: {_ADVICE}"
            ) from None
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"backbone={name}: returned a {type(model).__name__}, not a torch.nn.Module: return "
            "the network"
        )
    return model.eval()


def check_network(name: str, model: nn.Module, classes: int, image_size: int) -> None:
    """Pass two images through the network, twice, and look at its tensors.

    Raises:
        SettingsError: the network refuses the images, does not give a logit for each class, gives
            other logits the second time, or has one tensor under two names.
    """
    images = torch.linspace(-1, 1, 2 * 3 * image_size**2).view(2, 3, image_size, image_size)
    try:
        with torch.no_grad():
            out, again = model(images.clone()), model(images.clone())
    except Exception as err:  # noqa: BLE001 - a network's own code
        raise SettingsError(
            f"backbone={name} refuses images of {image_size} px "
            f"({type(err).__name__}: {first_line(err)}): {_ADVICE}"
        ) from None
    shape = tuple(getattr(out, "shape", ())) or type(out).__name__
    if shape != (2, classes):
        raise SettingsError(
            f"backbone={name}: gives {shape} for two images, not (2, {classes}): the network must "
            "return a logit for each of num_classes"
        )
    if not torch.allclose(out, again, rtol=0, atol=0, equal_nan=True):
        raise SettingsError(
            f"backbone={name}: gives the same images other logits the second time: in eval mode "
            "the network must draw no random numbers and keep no state"
        )
    _check_tensors(name, model)


def _check_tensors(name: str, model: nn.Module) -> None:
    """Refuse one tensor under two names: it would be trained, and saved, as two."""
    names: dict[int, str] = {}
    for own, tensor in model.state_dict().items():
        first = names.setdefault(tensor.data_ptr(), own)
        if tensor.numel() and first != own:
            todo = "give each layer tensors of its own, and each module one name"
            raise SettingsError(
                f"backbone={name}: {first} and {own} are one tensor, which would be trained and "
                f"saved as two: {todo if is_factory(name) else 'pass another backbone'}"
            )


def check_name(name: str) -> None:
    """Refuse a name that no network has.

    Raises:
        SettingsError: names the nearest.
    """
    if name.startswith(TIMM):
        timm, base = timm_library(name), name.removeprefix(TIMM).partition(".")[0]
        if not timm.is_model(base):
            raise SettingsError(
                f"backbone={name} is not known to timm {timm.__version__}"
                f"{_nearest(base, timm.list_models(), TIMM)}: pass {TIMM}NAME of one that it has"
            )
        try:
            timm.models.get_pretrained_cfg(name.removeprefix(TIMM))
        except RuntimeError:
            tags = [f"{TIMM}{each}" for each in timm.list_pretrained(f"{base}.*")]
            raise SettingsError(
                f"backbone={name} is no tag of weights in timm {timm.__version__}: pass "
                f"{' or '.join([*tags[:4], TIMM + base])}"
            ) from None
    elif is_factory(name):
        factory_of(name)
    else:
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise SettingsError(
                f"backbone={name} is not known{_nearest(name, known)}: pass a classifier of "
                f"torchvision, {TIMM}NAME for one of timm, or package.module:function for your own"
            )


def _nearest(name: str, known: list[str], prefix: str = "") -> str:
    close = [f"{prefix}{each}" for each in get_close_matches(name, known, n=3)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def timm_library(name: str) -> ModuleType:
    """timm, which is an extra.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        return import_module("timm")
    except ImportError:
        raise SettingsError(
            f"backbone={name}: timm is not installed: pip install timm, or pass a network of "
            "torchvision"
        ) from None


@cache
def _takes_size(name: str) -> bool:
    """Whether a network of timm is made for one size of images."""
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:  # noqa: BLE001 - the network reads values of its weights while it is made
        model = timm.create_model(name)
    constructors = (vars(kind).get("__init__") for kind in type(model).__mro__)
    return any("img_size" in inspect.signature(c).parameters for c in constructors if c)
