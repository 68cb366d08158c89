"""The squared error of decoded values, its gradient in keys and values found in the same pass.

Where nothing but keys and values asks for a gradient (test-time optimisation of tokens), a block's
share of the gradient follows from its own values and targets: it is taken while the block's
activations are at hand, and the backward of :mod:`.blocked` need not compute them again. Queries
and coordinate features do not depend on the tokens at all: steps on the same coordinates share
them.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ginr_fast.coords import CoordinateGrid
from ginr_fast.ops import dispatch
from ginr_fast.ops.blocks import Block
from ginr_fast.ops.checks import autocasts, check_tensor
from ginr_fast.ops.coordinates import normalised
from ginr_fast.ops.locality_decode import plan
from ginr_fast.ops.locality_decode.blocked import Call
from ginr_fast.ops.locality_decode.blocked_backward import Backward
from ginr_fast.ops.locality_decode.op import fold, locality_decode, sizes_of
from ginr_fast.ops.locality_decode.weights import LocalityWeights
from ginr_fast.profiling import annotate

_Features: TypeAlias = tuple[Tensor, list[Tensor]]
"""Q, and each band's features, of a block."""


# Weights that queries and features are made of.
_MAKE_FEATURES = (
    "query_frequencies",
    "query_weight",
    "query_bias",
    "projection_weight",
    "projection_bias",
    "band_frequencies",
    "band_weight",
    "band_bias",
)


class KeptFeatures:
    """Queries and coordinate features of calls with the same coordinates and weights.

    Hand one to every such call: the first fills it, the others take from it. Only coordinates that
    the batch shares are kept, and no more than ``limit`` bytes.

    Args:
        limit: in bytes; 178² points at the published sizes take 97 MB.
    """

    def __init__(self, limit: int = 1 << 29) -> None:
        self.limit = limit
        self._blocks: dict[Block, _Features] = {}
        self._folded: bool | None = None
        self._coords: Tensor | CoordinateGrid | None = None
        self._weights: list[Tensor | None] = []

    def of(
        self, coords: Tensor | CoordinateGrid, weights: LocalityWeights, folded: bool
    ) -> dict[Block, _Features]:
        """By block, for these coordinates and weights.

        Args:
            coords: the same object in every call.
            weights: the same values in every call, those of queries and features; other ones may
                differ.
            folded: whether the query projection is folded into the keys, which changes what
                queries are; those of the other way are forgotten.

        Raises:
            ValueError: they are not those of the calls before.
        """
        # Compared by value, which costs next to nothing beside a decoding: parameters may change
        # in their place, and those that are stacked or multiplied are new in every call.
        given = [getattr(weights, name) for name in _MAKE_FEATURES]
        if self._coords is None:
            self._coords = coords
            self._weights = [None if each is None else each.clone() for each in given]
        if self._coords is not coords:
            raise ValueError("coords: expected those of the calls before, as features are kept")
        if not all(map(_alike, given, self._weights)):
            raise ValueError("weights: expected those of the calls before, as features are kept")
        if self._folded != folded:
            self._blocks, self._folded = {}, folded
        return self._blocks

    def fits(self, numbers: int, dtype: torch.dtype) -> bool:
        """Whether so many may be kept."""
        return numbers * dtype.itemsize <= self.limit


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if torch.equal(one, other):
        return True
    # A product of weights may be rounded otherwise from call to call; NaN is not equal to itself.
    one, other = one.nan_to_num(), other.nan_to_num()
    return bool(torch.dist(one, other) <= 1e-6 * other.norm())


@annotate("locality_error")
def locality_error(
    coords: Tensor | CoordinateGrid,
    keys: Tensor,
    values: Tensor,
    weights: LocalityWeights,
    targets: Tensor,
    *,
    scale: float | None = None,
    modulation_relu: bool = True,
    kept: KeptFeatures | None = None,
) -> Tensor:
    """The mean squared error of each instance.

    ``mean((locality_decode(coords, keys, values, weights) - targets)²)`` over an instance's
    coordinates and channels. On a CPU, with no gradient asked for but those of keys and values,
    forward and backward are one pass, differentiable once: create_graph=True is refused.

    Args:
        coords, keys, values, weights, scale, modulation_relu: see :func:`locality_decode`.
        targets: in the shape of the decoded values, ``(B, ..., d_out)``.
        kept: what calls with these coordinates and weights share.

    Returns:
        ``(B,)``, in the dtype of the decoded values.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device, by its name,
            or other coordinates or weights than those that features are kept for.
    """
    if not _serves(coords, keys, values, weights, targets):
        found = locality_decode(
            coords, keys, values, weights, scale=scale, modulation_relu=modulation_relu
        )
        check_tensor("targets", targets, tuple(found.shape))
        return (found - targets).square().flatten(1).mean(1)
    points, grid_shape, shape = normalised(coords, len(keys), keys.device, keys.dtype)
    check_tensor("targets", targets, (*shape, weights.out_dim), dtypes=(keys.dtype,))
    keys = keys * (keys.shape[-1] ** -0.5 if scale is None else scale)
    foldings = plan.choose_foldings(sizes_of(points, grid_shape, keys, values, weights))
    features = {} if kept is None else kept.of(coords, weights, foldings.keys)
    keys, values, logit_bias, weights = fold(keys, values, weights, foldings)
    flat = targets.reshape(len(keys), math.prod(shape[1:]), weights.out_dim)
    numbers = math.prod(shape[1:]) * (
        weights.query_weight.shape[0] + weights.width * weights.levels
    )
    keep = kept is not None and kept.fits(numbers, keys.dtype)
    call = points, grid_shape, weights, modulation_relu, features, keep
    return _OnePass.apply(keys, values, logit_bias, flat, call)


def _serves(
    coords: Tensor | CoordinateGrid,
    keys: Tensor,
    values: Tensor,
    weights: LocalityWeights,
    targets: Tensor,
) -> bool:
    parts = coords.axes if isinstance(coords, CoordinateGrid) else (coords,)
    constant = (*parts, *(each for each in weights if each is not None), targets)
    return (
        dispatch.forced_backend() in (None, "blocked")
        and not dispatch.forward_mode()
        and all(isinstance(each, Tensor) for each in (*constant, keys, values))
        and not any(each.requires_grad for each in constant)
        and all(each.device.type == "cpu" for each in (*constant, keys, values))
        and keys.dtype in (torch.float32, torch.float64)
        and keys.numel() * targets.numel() > 0
        and not autocasts(keys)
        and not dispatch.recording()
    )


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        keys: Tensor,
        values: Tensor,
        logit_bias: Tensor | None,
        targets: Tensor,
        constants: tuple[Tensor, list[int], LocalityWeights, bool, dict[Block, _Features], bool],
    ) -> Tensor:
        points, grid_shape, weights, modulation_relu, kept, keep = constants
        call = Call(points, grid_shape, keys, values, logit_bias, weights, modulation_relu)
        inputs = {"keys": keys, "values": values, "logit_bias": logit_bias}
        asked = zip(inputs, ctx.needs_input_grad, strict=False)
        backward = Backward(call, [name for name, wanted in asked if wanted])
        call.features.start_backward(False, False)
        errors = keys.new_zeros(call.batch, dtype=call.accumulator)
        numbers = targets.shape[1] * targets.shape[2]
        none = torch.empty(0)
        for block in call.blocks():
            shared = kept.get(block)
            for group in call.instances(block):
                if shared is None or not call.shared:
                    q, *features = call.features.forward(block, group, keep=False)
                    shared = call.queries(q), features
                    if keep and call.shared:
                        kept[block] = shared
                activations = call.step(*shared, group, block.count, keep=True)
                wanted = targets[group, block.points].flatten(0, 1)
                difference = call.values_of(activations.hidden) - wanted
                by_instance = difference.unflatten(0, (-1, block.count)).square()
                errors[group] += by_instance.flatten(1).sum(1, dtype=call.accumulator)
                grad = difference.mul_(2 / numbers)
                backward.step(grad, shared[0], group, block.count, activations, none, [])
        grads = backward.finished()
        ctx.found = [grads.get(name) for name in inputs]
        return (errors / numbers).to(keys.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "locality_error: differentiable once; for create_graph=True compare what "
                "locality_decode gives with the targets"
            )

        def of(found: Tensor | None) -> Tensor | None:
            if found is None:
                return None
            return found.to(grad.dtype) * grad.view(-1, *(1,) * (found.ndim - 1))

        return (*(of(found) for found in ctx.found), None, None)
