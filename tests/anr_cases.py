"""What the tests of the ANR decoder share: decoders, how much they drop, and an own formula."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast import AnrDecoder, CoordinateGrid

SMALL: dict[str, Any] = {
    "token_dim": 11,
    "hidden_dim": 18,
    "feature_dim": 22,
    "heads": 3,
    "head_dim": 5,
    "depth": 3,
    "max_frequency": 9,
    "threshold": 0.1,
}


def make_decoder(
    dtype: torch.dtype = torch.float32, sharpness: float = 8.0, **arguments: Any
) -> AnrDecoder:
    """A random decoder whose queries are ``sharpness`` times PyTorch's default: with the default
    the attention is nearly uniform, and a threshold drops all tokens or none."""
    torch.manual_seed(0)
    decoder = AnrDecoder(**arguments)
    with torch.no_grad():
        decoder.query_projection.weight *= sharpness
    return decoder.to(dtype)


def points_of(coords: Tensor | CoordinateGrid, batch: int) -> Tensor:
    """The coordinates written out, (B, N, c)."""
    if isinstance(coords, CoordinateGrid):
        coords = coords.tensor().reshape(1, -1, coords.coord_dim)
    if coords.ndim == 2:
        coords = coords[None]
    return coords.expand(batch, -1, -1)


def _by_head(decoder: AnrDecoder, projected: Tensor) -> Tensor:
    batch, count, _ = projected.shape
    return projected.reshape(batch, count, decoder.heads, decoder.head_dim).transpose(1, 2)


def queries(decoder: AnrDecoder, points: Tensor) -> Tensor:
    """(B, H, N, head_dim) for points (B, N, c)."""
    phase = math.pi * torch.einsum("bnc,f->bncf", points, decoder.frequencies.to(points))
    features = torch.stack((phase.cos(), phase.sin()), dim=2).flatten(2)
    return _by_head(decoder, decoder.query_projection(features))


def probabilities(decoder: AnrDecoder, points: Tensor, tokens: Tensor) -> Tensor:
    """The softmax before the threshold, (B, H, N, R)."""
    keys = _by_head(decoder, decoder.key_projection(tokens))
    logits = torch.einsum("bhnd,bhrd->bhnr", queries(decoder, points), keys)
    return torch.softmax(logits / math.sqrt(decoder.head_dim), dim=-1)


def dropped(
    decoder: AnrDecoder, coords: Tensor | CoordinateGrid, tokens: Tensor
) -> tuple[float, float]:
    """The share of attention weights below the threshold, and of rows without any above it."""
    with torch.no_grad():
        points = points_of(coords, tokens.shape[0]).to(tokens)
        low = probabilities(decoder, points, tokens) <= decoder.threshold
    return low.double().mean().item(), low.all(-1).double().mean().item()


def steady(decoder: AnrDecoder, coords: Tensor | CoordinateGrid, tokens: Tensor) -> Tensor:
    """Which points (B, N) are far from losing a row's last token, where the value jumps."""
    with torch.no_grad():
        points = points_of(coords, tokens.shape[0]).to(tokens)
        largest = probabilities(decoder, points, tokens).amax(-1)
    return ((largest - decoder.threshold).abs() > 0.05 * decoder.threshold).all(1)


def own_formula(decoder: AnrDecoder, coords: Tensor, tokens: Tensor) -> Tensor:
    """The decoder straight from its layers; without threshold the attention is PyTorch's own.
    ``coords`` (B, N, c)."""
    values = _by_head(decoder, decoder.value_projection(tokens))
    if decoder.threshold == 0:
        keys = _by_head(decoder, decoder.key_projection(tokens))
        attended = F.scaled_dot_product_attention(queries(decoder, coords), keys, values)
    else:
        p = probabilities(decoder, coords, tokens)
        kept = torch.where(p > decoder.threshold, p - decoder.threshold, 0.0)
        attended = F.normalize(kept, p=1, dim=-1, eps=torch.finfo(p.dtype).tiny) @ values
    x = decoder.output_projection(attended.transpose(1, 2).flatten(2))
    activate = {"relu": torch.relu, "mish": lambda z: z * torch.tanh(F.softplus(z))}
    for layer in decoder.layers[:-1]:
        x = activate[decoder.activation](layer(x))
    return decoder.output_scale * decoder.layers[-1](x) + decoder.output_bias


def keys_values_weights(decoder: AnrDecoder, tokens: Tensor) -> tuple:
    """Operands for :func:`ginr_fast.anr_decode`."""
    keys, values = decoder.keys_and_values(tokens)
    return keys.detach(), values.detach(), decoder.weights()
