"""The parameters of ``locality_decode``: one tuple, with every shape stated and checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ginr_fast.ops.checks import PHASE_DTYPES, VALUE_DTYPES, check_tensor


class LocalityWeights(NamedTuple):
    """Parameters of :func:`~ginr_fast.ops.locality_decode.op.locality_decode`.

    Sizes: L bands, d hidden width, H heads, dq and dv head widths, n frequencies of a band,
    c coordinates of a point; F = 2·c·n features, ordered (cos, sin) × coordinate × frequency.
    All tensors share one dtype, except the two frequency buffers (float32 or float64).
    """

    query_frequencies: Tensor
    """ω of the query band, (n_q,)."""
    query_weight: Tensor
    """W_q, (d_q, F_q)."""
    query_bias: Tensor
    """b_q, (d_q,)."""
    projection_weight: Tensor | None
    """Query projection of the attention, (H·dq, d_q); None when it is folded into the keys."""
    projection_bias: Tensor | None
    """(H·dq,); None without projection."""
    attention_output_weight: Tensor | None
    """W_o, output projection of the attention, (d_o, H·dv); None when folded into W_m."""
    attention_output_bias: Tensor | None
    """b_o, (d_o,); None without W_o."""
    band_frequencies: Tensor
    """ω of each modulation band, (L, n)."""
    band_weight: Tensor
    """W_F, (L, d, F)."""
    band_bias: Tensor
    """b_F, (L, d)."""
    modulation_weight: Tensor | None
    """W_m, (L, d, d_o), or (L, d, H·dv) without W_o; None when folded into the values."""
    modulation_bias: Tensor
    """b_m, (L, d)."""
    hidden_weight: Tensor
    """W of levels 2..L, (L−1, d, d)."""
    hidden_bias: Tensor
    """b of levels 2..L, (L−1, d)."""
    output_weight: Tensor
    """W_out, (L, d_out, d)."""
    output_bias: Tensor
    """Σ_ℓ b_out, (d_out,)."""

    @property
    def levels(self) -> int:
        """L."""
        return self.band_weight.shape[0]

    @property
    def width(self) -> int:
        """d."""
        return self.band_weight.shape[1]

    @property
    def out_dim(self) -> int:
        """d_out."""
        return self.output_weight.shape[1]

    def to_dtype(self, dtype: torch.dtype) -> LocalityWeights:
        """All parameters in ``dtype``; the frequencies stay as they are."""
        frequencies = ("query_frequencies", "band_frequencies")
        return LocalityWeights(
            **{
                name: tensor.to(dtype)
                if isinstance(tensor, Tensor) and name not in frequencies
                else tensor
                for name, tensor in self._asdict().items()
            }
        )


def check_weights(
    weights: LocalityWeights, coord_dim: int, heads: int, key_dim: int, value_dim: int
) -> None:
    """Raise a ValueError or TypeError naming the first parameter that does not fit."""
    w = weights
    check_tensor("weights.band_weight", w.band_weight, ("L", "d", "F"), dtypes=VALUE_DTYPES)
    dtypes, device = (w.band_weight.dtype,), w.band_weight.device
    levels, width, features = w.band_weight.shape
    if levels < 1:
        raise ValueError("weights.band_weight: expected at least one band, got 0")

    def check(name: str, shape: tuple, allowed: tuple = dtypes) -> Tensor:
        return check_tensor(
            f"weights.{name}", getattr(w, name), shape, dtypes=allowed, device=device
        )

    check("query_frequencies", ("n_q",), PHASE_DTYPES)
    check("band_frequencies", (levels, "n"), PHASE_DTYPES)
    expected = 2 * coord_dim * w.band_frequencies.shape[1]
    if features != expected:
        raise ValueError(
            f"weights.band_weight: expected {expected} features (2 x {coord_dim} coordinates x "
            f"{w.band_frequencies.shape[1]} frequencies), got {features}"
        )
    query_width = check(
        "query_weight", ("d_q", 2 * coord_dim * w.query_frequencies.shape[0])
    ).shape[0]
    check("query_bias", (query_width,))
    if w.projection_weight is not None:
        check("projection_weight", (heads * key_dim, query_width))
        check("projection_bias", (heads * key_dim,))
    elif key_dim != query_width:
        raise ValueError(
            f"keys: without a query projection their width must be {query_width}, got {key_dim}"
        )
    attended = heads * value_dim
    if w.attention_output_weight is not None:
        attended = check("attention_output_weight", ("d_o", heads * value_dim)).shape[0]
        check("attention_output_bias", (attended,))
    if w.modulation_weight is not None:
        check("modulation_weight", (levels, width, attended))
    elif w.attention_output_weight is not None or value_dim != levels * width:
        raise ValueError(
            f"values: without modulation weights their width must be {levels * width}, got "
            f"{value_dim}"
        )
    check("band_bias", (levels, width))
    check("modulation_bias", (levels, width))
    check("hidden_weight", (levels - 1, width, width))
    check("hidden_bias", (levels - 1, width))
    out_dim = check("output_weight", (levels, "d_out", width)).shape[1]
    check("output_bias", (out_dim,))
