"""The formula of ANR's decoder, line by line (Attention Beats Linear, ECCV 2024).

Any dtype, any device, differentiable any number of times. Everything else is tested against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast.ops.anr_decode.weights import AnrWeights
from ginr_fast.ops.locality_decode.reference import fourier_features

ACTIVATIONS = {"relu": F.relu, "mish": F.mish}


def threshold_weights(p: Tensor, threshold: float) -> Tensor:
    """w = u / Σu with u = max(p − τ, 0), over the last dimension; 0 where no p exceeds τ."""
    u = (p - threshold).relu()
    total = u.sum(dim=-1, keepdim=True)
    return u / torch.where(total > 0, total, torch.ones_like(total))


def anr_decode_reference(
    coords: Tensor,
    keys: Tensor,
    values: Tensor,
    w: AnrWeights,
    threshold: float = 0.0,
    activation: str = "relu",
) -> Tensor:
    """Decode ``(B or 1, N, c)`` coordinates against ``(B, H, R, ·)`` keys, values: ``(B, N, out)``.

    Keys arrive scaled: the logits are q·k.
    """
    act = ACTIVATIONS[activation]
    features = fourier_features(coords, w.frequencies).to(keys.dtype)
    q = (features @ w.query_weight.transpose(-1, -2)).unflatten(-1, (keys.shape[1], -1))
    logits = q.transpose(1, 2) @ keys.transpose(-1, -2)  # (B, H, N, R)
    weights = logits.softmax(dim=-1)
    if threshold > 0:
        weights = threshold_weights(weights, threshold)
    x = (weights @ values).transpose(1, 2).flatten(2)  # (B, N, H·dv)
    if w.attention_output_weight is not None:
        x = F.linear(x, w.attention_output_weight, w.attention_output_bias)
    if w.first_weight is not None:
        x = act(F.linear(x, w.first_weight, w.first_bias))
    for weight, bias in zip(w.hidden_weight, w.hidden_bias, strict=True):
        x = act(F.linear(x, weight, bias))
    return F.linear(x, w.output_weight, w.output_bias)
