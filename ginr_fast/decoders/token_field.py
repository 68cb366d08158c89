"""Fields whose packed weights are made from latent tokens: the decoders of TransINR and IPC."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ginr_fast.coords import CoordinateGrid
from ginr_fast.decoders.field import FieldDecoder
from ginr_fast.fields import FieldSpec
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.group_weights import group_weights
from ginr_fast.ops.group_weights.op import Layout
from ginr_fast.ops.low_rank_weights import low_rank_weights
from ginr_fast.ops.volume_render.convention import RenderConvention, RenderedRays
from ginr_fast.ops.volume_render.random import Seed

_SMALL = 0.1


class TokenFieldDecoder(nn.Module, ABC):
    """Decodes latent tokens by a field whose packed weights they determine.

    ``forward`` takes coordinates and tokens as the token decoders do; ``weights`` gives the packed
    weights alone, for :class:`ginr_fast.FieldDecoder` and test-time optimisation.

    Args:
        spec: what the fields are.
        tokens: R, the latent tokens of an instance.
        token_dim: width of a token.
    """

    def __init__(self, spec: FieldSpec, tokens: int, token_dim: int) -> None:
        super().__init__()
        self.field = FieldDecoder(spec)
        if not isinstance(token_dim, int) or token_dim < 1:
            raise ValueError(f"token_dim: expected a positive integer, got {token_dim!r}")
        self.tokens, self.token_dim = tokens, token_dim

    @property
    def spec(self) -> FieldSpec:
        """What the fields are."""
        return self.field.spec

    @abstractmethod
    def weights(self, tokens: Tensor) -> Tensor:
        """Packed weights, ``(B, R, token_dim) -> (B, P)``; differentiable."""

    def forward(
        self, coords: Tensor | CoordinateGrid, tokens: Tensor, directions: Tensor | None = None
    ) -> Tensor:
        """Values at coordinates.

        Args:
            coords: ``(B, ..., d)``, ``(..., d)`` shared by the batch, or a grid.
            tokens: ``(B, R, token_dim)``.
            directions: viewing directions, ``(..., 3)`` like ``coords``, for a spec with a view
                branch.

        Returns:
            ``(B, ..., out_dim)``, differentiable.
        """
        return self.field(coords, self.weights(tokens), directions)

    def render(
        self,
        origins: Tensor,
        directions: Tensor,
        tokens: Tensor,
        *,
        near: float,
        far: float,
        samples: int,
        convention: str | RenderConvention = "trans_inr",
        seed: Seed | None = None,
    ) -> RenderedRays:
        """Colour, opacity and depth along rays, see :meth:`ginr_fast.FieldDecoder.render`."""
        return self.field.render(
            origins,
            directions,
            self.weights(tokens),
            near=near,
            far=far,
            samples=samples,
            convention=convention,
            seed=seed,
        )

    def _checked(self, tokens: Tensor) -> Tensor:
        return check_tensor("tokens", tokens, ("B", self.tokens, self.token_dim))


class GroupedFieldDecoder(TokenFieldDecoder):
    """TransINR's decoder: every weight matrix in groups of columns, a token each.

    Token g of layer l becomes ``u = Linear(LayerNorm(token))`` of the layer's fan-in; see
    :func:`ginr_fast.group_weights` for what becomes of them (ECCV 2022, arXiv 2208.02801, section
    3.4). Biases are shared by all instances.

    Args:
        spec: what the fields are.
        token_dim: width of a token.
        groups: groups of every layer, at most its fan-out, which they must divide; or one number a
            layer. R is their sum.
        layout: which columns a group has: neighbours (``"blocks"``, the paper), or every so-many-th
            (``"tiled"``, the published code).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, by name.

    Example:
        >>> import torch, ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=16, hidden_layers=1)
        >>> decoder = ginr_fast.GroupedFieldDecoder(spec, token_dim=24, groups=4)
        >>> decoder.tokens, decoder.groups
        (11, (4, 4, 3))
        >>> decoder(ginr_fast.grid(5, 7), torch.randn(2, 11, 24)).shape
        torch.Size([2, 5, 7, 3])
    """

    def __init__(
        self,
        spec: FieldSpec,
        token_dim: int,
        groups: int | Sequence[int] = 64,
        layout: Layout = "blocks",
    ) -> None:
        self.groups = _groups_of(spec, groups)
        super().__init__(spec, sum(self.groups), token_dim)
        if layout not in ("blocks", "tiled"):
            raise ValueError(f"layout: expected 'blocks' or 'tiled', got {layout!r}")
        self.layout: Layout = layout
        shapes = spec.layer_shapes
        self.heads = nn.ModuleList(_head(token_dim, columns) for _, columns in shapes)
        self.bases = nn.ParameterList(torch.empty(shape) for shape in shapes)
        self.biases = nn.ParameterList(
            torch.empty(rows) for rows, _ in (shapes if spec.bias else ())
        )
        for base in self.bases:
            nn.init.kaiming_uniform_(base, a=math.sqrt(5))
        for bias, (_, columns) in zip(self.biases, shapes, strict=False):
            nn.init.uniform_(bias, -(columns**-0.5), columns**-0.5)

    def weights(self, tokens: Tensor) -> Tensor:
        parts = self._checked(tokens).split(self.groups, dim=1)
        groups = [head(part) for head, part in zip(self.heads, parts, strict=True)]
        biases = list(self.biases) if self.spec.bias else None
        return group_weights(groups, list(self.bases), self.spec, biases=biases, layout=self.layout)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, layout={self.layout!r}"


class PatternFieldDecoder(TokenFieldDecoder):
    """IPC's decoder: one layer's weight is a product of what is shared and what an instance has.

    Token r becomes row r of V, ``Linear(LayerNorm(token))``; the weight of ``layer`` is U V with U
    shared, and so is all the rest (Generalizable Implicit Neural Representations via Instance
    Pattern Composers, CVPR 2023, arXiv 2211.13223); see :func:`ginr_fast.low_rank_weights`.

    Args:
        spec: what the fields are.
        token_dim: width of a token.
        tokens: R, the rank of the product.
        layer: which layer is modulated; the second, as published.
        normalize: whether rows of all weights have length 1.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, by name.

    Example:
        >>> import torch, ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=16, hidden_layers=2)
        >>> decoder = ginr_fast.PatternFieldDecoder(spec, token_dim=24, tokens=8)
        >>> decoder(ginr_fast.grid(5, 7), torch.randn(2, 8, 24)).shape
        torch.Size([2, 5, 7, 3])
    """

    def __init__(
        self,
        spec: FieldSpec,
        token_dim: int,
        tokens: int = 256,
        layer: int = 1,
        normalize: bool = False,
    ) -> None:
        if not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"tokens: expected a positive integer, got {tokens!r}")
        super().__init__(spec, tokens, token_dim)
        if not isinstance(layer, int) or not 0 <= layer < spec.layers:
            raise ValueError(f"layer: expected 0 to {spec.layers - 1}, got {layer!r}")
        self.layer, self.normalize = layer, normalize
        rows, columns = spec.layer_shapes[layer]
        self.head = _head(token_dim, columns)
        # Patterns start with variance 1/3; the product then keeps that of what a ReLU reads (He).
        self.mixing = nn.Parameter(torch.randn(rows, tokens) * math.sqrt(6 / (tokens * columns)))
        shared = [slot for slot in spec.slots if (slot.layer, slot.kind) != (layer, "weight")]
        self.shared = nn.ParameterList(torch.zeros(slot.shape) for slot in shared)
        for slot, parameter in zip(shared, self.shared, strict=True):
            if slot.kind == "weight":
                nn.init.kaiming_uniform_(parameter, nonlinearity="relu")
            if slot.layer == spec.layers - 1:
                parameter.data.mul_(_SMALL)  # close to the output's bias, as a start

    def weights(self, tokens: Tensor) -> Tensor:
        patterns = self.head(self._checked(tokens))
        return low_rank_weights(
            patterns,
            self.mixing,
            list(self.shared),
            self.spec,
            layer=self.layer,
            normalize=self.normalize,
        )

    def extra_repr(self) -> str:
        return f"tokens={self.tokens}, layer={self.layer}, normalize={self.normalize}"


def _head(token_dim: int, columns: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, columns))


def _groups_of(spec: FieldSpec, groups: int | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(spec, FieldSpec):
        raise TypeError(f"spec: expected a FieldSpec, got {type(spec).__name__}")
    outputs = [rows for rows, _ in spec.layer_shapes]
    if isinstance(groups, int):
        groups = [min(groups, rows) for rows in outputs]
    groups = tuple(groups)
    if len(groups) != len(outputs):
        raise ValueError(f"groups: expected {len(outputs)} numbers, got {groups}")
    for count, rows in zip(groups, outputs, strict=True):
        if not isinstance(count, int) or count < 1 or rows % count:
            raise ValueError(f"groups: expected divisors of the widths {outputs}, got {groups}")
    return groups
