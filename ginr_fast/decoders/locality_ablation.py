"""LA-GINR's decoder with one or both of its ideas replaced by what came before them.

For ablations (arXiv 2310.05624, Table 3): plain PyTorch, coordinates in blocks, no kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ginr_fast.coords import CoordinateGrid
from ginr_fast.decoders.arguments import check_inputs, check_sizes
from ginr_fast.decoders.frequencies import PreciseFrequencies, log_spaced_frequencies
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.coordinates import normalised, written_out
from ginr_fast.ops.locality_decode.reference import fourier_features

Aggregation = Literal["attention", "patterns"]
Modulation = Literal["multi_band", "stack"]

# Coordinates of an instance decoded in one go: bounds the memory of large outputs.
_BLOCK = 1 << 14


class LocalityAblationDecoder(PreciseFrequencies):
    """Coordinates and latent tokens to values, without selective token aggregation, without
    multi-band feature modulation, or without either, which is the architecture of IPC.

    With q = ReLU(W_q γ_σq(v) + b_q), the tokens give a modulation vector m_v by

    * ``"attention"``: MultiHeadAttention(W q + b, Z, Z), as LA-GINR; or
    * ``"patterns"``: U (V q), row r of V being Linear(LayerNorm(token r)) and U ``(d, R)`` shared:
      the modulated weight of instance pattern composers (IPC, arXiv 2211.13223).

    and that becomes values by

    * ``"multi_band"``: m⁽ℓ⁾ = ReLU(ReLU(W_F⁽ℓ⁾ γ_σℓ(v) + b_F⁽ℓ⁾) + W_m⁽ℓ⁾ m_v + b_m⁽ℓ⁾),
      h⁽¹⁾ = m⁽¹⁾, h⁽ℓ⁾ = ReLU(W⁽ℓ⁾(m⁽ℓ⁾ + h⁽ℓ⁻¹⁾) + b⁽ℓ⁾), Σ_ℓ (W_out⁽ℓ⁾ h⁽ℓ⁾ + b_out⁽ℓ⁾), as
      LA-GINR; or
    * ``"stack"``: h⁽⁰⁾ = ReLU(m_v + b), h⁽ℓ⁾ = ReLU(W⁽ℓ⁾ h⁽ℓ⁻¹⁾ + b⁽ℓ⁾), W_out h⁽ᴸ⁾ + b_out. The
      only frequencies are then those of the query.

    ``"patterns"`` with ``"stack"`` and L = 2 is IPC's five-layer network, its second layer
    modulated. :class:`ginr_fast.LocalityAwareDecoder` is ``"attention"`` with ``"multi_band"``,
    and fast.

    Args:
        coord_dim: c, coordinates of a point.
        out_dim: channels of a value.
        token_dim: width of a latent token.
        tokens: R, the tokens of an instance.
        hidden_dim: d, width of the decoder.
        feature_dim: F, Fourier features of a band; rounded down to ``2·c·⌊F/2c⌋``.
        bandwidths: σ_1 … σ_L; a stack only counts them.
        query_bandwidth: σ_q.
        heads: of the attention; they divide ``hidden_dim`` unless ``head_dim`` is given.
        head_dim: width of a head.
        aggregation: see above.
        modulation: see above.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, by name.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.decoders.locality_ablation import LocalityAblationDecoder
        >>> decoder = LocalityAblationDecoder(token_dim=24, tokens=8, hidden_dim=32,
        ...     feature_dim=32, aggregation="patterns", modulation="stack")
        >>> decoder(ginr_fast.grid(5, 7), torch.randn(2, 8, 24)).shape
        torch.Size([2, 5, 7, 3])
    """

    query_frequencies: Tensor

    def __init__(
        self,
        coord_dim: int = 2,
        out_dim: int = 3,
        token_dim: int = 256,
        tokens: int = 256,
        hidden_dim: int = 256,
        feature_dim: int = 256,
        bandwidths: Sequence[float] = (128, 32),
        query_bandwidth: float = 16,
        heads: int = 2,
        head_dim: int | None = None,
        *,
        aggregation: Aggregation = "patterns",
        modulation: Modulation = "multi_band",
    ):
        super().__init__()
        sizes = {
            "coord_dim": coord_dim,
            "out_dim": out_dim,
            "token_dim": token_dim,
            "tokens": tokens,
            "hidden_dim": hidden_dim,
            "heads": heads,
            "head_dim": 1 if head_dim is None else head_dim,
            "bandwidths": len(bandwidths),
        }
        check_sizes(sizes)
        _check_choice("aggregation", aggregation, Aggregation)
        _check_choice("modulation", modulation, Modulation)
        count = feature_dim // (2 * coord_dim)
        if count < 1:
            raise ValueError(
                f"feature_dim: expected at least {2 * coord_dim} (2 x coord_dim), got {feature_dim}"
            )
        for name, bandwidth in (
            ("query_bandwidth", query_bandwidth),
            *(("bandwidths", bandwidth) for bandwidth in bandwidths),
        ):
            if not isinstance(bandwidth, (int, float)) or not 0 < bandwidth < math.inf:
                raise ValueError(f"{name}: expected positive numbers, got {bandwidth!r}")
        if aggregation == "attention" and head_dim is None and hidden_dim % heads:
            raise ValueError(f"heads: {heads} do not divide hidden_dim {hidden_dim}; give head_dim")

        self.coord_dim, self.out_dim, self.hidden_dim = coord_dim, out_dim, hidden_dim
        self.tokens, self.token_dim = tokens, token_dim
        self.aggregation, self.modulation = aggregation, modulation
        frequencies = log_spaced_frequencies(count, query_bandwidth).float()
        self.register_buffer("query_frequencies", frequencies)
        self.query_feature = _before_relu(2 * coord_dim * count, hidden_dim)
        self.aggregate: CrossAttention | PatternProduct = (
            CrossAttention(token_dim, hidden_dim, heads, head_dim or hidden_dim // heads)
            if aggregation == "attention"
            else PatternProduct(token_dim, tokens, hidden_dim)
        )
        self.modulate: MultiBand | Stack = (
            MultiBand(coord_dim, out_dim, hidden_dim, count, bandwidths)
            if modulation == "multi_band"
            else Stack(out_dim, hidden_dim, len(bandwidths))
        )

    @property
    def levels(self) -> int:
        """L."""
        return self.modulate.levels

    def forward(self, coords: Tensor | CoordinateGrid, tokens: Tensor) -> Tensor:
        """Values at the coordinates, as :meth:`ginr_fast.LocalityAwareDecoder.forward`.

        Args:
            coords: ``(B, ..., c)``, or ``(..., c)`` shared by the batch, or a grid.
            tokens: ``(B, R, token_dim)``.

        Returns:
            ``(B, ..., out_dim)``, differentiable.

        Raises:
            TypeError, ValueError: naming ``coords`` or ``tokens``.
        """
        parameter = self.query_feature.weight
        check_inputs(coords, tokens, parameter, self.coord_dim, self.token_dim)
        check_tensor("tokens", tokens, ("B", self.tokens, self.token_dim))
        batch, dtype = tokens.shape[0], parameter.dtype
        where, grid_shape, shape = normalised(coords, batch, parameter.device, dtype)
        points = written_out(where, grid_shape)
        context = self.aggregate.context(tokens)
        parts = [
            self._values(part, context, batch) for part in points.split(_BLOCK, dim=1)
        ]  # one part even of no points
        return torch.cat(parts, dim=1).reshape(*shape, self.out_dim)

    def _values(self, points: Tensor, context: tuple[Tensor, ...], batch: int) -> Tensor:
        dtype = self.query_feature.weight.dtype
        query = self.query_feature(fourier_features(points, self.query_frequencies).to(dtype))
        mixed = self.aggregate(query.relu().expand(batch, -1, -1), *context)
        return self.modulate(points, mixed)

    def extra_repr(self) -> str:
        return f"aggregation={self.aggregation!r}, modulation={self.modulation!r}"


class CrossAttention(nn.Module):
    """LA-GINR's selective token aggregation: m_v = MultiHeadAttention(q, Z, Z), equation 5."""

    def __init__(self, token_dim: int, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = _linear(width, heads * head_dim, gain=2.0)
        self.key = _linear(token_dim, heads * head_dim)
        self.value = _linear(token_dim, heads * head_dim)
        self.output = _linear(heads * head_dim, width)

    def context(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """What an instance's coordinates share: keys and values, ``(B, H, R, head_dim)``."""
        return self._by_head(self.key(tokens)), self._by_head(self.value(tokens))

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``(B, N, d)`` query features to ``(B, N, d)``."""
        mixed = F.scaled_dot_product_attention(self._by_head(self.query(query)), keys, values)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PatternProduct(nn.Module):
    """IPC's modulated weight: m_v = U (V q), row r of V made from token r."""

    def __init__(self, token_dim: int, tokens: int, width: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, width))
        self.mixing = nn.Parameter(torch.randn(width, tokens) / math.sqrt(tokens * width))

    def context(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """What an instance's coordinates share: the weight U V, ``(B, d, d)``."""
        return (self.mixing @ self.head(tokens),)

    def forward(self, query: Tensor, weight: Tensor) -> Tensor:
        """``(B, N, d)`` query features to ``(B, N, d)``."""
        return query @ weight.transpose(1, 2)


class MultiBand(PreciseFrequencies):
    """LA-GINR's multi-band feature modulation, equations 6 to 9."""

    band_frequencies: Tensor

    def __init__(
        self, coord_dim: int, out_dim: int, width: int, count: int, bandwidths: Sequence[float]
    ) -> None:
        super().__init__()
        bands = [log_spaced_frequencies(count, bandwidth) for bandwidth in bandwidths]
        self.register_buffer("band_frequencies", torch.stack(bands).float())
        self.levels = len(bands)
        features = 2 * coord_dim * count
        self.features = nn.ModuleList(_before_relu(features, width) for _ in bands)
        self.modulations = nn.ModuleList(_linear(width, width) for _ in bands)
        self.hidden = nn.ModuleList(_before_relu(width, width) for _ in bands[1:])
        self.outputs = nn.ModuleList(_output(width, out_dim) for _ in bands)

    def forward(self, points: Tensor, mixed: Tensor) -> Tensor:
        """Points ``(B or 1, N, c)`` and modulation vectors ``(B, N, d)`` to values."""
        hidden: Tensor | None = None
        values = mixed.new_zeros(())
        for level in range(self.levels):
            gamma = fourier_features(points, self.band_frequencies[level]).to(mixed.dtype)
            feature = self.features[level](gamma).relu()
            modulated = (feature + self.modulations[level](mixed)).relu()
            if hidden is None:
                hidden = modulated
            else:
                hidden = self.hidden[level - 1](modulated + hidden).relu()
            values = values + self.outputs[level](hidden)
        return values


class Stack(nn.Module):
    """A plain stack of L layers with ReLU and an output layer on ReLU(m_v + b)."""

    def __init__(self, out_dim: int, width: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.bias = nn.Parameter(torch.zeros(width))
        self.hidden = nn.ModuleList(_before_relu(width, width) for _ in range(levels))
        self.output = _output(width, out_dim)

    def forward(self, points: Tensor, mixed: Tensor) -> Tensor:
        """Modulation vectors ``(B, N, d)`` to values; where they are is not looked at."""
        hidden = (mixed + self.bias).relu()
        for layer in self.hidden:
            hidden = layer(hidden).relu()
        return self.output(hidden)


# Starting values: those of LA-GINR, see ginr_fast.systems.initialization.


def _linear(features: int, width: int, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(features, width)
    nn.init.xavier_uniform_(layer.weight, gain)
    return layer


def _before_relu(features: int, width: int) -> nn.Linear:
    layer = nn.Linear(features, width)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _output(width: int, out_dim: int) -> nn.Linear:
    layer = nn.Linear(width, out_dim)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    nn.init.zeros_(layer.bias)
    return layer


def _check_choice(name: str, value: object, kind: object) -> None:
    if value not in get_args(kind):
        expected = " or ".join(repr(choice) for choice in get_args(kind))
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
