"""The blocked backend: exact algebra, coordinate blocks that stay in cache, recomputation.

Forward, for a block of n coordinates and a few instances (rows = instances × n; all products below
are library GEMMs on (rows, ·) matrices):

    Q = W_q γ                                  once a block when coordinates are shared; on a grid
                                               a sum of one small table an axis
    a = [w_h V_h],  w = thresholded softmax    an instance at a time, see ``attention.py``
    x¹ = φ(W¹ a + b¹)                          W¹ holds the attention's output projection
    xˡ = φ(Wˡ xˡ⁻¹ + bˡ),  y = W_out x + b_out

Backward: each block is recomputed, then walked in reverse; the gradient of Q is summed over the
instances before it goes back through W_q. Nothing of size N×d is ever stored.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from ginr_fast.ops import gemm
from ginr_fast.ops.anr_decode.attention import Attention, Tile
from ginr_fast.ops.anr_decode.weights import AnrWeights
from ginr_fast.ops.blocked_tokens import TokenCall
from ginr_fast.ops.features import Band


@dataclass
class Activations:
    """What one (block, instances) step leaves: its output, and for the backward the rest."""

    tiles: list[Tile] = field(default_factory=list)
    """Of the attention."""
    inputs: list[Tensor] = field(default_factory=list)
    """What each linear layer takes: a, x¹, …; (rows, ·)."""
    preactivations: list[Tensor] = field(default_factory=list)
    """W x + b of each layer but the last, for Mish."""


class Call(TokenCall):
    """The constants of one call, and the forward of one step."""

    def __init__(
        self,
        coords: Tensor,
        grid_shape: list[int],
        keys: Tensor,
        values: Tensor,
        weights: AnrWeights,
        threshold: float,
        activation: str,
    ):
        super().__init__(coords, grid_shape, keys, values)
        self.w = w = weights.to_dtype(self.dtype)
        self.relu = activation == "relu"
        self.attention = Attention(self.keys, self.values, threshold)
        bands = [Band(w.frequencies, w.query_weight, None, relu=False)]
        self.features = self.features_of(coords, grid_shape, bands)
        # The layers that an activation follows, and the gradients they have: name and index.
        self.layers = list(zip(w.hidden_weight, w.hidden_bias, strict=True))
        self.layer_names: list[tuple[str, tuple]] = [
            ("hidden", (i,)) for i in range(len(self.layers))
        ]
        if w.first_weight is not None and w.first_bias is not None:
            self.layers.insert(0, (w.first_weight, w.first_bias))
            self.layer_names.insert(0, ("first", ()))

    def step(
        self, queries: Tensor, group: slice, count: int, keep: bool
    ) -> tuple[Tensor, Activations]:
        """A group of instances on a block: y ``(rows, out)``, and what the backward needs."""
        size = group.stop - group.start
        act = Activations()
        x = queries.new_empty(size * count, self.heads * self.value_dim)
        act.tiles = self.attention.forward(queries, group, count, x, keep)
        for weight, bias in self.layers:
            if keep:
                act.inputs.append(x)
            x = gemm.linear(x, weight, bias, relu=self.relu)
            if not self.relu:
                if keep:
                    act.preactivations.append(x)
                x = F.mish(x, inplace=not keep)
        if keep:
            act.inputs.append(x)
        return gemm.linear(x, self.w.output_weight, self.w.output_bias), act


def forward(
    coords: Tensor,
    grid_shape: list[int],
    keys: Tensor,
    values: Tensor,
    weights: AnrWeights,
    threshold: float,
    activation: str,
) -> Tensor:
    """``(B, N, out)``; coords ``(B or 1, N, c)``, or the concatenated axes of a grid."""
    call = Call(coords, grid_shape, keys, values, weights, threshold, activation)
    out = keys.new_empty(call.batch, call.count, weights.out_dim)
    for block in call.blocks():
        queries: Tensor | None = None
        for group in call.instances(block):
            if queries is None or not call.shared:
                (queries,) = call.features.forward(block, group, keep=False)
            y, _ = call.step(queries, group, block.count, keep=False)
            out[group, block.points] = y.unflatten(0, (-1, block.count)).to(out.dtype)
    return out


def backward(
    grad: Tensor,
    coords: Tensor,
    grid_shape: list[int],
    keys: Tensor,
    values: Tensor,
    weights: AnrWeights,
    threshold: float,
    activation: str,
    needed: Collection[str],
) -> dict[str, Tensor]:
    """The gradients named in ``needed``: of ``coords``, ``keys``, ``values`` and of the parameters
    by their names in :class:`AnrWeights`."""
    from ginr_fast.ops.anr_decode.blocked_backward import Backward

    call = Call(coords, grid_shape, keys, values, weights, threshold, activation)
    return Backward(call, needed).run(grad.to(call.dtype))
