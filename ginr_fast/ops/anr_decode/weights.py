"""The parameters of ``anr_decode``: one tuple, with every shape stated and checked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ginr_fast.ops.checks import PHASE_DTYPES, VALUE_DTYPES, check_tensor


class AnrWeights(NamedTuple):
    """Parameters of :func:`~ginr_fast.ops.anr_decode.op.anr_decode`.

    Sizes: d hidden width, H heads, dq and dv head widths, n frequencies, c coordinates of a point;
    2·c·n features, ordered (cos, sin) × coordinate × frequency. The MLP has ``depth`` linear
    layers. All tensors share one dtype, except the frequency buffer (float32 or float64).
    """

    frequencies: Tensor
    """ω, (n,)."""
    query_weight: Tensor
    """W_q, (H·dq, 2·c·n); no bias."""
    attention_output_weight: Tensor | None
    """W_o, output projection of the attention, (d_o, H·dv); None when folded into the layer after
    it, and then d_o is H·dv."""
    attention_output_bias: Tensor | None
    """b_o, (d_o,); None without W_o."""
    first_weight: Tensor | None
    """W of the first layer, (d, d_o); None where the MLP has one layer only, the output layer."""
    first_bias: Tensor | None
    """b of the first layer, (d,); None without it."""
    hidden_weight: Tensor
    """W of the layers between the first and the last, (depth−2, d, d); (0, d, d) without any."""
    hidden_bias: Tensor
    """b of those layers, (depth−2, d), or (0, d)."""
    output_weight: Tensor
    """W of the last layer, (d_out, d), or (d_out, d_o) at depth 1."""
    output_bias: Tensor
    """b of the last layer, (d_out,)."""

    @property
    def depth(self) -> int:
        """The number of linear layers of the MLP."""
        return 1 if self.first_weight is None else 2 + self.hidden_weight.shape[0]

    @property
    def out_dim(self) -> int:
        """d_out."""
        return self.output_weight.shape[0]

    def to_dtype(self, dtype: torch.dtype) -> AnrWeights:
        """All parameters in ``dtype``; the frequencies stay as they are."""
        return AnrWeights(
            **{
                name: tensor.to(dtype)
                if isinstance(tensor, Tensor) and name != "frequencies"
                else tensor
                for name, tensor in self._asdict().items()
            }
        )


def check_weights(
    weights: AnrWeights, coord_dim: int, heads: int, key_dim: int, value_dim: int
) -> None:
    """Raise a ValueError or TypeError naming the first parameter that does not fit."""
    w = weights
    check_tensor("weights.query_weight", w.query_weight, (None, None), dtypes=VALUE_DTYPES)
    dtypes, device = (w.query_weight.dtype,), w.query_weight.device

    def check(name: str, shape: tuple, allowed: tuple = dtypes) -> Tensor:
        return check_tensor(
            f"weights.{name}", getattr(w, name), shape, dtypes=allowed, device=device
        )

    def check_pair(layer: str) -> bool:
        """Whether a layer is there; both of its tensors or neither."""
        weight, bias = (getattr(w, f"{layer}_{part}") for part in ("weight", "bias"))
        if weight is None and bias is not None:
            raise ValueError(f"weights.{layer}_bias: expected None, as {layer}_weight is None")
        return weight is not None

    check("frequencies", ("n",), PHASE_DTYPES)
    check("query_weight", (heads * key_dim, 2 * coord_dim * w.frequencies.shape[0]))
    width = heads * value_dim
    if check_pair("attention_output"):
        width = check("attention_output_weight", ("d_o", width)).shape[0]
        check("attention_output_bias", (width,))
    layers: int | str = 0
    hidden_width: int | str = "d"
    if check_pair("first"):
        width = check("first_weight", ("d", width)).shape[0]
        check("first_bias", (width,))
        layers, hidden_width = "depth-2", width
    hidden = check("hidden_weight", (layers, hidden_width, hidden_width)).shape
    check("hidden_bias", hidden[:2])
    out_dim = check("output_weight", ("d_out", width)).shape[0]
    check("output_bias", (out_dim,))
