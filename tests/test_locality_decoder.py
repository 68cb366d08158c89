"""LocalityAwareDecoder: its variants against own formulas, and how it lives inside PyTorch."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from locality_cases import (
    SMALL,
    make_coords,
    make_decoder,
    make_tokens,
    modulated,
    own_formula,
    relative_error,
)
from torch import nn

import ginr_fast
from ginr_fast.ops.locality_decode import op, plan

VARIANTS = [
    {},
    {"attention_bias": False},
    {"share_key_value": True},
    {"query_linear": True},
    {"output_projection": False},
    {"modulation_relu": False},
    {"lowest_frequency": math.e},
    {"lowest_frequency": 10.0, "bandwidths": (128, 32)},
    {"query_linear": True, "attention_bias": False, "heads": 3, "head_dim": 5},
    {"output_projection": False, "heads": 2, "head_dim": 13, "share_key_value": True},
    {
        "frequencies": [torch.tensor([1.0, 2.5, 7.0]), torch.tensor([0.5, 3.0, 4.0])],
        "query_frequencies": torch.tensor([6.0, 1.0, 2.0, 9.0]),
        "bandwidths": (5,),
    },
]


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
@pytest.mark.parametrize("fold", [None, False, True], ids=["chosen", "unfolded", "folded"])
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_variants(arguments, fold, backend, monkeypatch):
    if fold is not None:
        monkeypatch.setattr(plan, "choose_foldings", lambda sizes: plan.Foldings(fold, fold))
    decoder = make_decoder(torch.float64, **{**SMALL, **arguments})
    tokens = make_tokens(2, 7, 11, torch.float64).requires_grad_()
    points = make_coords("points", 2, 9, 2).double()
    grid = ginr_fast.grid(3, 4, dtype=torch.float64)
    inputs = [tokens, *decoder.parameters()]
    for coords, plain in ((points, points), (grid, grid.tensor().view(1, 12, 2).expand(2, -1, -1))):
        with ginr_fast.backend(backend):
            got = decoder(coords, tokens).reshape(2, -1, 3)
        want = own_formula(decoder, plain, tokens)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        grads = torch.autograd.grad(got.square().sum(), inputs)
        expected = torch.autograd.grad(want.square().sum(), inputs)
        for grad, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, other, rtol=1e-8, atol=1e-10)


def test_frequencies_of_the_variants():
    published = make_decoder(**{**SMALL, "feature_dim": 24})
    expected = [[s ** (j / 5) for j in range(6)] for s in (9, 5)]
    torch.testing.assert_close(published.band_frequencies, torch.tensor(expected))
    other = make_decoder(**{**SMALL, "feature_dim": 24, "lowest_frequency": math.e})
    assert other.band_frequencies[0, 0].item() == pytest.approx(math.e)
    assert other.band_frequencies[0, -1].item() == pytest.approx(9)
    rays = make_decoder(coord_dim=6, feature_dim=256)
    assert rays.query_feature.in_features == 252


def test_attention_of_torch_loads():
    attention = nn.MultiheadAttention(20, 4, batch_first=True, dtype=torch.float64)
    sizes = {**SMALL, "hidden_dim": 20, "token_dim": 20, "heads": 4}
    decoder = make_decoder(torch.float64, **sizes)
    projections = (decoder.query_projection, decoder.key_projection, decoder.value_projection)
    with torch.no_grad():
        attention.in_proj_bias.normal_()
        attention.out_proj.bias.normal_()
        for layer, weight, bias in zip(
            projections,
            attention.in_proj_weight.chunk(3),
            attention.in_proj_bias.chunk(3),
            strict=True,
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        decoder.output_projection.load_state_dict(attention.out_proj.state_dict())
    tokens, coords = torch.randn(2, 7, 20).double(), torch.rand(2, 9, 2).double()

    def features(frequencies):
        phase = (math.pi * coords[..., None] * frequencies).flatten(-2)
        return torch.cat((phase.cos(), phase.sin()), -1)

    q = F.relu(decoder.query_feature(features(decoder.query_frequencies)))
    m, _ = attention(q, tokens, tokens)
    want = modulated(decoder, [features(band) for band in decoder.band_frequencies], m)
    torch.testing.assert_close(decoder(coords, tokens), want)


# --- torch.library, torch.compile ---


def captured_arguments(decoder, coords, tokens, monkeypatch):
    """What the module hands to the custom op."""
    seen = []
    forward = op._forward_op
    with monkeypatch.context() as patch:
        patch.setattr(op, "_forward_op", lambda *a: seen.append(a) or forward(*a))
        decoder(coords, tokens)
    detached = [
        a.detach().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) else a
        for a in seen[0]
    ]
    return tuple(detached)


@pytest.mark.parametrize("kind", ["points", "grid"])
@pytest.mark.parametrize("fold", [False, True])
def test_opcheck(kind, fold, monkeypatch):
    monkeypatch.setattr(plan, "choose_foldings", lambda sizes: plan.Foldings(fold, fold))
    decoder = make_decoder(**SMALL)
    coords, tokens = make_coords(kind, 2, 6, 2), make_tokens(2, 4, 11).requires_grad_()
    if kind == "points":
        coords.requires_grad_()
    arguments = captured_arguments(decoder, coords, tokens, monkeypatch)
    torch.library.opcheck(torch.ops.ginr_fast.locality_decode.default, arguments)

    grad = torch.randn(2, 6 if kind == "points" else 6, 3)
    needed = ["keys", "values", "band_weight", "output_bias"]
    plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(
        torch.ops.ginr_fast.locality_decode_backward.default, (grad, *plain, needed)
    )


def compiled_and_eager(decoder, coords, tokens, compiler, backend):
    results = []
    for function in (torch.compile(decoder, fullgraph=True, backend=compiler), decoder):
        tokens = tokens.detach().requires_grad_()
        with ginr_fast.backend(backend):
            out = function(coords, tokens)
        inputs = [tokens, *decoder.parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("kind", ["points", "one set", "grid"])
def test_compiled(kind, backend):
    torch.compiler.reset()
    coords = make_coords(kind, 2, 9, 2)
    compiled_and_eager(make_decoder(**SMALL), coords, make_tokens(2, 7, 11), "aot_eager", backend)


def test_a_compiled_module_follows_the_forced_backend():
    torch.compiler.reset()
    graphs = []

    def compiler(graph, inputs):
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(make_decoder(**SMALL), fullgraph=True, backend=compiler)
    coords, tokens = make_coords("grid", 2, 9, 2), make_tokens(2, 7, 11)
    compiled(coords, tokens)
    assert len(graphs) == 1 and "ginr_fast.locality_decode" in graphs[0]
    with ginr_fast.backend("reference"):
        compiled(coords, tokens)
    assert len(graphs) == 2 and "ginr_fast.locality_decode" not in graphs[1]


def test_compiled_with_sizes_that_change():
    torch.compiler.reset()
    decoder = make_decoder(**SMALL)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    for batch, count, tokens in ((2, 9, 7), (3, 12, 8), (4, 17, 9), (5, 23, 10)):
        for kind in ("points", "grid"):
            given = make_coords(kind, batch, count, 2), make_tokens(batch, tokens, 11)
            torch.testing.assert_close(compiled(*given), decoder(*given), rtol=1e-4, atol=1e-5)


def test_compiled_by_inductor():
    torch.compiler.reset()
    decoder = make_decoder(**SMALL)
    compiled_and_eager(
        decoder, make_coords("grid", 2, 9, 2), make_tokens(2, 7, 11), "inductor", "blocked"
    )


def test_gradients_are_contiguous_like_their_fakes():
    decoder = make_decoder(**SMALL)
    keys, values = decoder.keys_and_values(make_tokens(2, 7, 11))
    weights = decoder.weights()
    weights = weights._replace(
        query_weight=weights.query_weight.detach().mT.contiguous().mT.requires_grad_()
    )
    assert not weights.query_weight.is_contiguous()
    coords = make_coords("points", 2, 9, 2)

    out = op.locality_decode(coords, keys.detach(), values.detach(), weights)
    (grad,) = torch.autograd.grad(out.sum(), weights.query_weight)
    assert grad.shape == weights.query_weight.shape and grad.is_contiguous()


# --- precision ---


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("kind", ["points", "grid"])
def test_autocast(kind, backend):
    decoder = make_decoder(token_dim=32, hidden_dim=64, feature_dim=64)
    coords, tokens = make_coords(kind, 2, 100, 2), make_tokens(2, 30, 32).requires_grad_()
    points = coords if kind == "points" else coords.tensor().view(1, -1, 2).expand(2, -1, -1)
    with ginr_fast.backend(backend), torch.autocast("cpu", torch.bfloat16):
        out = decoder(coords, tokens)
        eager = own_formula(decoder, points, tokens).view_as(out)
    assert out.dtype == torch.bfloat16
    want = own_formula(decoder, points, tokens).view_as(out)
    assert relative_error(out, want) <= 1.5e-2
    inputs = {"tokens": tokens, **dict(decoder.named_parameters())}
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(5))
    grads = torch.autograd.grad(out.float(), list(inputs.values()), weights)
    eager_grads = torch.autograd.grad(eager.float(), list(inputs.values()), weights)
    expected = torch.autograd.grad(want, list(inputs.values()), weights)
    scale = max(grad.norm() for grad in expected)
    for name, grad, plain, other in zip(inputs, grads, eager_grads, expected, strict=True):
        assert grad.dtype == torch.float32
        if other.norm() < 1e-5 * scale:  # the key bias: zero in theory
            assert grad.norm() <= 7.5e-2 * scale, name
        else:
            # ReLUs that flip dominate, in PyTorch's own layers just as here.
            limit = max(7.5e-2, 1.5 * relative_error(plain, other))
            assert relative_error(grad, other) <= limit, name


def test_autocast_leaves_float64_alone():
    decoder = make_decoder(torch.float64, **SMALL)
    coords, tokens = make_coords("points", 2, 9, 2), make_tokens(2, 7, 11, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            decoder(coords, tokens), own_formula(decoder, coords.double(), tokens)
        )


@pytest.mark.parametrize("convert", ["bfloat16", "half"])
def test_half_precision_keeps_the_frequencies(convert):
    decoder = make_decoder()
    before = decoder.band_frequencies.clone()
    getattr(decoder, convert)()
    assert decoder.band_features[0].weight.dtype in (torch.bfloat16, torch.float16)
    assert decoder.query_frequencies.dtype == decoder.band_frequencies.dtype == torch.float32
    assert torch.equal(decoder.band_frequencies, before)
    assert torch.equal(decoder.float().band_frequencies, before)
    assert decoder.double().band_frequencies.dtype == torch.float64


# --- copies ---


def through_pickle(decoder):
    buffer = io.BytesIO()
    torch.save(decoder, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_state_dict(decoder):
    torch.manual_seed(9)
    other = ginr_fast.LocalityAwareDecoder(**{**SMALL, "bandwidths": (3, 2)})
    other.load_state_dict(decoder.state_dict())
    return other


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_state_dict])
def test_copies(copied):
    decoder = make_decoder(**SMALL)
    other = copied(decoder)
    coords, tokens = make_coords("grid", 2, 9, 2), make_tokens(2, 7, 11)
    want = decoder(coords, tokens)
    assert torch.equal(other(coords, tokens), want)
    with torch.no_grad():
        other.query_feature.weight.add_(1)
    assert torch.equal(decoder(coords, tokens), want)


def test_repr_names_the_backend():
    decoder = make_decoder(**SMALL)
    assert "levels=2, heads=2, backend=auto" in repr(decoder)
    with ginr_fast.backend("reference"):
        assert "backend=reference" in repr(decoder)
