"""AnrDecoder: its variants against an own formula, and how it lives inside PyTorch."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from anr_cases import SMALL, keys_values_weights, make_decoder, own_formula, points_of
from locality_cases import make_coords, make_tokens, relative_error

import ginr_fast
from ginr_fast.ops.anr_decode import op

VARIANTS = [
    {},
    {"threshold": 0.0},
    {"threshold": 0.0, "activation": "mish", "depth": 1},
    {"threshold": 0.3, "activation": "mish"},
    {"depth": 1},
    {"depth": 2, "heads": 1, "head_dim": 20},
    {"depth": 8, "heads": 8, "head_dim": 3},
    {"frequencies": torch.tensor([6.0, 1.0, 2.0])},
    {"output_scale": 0.5, "output_bias": 0.5, "out_dim": 1},
    {"feature_dim": None, "hidden_dim": 25},
]


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_variants(arguments, backend):
    decoder = make_decoder(torch.float64, **{**SMALL, **arguments})
    tokens = make_tokens(2, 7, 11, torch.float64).requires_grad_()
    inputs = [tokens, *decoder.parameters()]
    points = make_coords("points", 2, 9, 2).double()
    for coords in (points, ginr_fast.grid(3, 4, dtype=torch.float64)):
        with ginr_fast.backend(backend):
            got = decoder(coords, tokens).reshape(2, -1, decoder.out_dim)
        want = own_formula(decoder, points_of(coords, 2), tokens)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        grads = torch.autograd.grad(got.square().sum(), inputs)
        expected = torch.autograd.grad(want.square().sum(), inputs)
        for grad, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, other, rtol=1e-8, atol=1e-10)


def test_published_sizes_are_the_defaults():
    decoder = ginr_fast.AnrDecoder()
    assert decoder.query_projection.weight.shape == (384, 512)
    assert decoder.key_projection.weight.shape == (384, 512)
    assert decoder.output_projection.weight.shape == (512, 384)
    assert [tuple(layer.weight.shape) for layer in decoder.layers] == [(512, 512)] * 4 + [(3, 512)]
    assert (decoder.heads, decoder.depth, decoder.threshold) == (6, 5, 0.0015)
    expected = [1024 ** (j / 127) for j in range(128)]
    torch.testing.assert_close(decoder.frequencies, torch.tensor(expected))
    assert ginr_fast.AnrDecoder(coord_dim=3).query_projection.in_features == 510


def test_a_published_checkpoint_loads():
    """to_q/to_k/to_v without bias, to_out with, mlp.{i}.0, the last layer bare; Mish; sines and
    cosines as here; the encoding padded with zeros to the width."""
    torch.manual_seed(3)
    width, token_dim, padded = 20, 11, 2
    theirs = torch.nn.ModuleDict(
        {
            "to_q": torch.nn.Linear(width, 12, bias=False),
            "to_k": torch.nn.Linear(token_dim, 12, bias=False),
            "to_v": torch.nn.Linear(token_dim, 12, bias=False),
            "to_out": torch.nn.Linear(12, width),
            "mlp": torch.nn.ModuleList(
                [
                    *(
                        torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Mish())
                        for _ in range(2)
                    ),
                    torch.nn.Linear(width, 3),
                ]
            ),
        }
    ).double()
    decoder = ginr_fast.AnrDecoder(
        token_dim=token_dim,
        hidden_dim=width,
        feature_dim=width - padded,
        heads=3,
        head_dim=4,
        depth=3,
        max_frequency=8,
        threshold=0.1,
        activation="mish",
        output_scale=0.5,
        output_bias=0.5,
    ).double()
    features = 2 * 2 * decoder.frequencies.shape[0]
    state = {
        "frequencies": decoder.frequencies,
        "query_projection.weight": theirs["to_q"].weight[:, :features],
        "key_projection.weight": theirs["to_k"].weight,
        "value_projection.weight": theirs["to_v"].weight,
        "output_projection.weight": theirs["to_out"].weight,
        "output_projection.bias": theirs["to_out"].bias,
    }
    for index, layer in enumerate(theirs["mlp"]):
        linear = layer[0] if isinstance(layer, torch.nn.Sequential) else layer
        state |= {f"layers.{index}.{n}": p for n, p in linear.named_parameters()}
    decoder.load_state_dict(state)

    tokens, coords = make_tokens(2, 7, 11, torch.float64), make_coords("points", 2, 9, 2).double()
    phase = (math.pi * coords[..., None] * decoder.frequencies).flatten(-2)
    gamma = torch.nn.functional.pad(
        torch.cat((phase.cos(), phase.sin()), -1), (0, width - features)
    )
    q, k, v = (
        theirs[name](x).unflatten(-1, (3, 4)).transpose(1, 2)
        for name, x in (("to_q", gamma), ("to_k", tokens), ("to_v", tokens))
    )
    p = (q @ k.mT / 2).softmax(-1)
    p = (p - 0.1).clamp_min(0)
    attended = (p / p.sum(-1, keepdim=True)) @ v
    assert attended.isfinite().all()
    x = theirs["to_out"](attended.transpose(1, 2).flatten(2))
    for layer in theirs["mlp"]:
        x = layer(x)
    torch.testing.assert_close(decoder(coords, tokens), 0.5 * x + 0.5)


# --- torch.library, torch.compile ---


def captured_arguments(decoder, coords, tokens, monkeypatch):
    """What the module hands to the custom op."""
    seen = []
    forward = op._forward_op
    with monkeypatch.context() as patch:
        patch.setattr(op, "_forward_op", lambda *a: seen.append(a) or forward(*a))
        decoder(coords, tokens)
    return tuple(
        a.detach().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) else a
        for a in seen[0]
    )


@pytest.mark.parametrize("kind", ["points", "grid"])
@pytest.mark.parametrize(("depth", "activation"), [(1, "relu"), (3, "mish")])
def test_opcheck(kind, depth, activation, monkeypatch):
    decoder = make_decoder(**{**SMALL, "depth": depth, "activation": activation})
    coords, tokens = make_coords(kind, 2, 6, 2), make_tokens(2, 4, 11).requires_grad_()
    if kind == "points":
        coords.requires_grad_()
    arguments = captured_arguments(decoder, coords, tokens, monkeypatch)
    torch.library.opcheck(torch.ops.ginr_fast.anr_decode.default, arguments)

    grad = torch.randn(2, 6, 3)
    needed = ["keys", "values", "query_weight", "output_bias"]
    plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(torch.ops.ginr_fast.anr_decode_backward.default, (grad, *plain, needed))


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
    assert len(graphs) == 1 and "ginr_fast.anr_decode" in graphs[0]
    with ginr_fast.backend("reference"):
        compiled(coords, tokens)
    assert len(graphs) == 2 and "ginr_fast.anr_decode" not in graphs[1]


def test_compiled_with_sizes_that_change():
    torch.compiler.reset()
    decoder = make_decoder(**SMALL)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    for batch, count, tokens in ((2, 9, 7), (3, 12, 8), (4, 17, 9), (5, 23, 10)):
        for kind in ("points", "grid"):
            given = make_coords(kind, batch, count, 2), make_tokens(batch, tokens, 11)
            torch.testing.assert_close(compiled(*given), decoder(*given), rtol=1e-4, atol=1e-5)


def test_compiled_with_a_threshold_that_changes():
    torch.compiler.reset()
    decoder = make_decoder(**SMALL)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    given = make_coords("grid", 2, 9, 2), make_tokens(2, 7, 11)
    found = []
    for decoder.threshold in (0.0, 0.05, 0.1, 0.2):
        found.append(compiled(*given))
        torch.testing.assert_close(found[-1], decoder(*given), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[1], found[2])


def test_compiled_by_inductor():
    torch.compiler.reset()
    decoder = make_decoder(**SMALL)
    compiled_and_eager(
        decoder, make_coords("grid", 2, 9, 2), make_tokens(2, 7, 11), "inductor", "blocked"
    )


def test_gradients_are_contiguous_like_their_fakes():
    decoder = make_decoder(**SMALL)
    keys, values, weights = keys_values_weights(decoder, make_tokens(2, 7, 11))
    weights = weights._replace(
        query_weight=weights.query_weight.detach().mT.contiguous().mT.requires_grad_()
    )
    assert not weights.query_weight.is_contiguous()
    out = op.anr_decode(make_coords("points", 2, 9, 2), keys, values, weights)
    (grad,) = torch.autograd.grad(out.sum(), weights.query_weight)
    assert grad.shape == weights.query_weight.shape and grad.is_contiguous()


# --- precision ---


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("kind", ["points", "grid"])
def test_autocast(kind, backend):
    decoder = make_decoder(token_dim=32, hidden_dim=64, heads=2, head_dim=16, activation="mish")
    coords, tokens = make_coords(kind, 2, 100, 2), make_tokens(2, 30, 32).requires_grad_()
    points = points_of(coords, 2)
    with ginr_fast.backend(backend), torch.autocast("cpu", torch.bfloat16):
        out = decoder(coords, tokens)
    assert out.dtype == torch.bfloat16
    want = own_formula(decoder, points, tokens).view_as(out)
    assert relative_error(out, want) <= 1.5e-2
    inputs = {"tokens": tokens, **dict(decoder.named_parameters())}
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(5))
    grads = torch.autograd.grad(out.float(), list(inputs.values()), weights)
    expected = torch.autograd.grad(want, list(inputs.values()), weights)
    for name, grad, other in zip(inputs, grads, expected, strict=True):
        assert grad.dtype == torch.float32
        assert relative_error(grad, other) <= 7.5e-2, name


def test_autocast_leaves_float64_alone():
    decoder = make_decoder(torch.float64, **SMALL)
    coords, tokens = make_coords("points", 2, 9, 2), make_tokens(2, 7, 11, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            decoder(coords, tokens), own_formula(decoder, coords.double(), tokens)
        )


@pytest.mark.parametrize("convert", ["bfloat16", "half"])
def test_half_precision_keeps_the_frequencies(convert):
    decoder = make_decoder(**SMALL)
    before = decoder.frequencies.clone()
    getattr(decoder, convert)()
    assert decoder.layers[0].weight.dtype in (torch.bfloat16, torch.float16)
    assert decoder.frequencies.dtype == torch.float32
    assert torch.equal(decoder.frequencies, before)
    assert torch.equal(decoder.float().frequencies, before)
    assert decoder.double().frequencies.dtype == torch.float64


# --- copies, streaming, training ---


def through_pickle(decoder):
    buffer = io.BytesIO()
    torch.save(decoder, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_state_dict(decoder):
    torch.manual_seed(9)
    other = ginr_fast.AnrDecoder(**{**SMALL, "max_frequency": 3})
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
        other.query_projection.weight.add_(1)
    assert torch.equal(decoder(coords, tokens), want)


def test_repr_names_threshold_and_backend():
    decoder = make_decoder(**SMALL)
    assert "heads=3, threshold=0.1, activation=relu, backend=auto" in repr(decoder)
    with ginr_fast.backend("reference"):
        assert "backend=reference" in repr(decoder)


def test_streaming(tmp_path):
    decoder, tokens, grid = make_decoder(**SMALL), make_tokens(1, 7, 11), ginr_fast.grid(23, 17)
    want = decoder(grid, tokens)[0].detach()
    path = ginr_fast.decode_to_file(decoder, grid, tokens, tmp_path / "v.npy", max_points=60)
    np.testing.assert_allclose(np.load(path), want.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "mish"])
def test_training_follows_the_formula(activation):
    """Twenty steps of Adam through the fast backend and the formula give the same losses."""
    losses = {}
    for backend in ("blocked", "reference"):
        decoder = make_decoder(**{**SMALL, "activation": activation, "threshold": 0.05})
        tokens = torch.nn.Parameter(make_tokens(2, 7, 11))
        grid = ginr_fast.grid(6, 6)
        target = torch.stack((grid.tensor().prod(-1), -grid.tensor().sum(-1)))[..., None]
        optimiser = torch.optim.Adam([tokens, *decoder.parameters()], lr=5e-3)
        with ginr_fast.backend(backend):
            for _ in range(20):
                optimiser.zero_grad()
                loss = (decoder(grid, tokens) - target).square().mean()
                loss.backward()
                optimiser.step()
                losses.setdefault(backend, []).append(loss.item())
    assert losses["blocked"][-1] < 0.5 * losses["blocked"][0]
    assert losses["blocked"] == pytest.approx(losses["reference"], rel=2e-3)
