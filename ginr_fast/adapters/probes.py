"""A recognised module and its fast form on the same sample inputs: how far are they apart?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Probe:
    """A call on which a module's own code and its fast form are compared.

    Args:
        method: which method is called.
        arguments: its arguments: tensors, or dicts, lists and tuples of them, and other things.
        keywords: its keyword arguments.
        attributes: what the module has during the call in place of its own attributes, modules and
            parameters: per-instance weights that are set from outside, or a stand-in for a part
            that the comparison does not need. The module itself is not touched.
        collect: from what the call returns to tensors, or dicts, lists and tuples of them.
    """

    method: str = "forward"
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    collect: Callable[[Any], Any] = lambda result: result


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, like: Tensor | None = None) -> Tensor:
    """Normal random numbers that leave the global random state alone.

    Args:
        shape: of the result.
        seed: the same numbers for the same seed.
        scale: their standard deviation.
        like: has the device and dtype wanted; CPU and the default dtype if None.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if like is None:
        return numbers.to(torch.get_default_dtype())
    return numbers.to(device=like.device, dtype=like.dtype)


def as_class(
    module: nn.Module, kind: type, attributes: Mapping[str, Any] | None = None
) -> nn.Module:
    """The module's parameters and attributes in another object of class ``kind``."""
    twin: Any = object.__new__(kind)
    twin.__dict__.update(module.__dict__)
    twin.__dict__.update(attributes or {})
    return twin


def values_apart(module: nn.Module, own: type, fast: type, probe: Probe) -> float:
    """‖fast − own‖ / ‖own‖ of the outputs; infinite where they differ in kind or shape."""
    with torch.no_grad():
        return _apart(_call(module, fast, probe), _call(module, own, probe))


def gradients_apart(module: nn.Module, own: type, fast: type, probe: Probe) -> float:
    """The same of the gradients of a random sum of the outputs, in inputs and parameters."""
    return _apart(_gradients(module, fast, probe), _gradients(module, own, probe))


def _call(module: nn.Module, kind: type, probe: Probe) -> list[Tensor]:
    gpus = {tensor.device for tensor in module.parameters() if tensor.is_cuda}
    # Both calls begin with the same random state, should there be any dropout.
    with torch.random.fork_rng(devices=list(gpus)):
        twin = as_class(module, kind, probe.attributes)
        result = getattr(twin, probe.method)(*probe.arguments, **probe.keywords)
        return _tensors(probe.collect(result))


def _gradients(module: nn.Module, kind: type, probe: Probe) -> list[Tensor]:
    leaves: list[Tensor] = [
        parameter for parameter in module.parameters() if parameter.requires_grad
    ]

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    asking = Probe(
        probe.method,
        _mapped(probe.arguments, leaf),
        _mapped(dict(probe.keywords), leaf),
        _mapped(dict(probe.attributes), leaf),
        probe.collect,
    )
    with torch.enable_grad():
        outputs = [tensor for tensor in _call(module, kind, asking) if tensor.requires_grad]
        if not outputs or not leaves:
            return []
        along = [drawn(*tensor.shape, like=tensor) for tensor in outputs]
        found = torch.autograd.grad(outputs, leaves, along, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in pairs]


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, function) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(part, function) for part in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(value, keep)
    return found


def _apart(fast: list[Tensor], own: list[Tensor]) -> float:
    kinds = [[(tensor.shape, tensor.dtype) for tensor in tensors] for tensors in (fast, own)]
    if kinds[0] != kinds[1]:
        return math.inf
    square = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(fast, own, strict=True)
    )
    size = sum(float(tensor.double().square().sum()) for tensor in own)
    difference = math.sqrt(square / size if size else square)
    return difference if math.isfinite(difference) else math.inf
