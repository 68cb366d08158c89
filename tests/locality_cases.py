"""What the tests of the locality-aware decoder share: decoders, inputs, and an own formula."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ginr_fast
from ginr_fast import CoordinateGrid, LocalityAwareDecoder

SMALL: dict[str, Any] = {
    "token_dim": 11,
    "hidden_dim": 18,
    "feature_dim": 22,
    "bandwidths": (9, 5),
    "query_bandwidth": 4,
}
KINDS = ("points", "unbatched", "one set", "repeated", "expanded", "grid")


def make_decoder(dtype: torch.dtype = torch.float32, **arguments: Any) -> LocalityAwareDecoder:
    torch.manual_seed(0)
    return LocalityAwareDecoder(**arguments).to(dtype)


def make_tokens(batch: int, count: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, width, generator=generator).to(dtype)


def make_coords(kind: str, batch: int, count: int, dims: int) -> Tensor | CoordinateGrid:
    """About ``count`` random points or a grid, in each way the library takes them."""
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(batch, count, dims, generator=generator) * 2 - 1
    if kind == "points":
        return points
    if kind == "unbatched":
        return points[0]
    if kind == "one set":
        return points[:1]
    if kind == "repeated":
        return points[:1].repeat(batch, 1, 1)
    if kind == "expanded":
        return points[:1].expand(batch, -1, -1)
    side = max(2, round(count ** (1 / dims)))
    return ginr_fast.grid(*(side + axis for axis in range(dims)))


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def run(
    decoder: LocalityAwareDecoder,
    coords: Tensor | CoordinateGrid,
    tokens: Tensor,
    backend: str,
    coords_grad: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The values, and the gradients of tokens, parameters and (if asked) coordinates."""
    inputs: dict[str, Tensor] = {"tokens": tokens.detach().requires_grad_()}
    if coords_grad and isinstance(coords, Tensor):
        inputs["coords"] = coords = coords.detach().requires_grad_()
    inputs.update(decoder.named_parameters())
    with ginr_fast.backend(backend):
        out = decoder(coords, inputs["tokens"])
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype)
    grads = torch.autograd.grad(out, list(inputs.values()), weights, create_graph=create_graph)
    assert all(g.dtype == i.dtype for g, i in zip(grads, inputs.values(), strict=True))
    return out.detach(), {n: g.detach() for n, g in zip(inputs, grads, strict=True)}


def check_accuracy(
    decoder: LocalityAwareDecoder,
    coords: Tensor | CoordinateGrid,
    tokens: Tensor,
    limit: float,
    backend: str = "blocked",
    coords_grad: bool = True,
) -> None:
    """Values and gradients against the reference in float64, from the same frequencies."""
    exact = copy.deepcopy(decoder).double()
    coords_grad = coords_grad and isinstance(coords, Tensor)
    want, want_grads = run(exact, coords, tokens.double(), "reference", coords_grad)
    got, got_grads = run(decoder, coords, tokens, backend, coords_grad)
    assert got.dtype == tokens.dtype and got.shape == want.shape
    assert relative_error(got, want) <= limit
    largest = max(grad.norm() for grad in want_grads.values())
    assert ("coords" in want_grads) == coords_grad
    for name, grad in want_grads.items():
        if grad.norm() < 1e-9 * largest:  # zero in theory: the key bias; all keys when R = 1
            assert got_grads[name].double().norm() <= 5 * limit * largest, name
        else:
            assert relative_error(got_grads[name], grad) <= 5 * limit, name


def own_formula(decoder: LocalityAwareDecoder, coords: Tensor, tokens: Tensor) -> Tensor:
    """The decoder straight from its modules; attention by PyTorch's own. ``coords`` (B, N, c)."""

    def features(frequencies: Tensor) -> Tensor:
        phase = math.pi * torch.einsum("bnc,f->bncf", coords, frequencies.to(coords))
        return torch.stack((phase.cos(), phase.sin()), dim=2).flatten(2)

    def heads(projected: Tensor) -> Tensor:
        batch, count, _ = projected.shape
        return projected.reshape(batch, count, decoder.heads, decoder.head_dim).transpose(1, 2)

    q = F.relu(decoder.query_feature(features(decoder.query_frequencies)))
    if decoder.query_linear is not None:
        q = decoder.query_linear(q)
    m = F.scaled_dot_product_attention(
        heads(decoder.query_projection(q)),
        heads(decoder.key_projection(tokens)),
        heads(decoder.value_projection(tokens)),
    )
    m = m.transpose(1, 2).flatten(2)
    if decoder.output_projection is not None:
        m = decoder.output_projection(m)
    return modulated(decoder, [features(band) for band in decoder.band_frequencies], m)


def modulated(decoder: LocalityAwareDecoder, features: list[Tensor], m: Tensor) -> Tensor:
    """Equations 6 to 9 for the attention's output m, (B, N, ·)."""
    activate = F.relu if decoder.modulation_relu else torch.nn.Identity()
    levels = [
        activate(F.relu(feature_layer(feature)) + modulation(m))
        for feature_layer, modulation, feature in zip(
            decoder.band_features, decoder.modulations, features, strict=True
        )
    ]
    hidden = [levels[0]]
    for layer, level in zip(decoder.hidden, levels[1:], strict=True):
        hidden.append(F.relu(layer(level + hidden[-1])))
    heads = [head(h) for head, h in zip(decoder.outputs, hidden, strict=True)]
    return torch.stack(heads).sum(0)
