"""Frozen BatchNorm as part of the convolution before it.

In evaluation BatchNorm multiplies and shifts each channel by constants, which fit into the
weights and the bias of the convolution whose output it takes (`torch.fx` finds the pairs). A pass
over every map less: MobileNet V2 at 224 px takes a fifth less time on a processor
(docs/experiments). Outputs are the same up to rounding.
"""

from __future__ import annotations

from torch import fx, nn

from pipeline.model.backbones import batch_norms


def folded(module: nn.Module) -> nn.Module:
    """The module, in eval mode and float32, with its BatchNorm layers folded where they can be.

    The module is changed. A forward pass that cannot be traced stays as it is, and so does every
    one where PyTorch has no `fuse` any more.
    """
    if not any(True for _ in batch_norms([module])):
        return module
    _split_activations(module)
    try:
        from torch.fx.experimental.optimization import fuse

        traced = fx.GraphModule(module, _Tracer().trace(module))
        return fuse(traced, inplace=True, no_trace=True).eval()
    except Exception:  # noqa: BLE001 - a network's own code may raise anything when traced
        return module


class _Tracer(fx.Tracer):
    """Leaves every module whole that holds no BatchNorm, such as attention or dropout."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        library = super().is_leaf_module(m, module_qualified_name)
        return not any(True for _ in batch_norms([m])) or (
            library and not isinstance(m, nn.Sequential)
        )


def _split_activations(module: nn.Module) -> None:
    """Put a plain BatchNorm and an activation in place of timm's layer that is both."""
    for name, layer in list(module.named_modules()):
        if name and type(layer).__name__ == "BatchNormAct2d":
            plain = nn.BatchNorm2d(layer.num_features, layer.eps, affine=layer.affine).eval()
            plain.weight, plain.bias = layer.weight, layer.bias
            plain.running_mean, plain.running_var = layer.running_mean, layer.running_var
            module.set_submodule(name, nn.Sequential(plain, layer.drop, layer.act))
