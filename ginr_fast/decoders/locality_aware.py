"""The locality-aware decoder of LA-GINR as a drop-in module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ginr_fast.coords import CoordinateGrid
from ginr_fast.decoders.arguments import check_inputs, check_sizes
from ginr_fast.decoders.frequencies import (
    PreciseFrequencies,
    given_frequencies,
    log_spaced_frequencies,
)
from ginr_fast.ops import dispatch
from ginr_fast.ops.locality_decode.op import locality_decode
from ginr_fast.ops.locality_decode.weights import LocalityWeights


class LocalityAwareDecoder(PreciseFrequencies):
    """Coordinates and latent tokens to values: selective token aggregation, then multi-band
    feature modulation.

    Source: Locality-Aware Generalizable Implicit Neural Representation, arXiv 2310.05624,
    section 3.3. The defaults are the paper's sizes for images; the equation is that of
    :func:`ginr_fast.locality_decode`.

    Args:
        coord_dim: c, coordinates of a point (2 for images, 6 for Plücker rays).
        out_dim: channels of a value.
        token_dim: width of a latent token.
        hidden_dim: d, width of the decoder.
        feature_dim: F, Fourier features of a band; rounded down to ``2·c·⌊F/2c⌋``.
        bandwidths: σ_1 ≥ … ≥ σ_L, one a band.
        query_bandwidth: σ_q.
        heads: H of the cross-attention.
        head_dim: width of a head; ``hidden_dim / heads`` if None, else free of it.
        lowest_frequency: ω_0 of every band (1 as published; 10 and e occur).
        frequencies: L tensors of ``n`` frequencies each, instead of the log-spaced ones.
        query_frequencies: likewise for the query.
        attention_bias: biases in the query, key, value and output projections.
        share_key_value: one projection serves as keys and values.
        query_linear: an extra linear map between the query feature and the attention.
        output_projection: W_o after the attention.
        modulation_relu: a ReLU after feature + modulation, as published.

    Raises:
        TypeError, ValueError: naming the argument: a size below 1, no band, a bandwidth that is
            no positive number, bands of different lengths, or heads that do not divide
            ``hidden_dim`` while ``head_dim`` is None.

    Example:
        >>> import torch, ginr_fast
        >>> decoder = ginr_fast.LocalityAwareDecoder(token_dim=32, hidden_dim=64, feature_dim=64)
        >>> tokens = torch.randn(2, 16, 32)
        >>> decoder(ginr_fast.grid(12, 10), tokens).shape
        torch.Size([2, 12, 10, 3])
        >>> decoder(torch.rand(2, 100, 2), tokens).shape
        torch.Size([2, 100, 3])
    """

    query_frequencies: Tensor
    band_frequencies: Tensor

    def __init__(
        self,
        coord_dim: int = 2,
        out_dim: int = 3,
        token_dim: int = 256,
        hidden_dim: int = 256,
        feature_dim: int = 256,
        bandwidths: Sequence[float] = (128, 32),
        query_bandwidth: float = 16,
        heads: int = 2,
        head_dim: int | None = None,
        *,
        lowest_frequency: float = 1.0,
        frequencies: Sequence[Tensor] | None = None,
        query_frequencies: Tensor | None = None,
        attention_bias: bool = True,
        share_key_value: bool = False,
        query_linear: bool = False,
        output_projection: bool = True,
        modulation_relu: bool = True,
    ):
        super().__init__()
        sizes = {
            "coord_dim": coord_dim,
            "out_dim": out_dim,
            "token_dim": token_dim,
            "hidden_dim": hidden_dim,
            "feature_dim": feature_dim,
            "heads": heads,
            "head_dim": 1 if head_dim is None else head_dim,
        }
        check_sizes(sizes)
        for name, given in (("bandwidths", bandwidths), ("frequencies", frequencies)):
            if given is not None and (not isinstance(given, Sequence) or isinstance(given, str)):
                raise TypeError(f"{name}: expected a sequence, got {type(given).__name__}")
            if given is not None and not given:
                raise ValueError(f"{name}: expected at least one band")
        levels = len(bandwidths) if frequencies is None else len(frequencies)
        if head_dim is None:
            if hidden_dim % heads:
                raise ValueError(
                    f"heads: {heads} do not divide hidden_dim {hidden_dim}; give head_dim"
                )
            head_dim = hidden_dim // heads
        count = feature_dim // (2 * coord_dim)
        if count < 1 and (frequencies is None or query_frequencies is None):
            raise ValueError(
                f"feature_dim: expected at least {2 * coord_dim} (2 x coord_dim), got {feature_dim}"
            )
        positive = [("bandwidths", bandwidth) for bandwidth in bandwidths]
        positive += [("query_bandwidth", query_bandwidth), ("lowest_frequency", lowest_frequency)]
        for name, number in positive:
            if not isinstance(number, (int, float)) or not 0 < number < math.inf:
                raise ValueError(f"{name}: expected positive numbers, got {number!r}")
        if frequencies is None:
            frequencies = [log_spaced_frequencies(count, s, lowest_frequency) for s in bandwidths]
        if query_frequencies is None:
            query_frequencies = log_spaced_frequencies(count, query_bandwidth, lowest_frequency)
        bands = [given_frequencies("frequencies", band) for band in frequencies]
        if any(band.shape != bands[0].shape for band in bands):
            raise ValueError("frequencies: expected 1-D tensors of one length")

        self.coord_dim, self.out_dim, self.token_dim = coord_dim, out_dim, token_dim
        self.hidden_dim, self.heads, self.head_dim = hidden_dim, heads, head_dim
        self.modulation_relu = modulation_relu
        query = given_frequencies("query_frequencies", query_frequencies)
        self.register_buffer("query_frequencies", query.float())
        self.register_buffer("band_frequencies", torch.stack(bands).float())

        inner = heads * head_dim
        attended = hidden_dim if output_projection else inner
        features = 2 * coord_dim * bands[0].shape[0]
        self.query_feature = nn.Linear(2 * coord_dim * query.shape[0], hidden_dim)
        self.query_linear = nn.Linear(hidden_dim, hidden_dim) if query_linear else None
        self.query_projection = nn.Linear(hidden_dim, inner, bias=attention_bias)
        self.key_projection = nn.Linear(token_dim, inner, bias=attention_bias)
        self.value_projection = (
            self.key_projection
            if share_key_value
            else nn.Linear(token_dim, inner, bias=attention_bias)
        )
        self.output_projection = (
            nn.Linear(inner, hidden_dim, bias=attention_bias) if output_projection else None
        )
        self.band_features = nn.ModuleList(nn.Linear(features, hidden_dim) for _ in range(levels))
        self.modulations = nn.ModuleList(nn.Linear(attended, hidden_dim) for _ in range(levels))
        self.hidden = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(levels - 1))
        self.outputs = nn.ModuleList(nn.Linear(hidden_dim, out_dim) for _ in range(levels))

    @property
    def levels(self) -> int:
        """L, the number of bands."""
        return len(self.band_features)

    def weights(self) -> LocalityWeights:
        """The operator's parameters as differentiable functions of this module's."""

        def bias_of(layer: nn.Linear) -> Tensor:
            return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias

        def stacked(layers: nn.ModuleList, name: str) -> Tensor:
            return torch.stack([getattr(layer, name) for layer in layers])

        projection, projection_bias = (
            self.query_projection.weight,
            bias_of(self.query_projection),
        )
        if self.query_linear is not None:
            projection_bias = projection_bias + projection @ self.query_linear.bias
            projection = projection @ self.query_linear.weight
        wo = self.output_projection
        width = self.hidden_dim
        empty = self.query_feature.weight
        return LocalityWeights(
            query_frequencies=self.query_frequencies,
            query_weight=self.query_feature.weight,
            query_bias=self.query_feature.bias,
            projection_weight=projection,
            projection_bias=projection_bias,
            attention_output_weight=None if wo is None else wo.weight,
            attention_output_bias=None if wo is None else bias_of(wo),
            band_frequencies=self.band_frequencies,
            band_weight=stacked(self.band_features, "weight"),
            band_bias=stacked(self.band_features, "bias"),
            modulation_weight=stacked(self.modulations, "weight"),
            modulation_bias=stacked(self.modulations, "bias"),
            hidden_weight=(
                stacked(self.hidden, "weight")
                if len(self.hidden)
                else empty.new_empty(0, width, width)
            ),
            hidden_bias=(
                stacked(self.hidden, "bias") if len(self.hidden) else empty.new_empty(0, width)
            ),
            output_weight=stacked(self.outputs, "weight"),
            output_bias=stacked(self.outputs, "bias").sum(0),
        )

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Projected keys and values: tokens ``(B, R, token_dim)`` to two ``(B, H, R, ·)``."""

        def by_head(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

        keys = by_head(self.key_projection(tokens))
        if self.value_projection is self.key_projection:
            return keys, keys
        return keys, by_head(self.value_projection(tokens))

    def forward(self, coords: Tensor | CoordinateGrid, tokens: Tensor) -> Tensor:
        """Values at the coordinates.

        Args:
            coords: ``(B, ..., c)``, or ``(..., c)`` shared by the batch, or a ``CoordinateGrid``;
                float32 or float64. ``(N, c)`` is always shared; with three or more dimensions the
                first counts as the batch where it is B or 1.
            tokens: ``(B, R, token_dim)``, in the dtype of the parameters unless autocast is on.

        Returns:
            ``(B, ..., out_dim)``.

        Raises:
            TypeError, ValueError: naming ``coords`` or ``tokens``.
        """
        parameter = self.query_feature.weight
        check_inputs(coords, tokens, parameter, self.coord_dim, self.token_dim)
        keys, values = self.keys_and_values(tokens)
        return locality_decode(
            coords,
            keys,
            values,
            self.weights(),
            scale=self.head_dim**-0.5,
            modulation_relu=self.modulation_relu,
        )

    def extra_repr(self) -> str:
        backend = dispatch.forced_backend() or "auto"
        return f"levels={self.levels}, heads={self.heads}, backend={backend}"
