"""The formula of LA-GINR's decoder, line by line (arXiv 2310.05624, equations 2 to 9).

Any dtype, any device, differentiable any number of times. Everything else is tested against it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ginr_fast.ops.locality_decode.weights import LocalityWeights


def fourier_features(coords: Tensor, frequencies: Tensor) -> Tensor:
    """γ(v) = [cos(π ω_j v_i), sin(π ω_j v_i)]: ``(..., c)`` and ``(n,)`` to ``(..., 2·c·n)``."""
    phase = (math.pi * frequencies * coords.unsqueeze(-1)).flatten(-2)
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


def locality_decode_reference(
    coords: Tensor,
    keys: Tensor,
    values: Tensor,
    logit_bias: Tensor | None,
    w: LocalityWeights,
    modulation_relu: bool = True,
) -> Tensor:
    """Decode ``(B or 1, N, c)`` coordinates against ``(B, H, R, ·)`` keys, values: ``(B, N, out)``.

    ``logit_bias`` (B, H, R) is added to the attention logits *before* the 1/√dq scale is applied
    to the keys' side: keys arrive already scaled, so logits are q·k + bias.
    """
    dtype = keys.dtype

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x @ weight.transpose(-1, -2) + bias

    def frequency_feature(frequencies: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(fourier_features(coords, frequencies).to(dtype), weight, bias).relu()

    heads = keys.shape[1]
    q = frequency_feature(w.query_frequencies, w.query_weight, w.query_bias)  # eq. 4
    if w.projection_weight is not None and w.projection_bias is not None:
        q = linear(q, w.projection_weight, w.projection_bias)
        q = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B or 1, H, N, dq)
    else:
        q = q.unsqueeze(1)
    logits = q @ keys.transpose(-1, -2)
    if logit_bias is not None:
        logits = logits + logit_bias.unsqueeze(-2)
    attended = logits.softmax(dim=-1) @ values  # (B, H, N, dv)
    if w.modulation_weight is None:
        modulation = attended.sum(1).unflatten(-1, (w.levels, w.width))
        modulations = modulation.unbind(-2)
    else:
        m = attended.transpose(1, 2).flatten(2)
        if w.attention_output_weight is not None and w.attention_output_bias is not None:
            m = linear(m, w.attention_output_weight, w.attention_output_bias)  # eq. 5
        modulations = tuple(m @ weight.transpose(-1, -2) for weight in w.modulation_weight)

    hidden: Tensor | None = None
    output: Tensor | None = None
    for level in range(w.levels):
        feature = frequency_feature(
            w.band_frequencies[level], w.band_weight[level], w.band_bias[level]
        )  # eq. 6
        modulated = feature + modulations[level] + w.modulation_bias[level]  # eq. 7
        if modulation_relu:
            modulated = modulated.relu()
        if hidden is None:
            hidden = modulated
        else:  # eq. 8
            hidden = linear(
                modulated + hidden, w.hidden_weight[level - 1], w.hidden_bias[level - 1]
            ).relu()
        head = hidden @ w.output_weight[level].transpose(-1, -2)  # eq. 9
        output = head if output is None else output + head
    assert output is not None
    return output + w.output_bias
