"""The one-pass error of the locality-aware decoder against decoding and comparing."""

from __future__ import annotations

import math

import pytest
import torch

import ginr_fast
from ginr_fast.decoders.squared_error import KeptFeatures, decoding_errors
from ginr_fast.ops.locality_decode import squared_error as module


def decoder_of(heads: int = 2, head_dim: int | None = None, relu: bool = True, levels: int = 2):
    torch.manual_seed(0)
    decoder = ginr_fast.LocalityAwareDecoder(
        coord_dim=2,
        out_dim=3,
        token_dim=12,
        hidden_dim=16,
        feature_dim=16,
        bandwidths=(8.0, 4.0, 2.0)[:levels],
        query_bandwidth=4.0,
        heads=heads,
        head_dim=head_dim,
        modulation_relu=relu,
    )
    return decoder.double().requires_grad_(False)


COORDS = {
    "a grid": ginr_fast.grid(5, 7),
    "shared points": torch.rand(30, 2) * 2 - 1,
    "points of each instance": torch.rand(3, 30, 2) * 2 - 1,
    "more than a block": ginr_fast.grid(50, 61),
}


@pytest.mark.parametrize("where", COORDS)
@pytest.mark.parametrize(
    "form", [{}, {"heads": 1}, {"head_dim": 24}, {"relu": False}, {"levels": 1}, {"levels": 3}]
)
def test_errors_and_gradients_are_those_of_the_formula(
    where: str, form: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, coords = decoder_of(**form), COORDS[where]
    if isinstance(coords, torch.Tensor):
        coords = coords.double()
    tokens = torch.randn(3, 6, 12, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        values = decoder(coords, tokens)
    targets = values + 0.3 * torch.randn_like(values)
    share = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    with ginr_fast.backend("reference"):
        expected = decoding_errors(decoder, coords, tokens, targets)
        (wanted,) = torch.autograd.grad((expected * share).sum(), tokens)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded and compared")

    monkeypatch.setattr(module, "locality_decode", refuse)
    found = decoding_errors(decoder, coords, tokens, targets)
    (grad,) = torch.autograd.grad((found * share).sum(), tokens)
    assert torch.allclose(found, expected, rtol=1e-10)
    assert torch.allclose(grad, wanted, rtol=1e-8, atol=1e-12)


def test_float32_keeps_the_bounds() -> None:
    decoder = decoder_of()
    tokens = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 40, 40, 3, dtype=torch.float64)
    coords = ginr_fast.grid(40, 40)
    with ginr_fast.backend("reference"):
        expected = decoding_errors(decoder, coords, tokens, targets)
        (wanted,) = torch.autograd.grad(expected.sum(), tokens)
    single = tokens.detach().float().requires_grad_()
    found = decoding_errors(decoder.float(), coords, single, targets.float())
    (grad,) = torch.autograd.grad(found.sum(), single)
    assert (found - expected).norm() / expected.norm() < 2e-5
    assert (grad - wanted).norm() / wanted.norm() < 1e-4


def test_other_gradients_take_the_long_way_and_the_second_order_is_refused() -> None:
    decoder, coords = decoder_of().requires_grad_(), ginr_fast.grid(4, 5)
    tokens = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 4, 5, 3, dtype=torch.float64)
    decoding_errors(decoder, coords, tokens, targets).sum().backward()
    assert tokens.grad is not None
    assert all(
        each.grad is not None
        for name, each in decoder.named_parameters()
        if name != "key_projection.bias"
    )
    points = coords.tensor().double().requires_grad_()
    decoder.requires_grad_(False)
    (grad,) = torch.autograd.grad(decoding_errors(decoder, points, tokens, targets).sum(), points)
    assert grad.abs().sum() > 0
    error = decoding_errors(decoder, coords, tokens, targets).sum()
    with pytest.raises(RuntimeError, match="locality_error: differentiable once"):
        torch.autograd.grad(error, tokens, create_graph=True)


def test_targets_are_checked_and_empty_batches_work() -> None:
    decoder, coords = decoder_of(), ginr_fast.grid(4, 5)
    tokens = torch.randn(2, 6, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"targets: expected shape \(2, 4, 5, 3\)"):
        decoding_errors(decoder, coords, tokens, torch.rand(2, 20, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match="targets: expected dtype float64"):
        decoding_errors(decoder, coords, tokens, torch.rand(2, 4, 5, 3))
    nothing = torch.zeros(0, 4, 5, 3, dtype=torch.float64)
    assert decoding_errors(decoder, coords, tokens[:0], nothing).shape == (0,)


@pytest.mark.parametrize("where", ["a grid", "shared points", "points of each instance"])
@pytest.mark.parametrize("limit", [1 << 29, 0])
def test_kept_features_change_nothing_and_are_computed_once(
    where: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, coords = decoder_of(), COORDS[where]
    if isinstance(coords, torch.Tensor):
        coords = coords.double()
    computed = []
    of_block = module.Call.queries
    monkeypatch.setattr(
        module.Call, "queries", lambda call, q: computed.append(1) or of_block(call, q)
    )
    kept = KeptFeatures(limit)
    with torch.no_grad():
        targets = decoder(coords, torch.randn(3, 6, 12, dtype=torch.float64))
    for step in range(3):
        tokens = torch.randn(3, 6, 12, dtype=torch.float64, requires_grad=True)
        expected = decoding_errors(decoder, coords, tokens, targets)
        (wanted,) = torch.autograd.grad(expected.sum(), tokens)
        computed.clear()
        found = decoding_errors(decoder, coords, tokens, targets, kept)
        (grad,) = torch.autograd.grad(found.sum(), tokens)
        assert torch.equal(found, expected) and torch.equal(grad, wanted)
        keeps = limit > 0 and where != "points of each instance"
        assert bool(computed) == (step == 0 or not keeps)


def test_features_are_not_kept_for_other_coordinates() -> None:
    decoder, kept = decoder_of(), KeptFeatures()
    tokens = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 4, 5, 3, dtype=torch.float64)
    decoding_errors(decoder, ginr_fast.grid(4, 5), tokens, targets, kept)
    with pytest.raises(ValueError, match="coords: expected those of the calls before"):
        decoding_errors(decoder, ginr_fast.grid(4, 5), tokens, targets, kept)


@pytest.mark.parametrize("name", ["query_feature", "query_projection", "band_features.1"])
def test_features_are_not_kept_for_other_weights(name: str) -> None:
    decoder, kept, coords = decoder_of(), KeptFeatures(), ginr_fast.grid(4, 5)
    tokens = torch.randn(2, 6, 12, dtype=torch.float64)
    targets = torch.rand(2, 4, 5, 3, dtype=torch.float64)

    def errors(kept: KeptFeatures | None) -> torch.Tensor:
        tokens_, targets_ = (part.to(decoder.outputs[0].weight) for part in (tokens, targets))
        return decoding_errors(decoder, coords, tokens_, targets_, kept)

    errors(kept)
    decoder.outputs[0].weight.data.mul_(2)  # of which no feature is made
    assert torch.equal(errors(kept), errors(None))
    before = decoder.get_submodule(name).weight.clone()
    decoder.get_submodule(name).weight.data.mul_(1.001)
    with pytest.raises(ValueError, match="weights: expected those of the calls before"):
        errors(kept)
    decoder.get_submodule(name).weight.data.copy_(before)
    assert torch.equal(errors(kept), errors(None))
    decoder.float()
    with pytest.raises(ValueError, match="weights: expected those of the calls before"):
        errors(kept)


def test_features_are_kept_for_any_number_of_instances() -> None:
    # With few instances the query projection is folded into the keys, with many it is not.
    decoder, kept, coords = decoder_of(), KeptFeatures(), ginr_fast.grid(4, 5)
    for batch in (1, 64, 1):
        tokens = torch.randn(batch, 6, 12, dtype=torch.float64)
        targets = torch.rand(batch, 4, 5, 3, dtype=torch.float64)
        for _ in range(2):
            found = decoding_errors(decoder, coords, tokens, targets, kept)
            torch.testing.assert_close(found, decoding_errors(decoder, coords, tokens, targets))
    decoder.query_feature.weight.data[0, 0] = math.nan
    kept = KeptFeatures()
    for _ in range(2):
        assert decoding_errors(decoder, coords, tokens, targets, kept).isnan().all()
