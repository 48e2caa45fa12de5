"""Networks by name: torchvision's, timm's (`timm:NAME`), and a factory's (`package.module:build`).

In: a name, a number of classes, an image size. Out: a network with random weights whose forward
pass takes (N, 3, H, W) images and returns (N, classes) logits. Networks that are made for one size
of images, such as transformers with learnt positions, are made for this one.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import PipelineError, SettingsError, first_line

TIMM = "timm:"


def is_factory(name: str) -> bool:
    """Whether this is a person's own function, `package.module:function`."""
    return ":" in name and not name.startswith(TIMM)


_EXTRA: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True, "transform_input": True},
    "inception_v3": {"aux_logits": False, "init_weights": True, "transform_input": True},
}
"""As these two are used with torchvision's weights; classifiers beside the last one are left out."""


def build_network(name: str, classes: int, image_size: int, seed: int) -> nn.Module:
    """The network in eval mode, its random weights drawn from `seed`.

    Raises:
        SettingsError: there is no such network, it cannot be made, or it does not do what a
            classifier does.
    """
    build = _builder(name, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = build(classes)
        except PipelineError:
            raise
        except Exception as err:  # noqa: BLE001 - a factory's or a library's own code
            raise SettingsError(
                f"backbone={name}: the network could not be made for {classes} classes at "
                f"{image_size} px ({type(err).__name__}: {first_line(err)}): {_ADVICE}"
            ) from None
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"backbone={name}: returned a {type(model).__name__}, not a torch.nn.Module: return "
            "the network"
        )
    return model.eval()


_ADVICE = "pass another -P image_size= or another backbone"


def check_network(name: str, model: nn.Module, classes: int, image_size: int) -> None:
    """Pass an image through the network.

    Raises:
        SettingsError: it refuses the image, or gives something else than a logit a class.
    """
    try:
        with torch.no_grad():
            out = model(torch.zeros(1, 3, image_size, image_size))
    except Exception as err:  # noqa: BLE001 - a network's own code
        raise SettingsError(
            f"backbone={name} refuses images of {image_size} px "
            f"({type(err).__name__}: {first_line(err)}): {_ADVICE}"
        ) from None
    shape = tuple(getattr(out, "shape", ())) or type(out).__name__
    if shape != (1, classes):
        raise SettingsError(
            f"backbone={name}: gives {shape} for one image, not (1, {classes}): the network must "
            "return a logit for each of num_classes"
        )


def check_name(name: str) -> None:
    """Refuse a name that no network has.

    Raises:
        SettingsError: names the nearest.
    """
    if name.startswith(TIMM):
        _check_timm(name.removeprefix(TIMM))
    elif is_factory(name):
        _factory(name)
    else:
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise SettingsError(
                f"backbone={name} is not known{_nearest(name, known)}: pass a classifier of "
                f"torchvision, {TIMM}NAME for one of timm, or package.module:function for your own"
            )


def _builder(name: str, image_size: int) -> Callable[[int], Any]:
    check_name(name)
    if name.startswith(TIMM):
        return lambda classes: build_timm(name.removeprefix(TIMM), classes, image_size)
    if is_factory(name):
        factory = _factory(name)
        return lambda classes: factory(num_classes=classes)
    import torchvision

    extra = dict(_EXTRA.get(name, {}))
    if name.startswith("vit_"):
        extra["image_size"] = image_size
    return lambda classes: torchvision.models.get_model(
        name, weights=None, num_classes=classes, **extra
    )


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _check_timm(name: str) -> None:
    try:
        import timm
    except ImportError:
        raise SettingsError(
            f"backbone={TIMM}{name}: timm is not installed: pip install timm"
        ) from None
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise SettingsError(
            f"backbone={TIMM}{name} is not known to timm {timm.__version__}"
            f"{_nearest(base, timm.list_models())}"
        )


def build_timm(
    name: str, classes: int, image_size: int, *, pretrained: bool = False
) -> nn.Module:
    """A network of timm for this size of images, where it is made for one; else for any."""
    import timm
    from timm.models import model_entrypoint

    entry = inspect.getmodule(model_entrypoint(name.partition(".")[0]))
    kinds = [k for k in vars(entry).values() if inspect.isclass(k) and issubclass(k, nn.Module)]
    create: Callable[..., nn.Module] = partial(
        timm.create_model, name, pretrained=pretrained, num_classes=classes
    )
    if any(map(_takes_size, kinds)):
        # a TypeError: another network of the same module takes a size, this one does not
        with contextlib.suppress(TypeError):
            return create(img_size=image_size)
    return create()


def _takes_size(kind: type[nn.Module]) -> bool:
    return "img_size" in inspect.signature(kind.__init__).parameters


def _factory(name: str) -> Callable[..., Any]:
    """The function `package.module:function`, found as Python finds modules, or where we are."""
    module_name, _, function = name.partition(":")
    if not re.fullmatch(r"[\w.]+", module_name) or not function.isidentifier():
        raise SettingsError(
            f"backbone={name}: write a factory as package.module:function, such as nets.small:build"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as err:  # noqa: BLE001 - the user's module may raise anything
        raise SettingsError(
            f"backbone={name}: {module_name} cannot be imported "
            f"({type(err).__name__}: {first_line(err)}): it must lie on Python's path or in {here}"
        ) from None
    found = getattr(module, function, None)
    if not callable(found):
        functions = [n for n, f in vars(module).items() if callable(f) and n[0] != "_"]
        raise SettingsError(
            f"backbone={name}: {module_name} has no function {function}"
            f"{_nearest(function, functions)}"
        )
    return found  # type: ignore[no-any-return]
