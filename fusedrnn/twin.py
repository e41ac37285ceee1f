"""A fused module and its twin, the class of torch.nn whose attributes it has: ``torch_class``.

The twin handles what the fused code does not: invalid arguments, TorchScript, symbolic tracing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

REGULARISERS = ("recurrent_dropout", "zoneout_h", "zoneout_c", "weight_drop")


def rates(module: nn.Module, names: Iterable[str] = REGULARISERS) -> str:
    """The regularisation that torch.nn would silently omit, or ''."""
    return ", ".join(f"{name}={value}" for name in names if (value := getattr(module, name, 0)))


def leaf(module: nn.Module, input, hx, options: dict[str, Any]) -> fx.Proxy | None:
    """The module's node while torch.fx traces symbolically: by default only the modules of torch.nn are leaves."""
    tracer = next((a.tracer for a in tree_leaves((input, hx, options)) if isinstance(a, fx.Proxy)), None)
    if not isinstance(tracer, fx.Tracer) or tracer.root is module:
        return None
    path = tracer.path_of_module(module)
    if module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks:
        raise fx.proxy.TraceError(
            f"the hooks of {path} would run in the trace and again in the graph: trace without them, or with a "
            f"torch.fx.Tracer whose is_leaf_module is true for {type(module).__name__}"
        )
    return tracer.create_proxy("call_module", path, (input,) if hx is None else (input, hx), options)


def scriptable(module: nn.Module) -> nn.Module:
    """What torch.jit.script compiles: the same module, down to its ``__dict__``, as its twin.

    TorchScript leaves it in the model: script a copy, or fusedrnn.convert the model again.
    """
    fused = next(cls for cls in type(module).__mro__ if "torch_class" in vars(cls))
    if type(module).forward is not fused.forward:
        return module  # a subclass computes something else: TorchScript compiles that, or reports why not
    name = fused.torch_class.__name__
    if parametrize.is_parametrized(module):
        raise ValueError(f"TorchScript cannot compile parametrized weights: remove those of {module} first")
    acting = rates(module, [rate for rate in REGULARISERS if module.training or rate.startswith("zoneout")])
    if acting:
        raise ValueError(f"TorchScript gets torch.nn.{name}, which cannot do {acting}: set it to 0 first")
    twin = object.__new__(fused.torch_class)
    object.__setattr__(twin, "__dict__", module.__dict__)
    if isinstance(twin, nn.RNNBase):
        twin._init_flat_weights()  # the weights as they are now; cuDNN requires them in one block
    return twin
