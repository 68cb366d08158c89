"""The attention-based decoder of ANR and INRCT as a drop-in module."""

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
from ginr_fast.ops.anr_decode.op import anr_decode, check_activation, check_threshold
from ginr_fast.ops.anr_decode.weights import AnrWeights


def anr_weights(
    frequencies: Tensor,
    query_weight: Tensor,
    attention_output: nn.Linear,
    layers: Sequence[nn.Linear],
    scale: float,
    bias: float,
) -> AnrWeights:
    """The linear layers of an ANR as the operator's parameters, differentiable.

    Args:
        frequencies: ω, ``(n,)``.
        query_weight: W_q, ``(H·dq, 2·c·n)``.
        attention_output: the attention's output projection, d wide.
        layers: of the MLP, at least one.
        scale: s of the value ``s·y + t``, which becomes part of the last layer.
        bias: t of the same.
    """
    *inner, last = layers
    first, hidden = (inner[0], inner[1:]) if inner else (None, [])
    width = attention_output.out_features
    return AnrWeights(
        frequencies=frequencies,
        query_weight=query_weight,
        attention_output_weight=attention_output.weight,
        attention_output_bias=attention_output.bias,
        first_weight=None if first is None else first.weight,
        first_bias=None if first is None else first.bias,
        hidden_weight=(
            torch.stack([layer.weight for layer in hidden])
            if hidden
            else query_weight.new_empty(0, width, width)
        ),
        hidden_bias=(
            torch.stack([layer.bias for layer in hidden])
            if hidden
            else query_weight.new_empty(0, width)
        ),
        output_weight=last.weight * scale,
        output_bias=last.bias * scale + bias,
    )


class AnrDecoder(PreciseFrequencies):
    """Coordinates and latent tokens to values: thresholded cross-attention, then an MLP.

    Source: Attention Beats Linear for Fast Implicit Neural Representation Generation (ANR, ECCV
    2024). The defaults are the sizes that INRCT: An End-to-End Framework for Encoding and
    Generating Implicit Neural Representation gives for images; the equation is that of
    :func:`ginr_fast.anr_decode`.

    Args:
        coord_dim: c, coordinates of a point.
        out_dim: channels of a value.
        token_dim: width of a latent token.
        hidden_dim: d, width of the MLP and of the attention's output.
        heads: H of the cross-attention.
        head_dim: width of a head.
        depth: linear layers of the MLP; the last one gives the value.
        max_frequency: the frequencies are log-spaced from 1 to this.
        threshold: τ, 0 ≤ τ < 1: attention weights become max(p − τ, 0), renormalised; 0 leaves
            them as they are.
        activation: between the layers, ``"relu"`` or ``"mish"``.
        feature_dim: Fourier features, rounded down to ``2·c·⌊feature_dim/2c⌋``; ``hidden_dim`` if
            None.
        frequencies: ``n`` frequencies instead of the log-spaced ones.
        output_scale: s of the value ``s·y + t``.
        output_bias: t of the same.

    Raises:
        TypeError, ValueError: naming the argument: a size below 1, a frequency, scale or bias that
            is no finite number, a threshold outside [0, 1), an unknown activation.

    Example:
        >>> import torch, ginr_fast
        >>> decoder = ginr_fast.AnrDecoder(token_dim=32, hidden_dim=64, heads=2, head_dim=16)
        >>> tokens = torch.randn(2, 16, 32)
        >>> decoder(ginr_fast.grid(12, 10), tokens).shape
        torch.Size([2, 12, 10, 3])
        >>> decoder(torch.rand(2, 100, 2), tokens).shape
        torch.Size([2, 100, 3])
    """

    frequencies: Tensor

    def __init__(
        self,
        coord_dim: int = 2,
        out_dim: int = 3,
        token_dim: int = 512,
        hidden_dim: int = 512,
        heads: int = 6,
        head_dim: int = 64,
        depth: int = 5,
        max_frequency: float = 1024,
        threshold: float = 0.0015,
        activation: str = "relu",
        *,
        feature_dim: int | None = None,
        frequencies: Tensor | None = None,
        output_scale: float = 1.0,
        output_bias: float = 0.0,
    ):
        super().__init__()
        feature_dim = hidden_dim if feature_dim is None else feature_dim
        sizes = {
            "coord_dim": coord_dim,
            "out_dim": out_dim,
            "token_dim": token_dim,
            "hidden_dim": hidden_dim,
            "heads": heads,
            "head_dim": head_dim,
            "depth": depth,
            "feature_dim": feature_dim,
        }
        check_sizes(sizes)
        check_threshold(threshold)
        check_activation(activation)
        if not isinstance(max_frequency, (int, float)) or not 0 < max_frequency < math.inf:
            raise ValueError(f"max_frequency: expected a positive number, got {max_frequency!r}")
        for name, number in (("output_scale", output_scale), ("output_bias", output_bias)):
            if not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(f"{name}: expected a finite number, got {number!r}")
        if frequencies is None:
            count = feature_dim // (2 * coord_dim)
            if count < 1:
                raise ValueError(
                    f"feature_dim: expected at least {2 * coord_dim} (2 x coord_dim), got "
                    f"{feature_dim}"
                )
            frequencies = log_spaced_frequencies(count, max_frequency)
        frequencies = given_frequencies("frequencies", frequencies)

        self.coord_dim, self.out_dim, self.token_dim = coord_dim, out_dim, token_dim
        self.hidden_dim, self.heads, self.head_dim = hidden_dim, heads, head_dim
        self.threshold, self.activation = float(threshold), activation
        self.output_scale, self.output_bias = float(output_scale), float(output_bias)
        self.register_buffer("frequencies", frequencies.float())

        inner = heads * head_dim
        features = 2 * coord_dim * frequencies.shape[0]
        self.query_projection = nn.Linear(features, inner, bias=False)
        self.key_projection = nn.Linear(token_dim, inner, bias=False)
        self.value_projection = nn.Linear(token_dim, inner, bias=False)
        self.output_projection = nn.Linear(inner, hidden_dim)
        widths = [hidden_dim] * depth + [out_dim]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False)
        )

    @property
    def depth(self) -> int:
        """The number of linear layers of the MLP."""
        return len(self.layers)

    def weights(self) -> AnrWeights:
        """The operator's parameters as differentiable functions of this module's."""
        return anr_weights(
            self.frequencies,
            self.query_projection.weight,
            self.output_projection,
            [layer for layer in self.layers if isinstance(layer, nn.Linear)],
            self.output_scale,
            self.output_bias,
        )

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Projected keys and values: tokens ``(B, R, token_dim)`` to two ``(B, H, R, ·)``."""

        def by_head(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

        return by_head(self.key_projection(tokens)), by_head(self.value_projection(tokens))

    def forward(self, coords: Tensor | CoordinateGrid, tokens: Tensor) -> Tensor:
        """Values at the coordinates.

        Args:
            coords: ``(B, ..., c)``, or ``(..., c)`` shared by the batch, or a ``CoordinateGrid``;
                float32 or float64. ``(N, c)`` is always shared; with three or more dimensions the
                first counts as the batch where it is B or 1.
            tokens: ``(B, R, token_dim)``, R at least 1, in the dtype of the parameters unless
                autocast is on.

        Returns:
            ``(B, ..., out_dim)``.

        Raises:
            TypeError, ValueError: naming ``coords`` or ``tokens``.
        """
        parameter = self.query_projection.weight
        check_inputs(coords, tokens, parameter, self.coord_dim, self.token_dim)
        keys, values = self.keys_and_values(tokens)
        return anr_decode(
            coords,
            keys,
            values,
            self.weights(),
            threshold=self.threshold,
            activation=self.activation,
            scale=self.head_dim**-0.5,
        )

    def extra_repr(self) -> str:
        backend = dispatch.forced_backend() or "auto"
        return (
            f"heads={self.heads}, threshold={self.threshold:g}, activation={self.activation}, "
            f"backend={backend}"
        )
