"""accelerate() on locality-aware decoders as other people write them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from adapter_decoders import (
    LAINRDecoder,
    LowRankLinear,
    MultiheadAttention,
    SeparateAttention,
    WrappedLinear,
    apart,
    derivatives,
)
from torch import nn

from ginr_fast.adapters import accelerate, restore
from ginr_fast.adapters.la_ginr import locality_adapter
from ginr_fast.adapters.la_ginr_layout import LocalityLayout


class OwnCoordinates(LAINRDecoder):
    """Every instance at coordinates of its own; cosines first."""

    def coordinates(self, x):
        return x

    def calc_gamma(self, x, omegas):
        phase = math.pi * x.unsqueeze(-1) * omegas
        return torch.stack((phase.cos(), phase.sin()), dim=-3).flatten(-3)


class FrequenciesOutside(LAINRDecoder):
    """Features by frequency, then coordinate, then sine or cosine, of 2π."""

    def calc_gamma(self, x, omegas):
        phase = 2 * math.pi * (omegas.unsqueeze(-1) * x.unsqueeze(-2))
        return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-3)


class WithoutRelu(OwnCoordinates):
    def modulated(self, feature, modulation):
        return feature + modulation


CODE = [
    (LAINRDecoder, {}),
    (LAINRDecoder, {"attention": SeparateAttention, "lowest": 1.0, "heads": 3, "dim_head": 4}),
    (LAINRDecoder, {"attention": MultiheadAttention, "lowest": math.e}),
    (OwnCoordinates, {"sigma_ls": (32, 20, 12), "input_dim": 3}),
    (FrequenciesOutside, {"sigma_ls": (20,)}),
    (WithoutRelu, {"dim_head": 64}),
]


def make(kind=LAINRDecoder, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    return kind(**arguments).to(dtype)


def inputs_of(model, *shape, batch=2):
    torch.manual_seed(1)
    weight = model.query_lin.weight
    coord_dim = model.query_lin.in_features // (2 * len(model.omegas))
    coords = 2 * torch.rand(batch, *shape, coord_dim, dtype=torch.float64) - 1
    return coords.to(weight.dtype), torch.randn(batch, 5, 11, dtype=weight.dtype)


def everything(model, coords, tokens):
    coords, tokens = coords.clone().requires_grad_(), tokens.clone().requires_grad_()
    return derivatives(lambda: model(coords, tokens), [*model.parameters(), tokens, coords])


@pytest.mark.parametrize(("kind", "arguments"), CODE)
def test_values_and_both_derivatives(kind, arguments):
    model = make(kind, **arguments)
    fast = copy.deepcopy(model)
    report = accelerate(fast)
    assert f"{model.layer_num} bands" in str(report) and not report.left
    given = inputs_of(model, 3, 4)
    want = everything(model, *given)
    assert max(apart(everything(fast, *given), want)) < 1e-10

    given = tuple(part.float() for part in given)
    errors, published = (apart(everything(m.float(), *given), want) for m in (fast, model))
    assert errors[0] <= max(2e-5, 2 * published[0])
    for error, own in zip(errors[1:], published[1:], strict=True):
        assert error <= max(1e-4, 3 * own)


def test_coarse_products_do_not_hide_the_variant():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert accelerate(make(dtype=torch.float32)).replaced
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


class Attend(nn.Module):
    """Multi-head attention with the width of a head free, and no output projection."""

    def __init__(self, dim, context_dim):
        super().__init__()
        self.n_heads = 2
        self.to_q, self.to_k = nn.Linear(dim, 12), nn.Linear(context_dim, 12)
        self.to_v = nn.Linear(context_dim, 12)

    def forward(self, x, z):
        q, k, v = (
            layer(part).unflatten(-1, (2, 6)).transpose(1, 2)
            for layer, part in ((self.to_q, x), (self.to_k, z), (self.to_v, z))
        )
        return ((q @ k.mT / 6**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Mine(nn.Module):
    """A decoder of one's own: other names, an extra linear map, no frequencies kept."""

    sigmas = (24.0, 10.0)

    def __init__(self):
        super().__init__()
        self.embed, self.extra = nn.Linear(16, 10), nn.Linear(10, 10)
        self.cross = nn.ModuleDict({"attend": Attend(10, 7)})
        self.bands = nn.Sequential(nn.Linear(16, 10), nn.Linear(16, 10))
        self.mods = nn.ModuleList(nn.Linear(12, 10, bias=False) for _ in range(2))
        self.mlp, self.to_rgb = (
            nn.ModuleList([nn.Linear(10, 10)]),
            nn.ModuleList(nn.Linear(10, 3) for _ in range(2)),
        )

    def forward(self, points, latents):
        def gamma(sigma):
            phase = math.pi * points.unsqueeze(-1) * torch.linspace(1, sigma, 4).to(points)
            return torch.stack((phase.cos(), phase.sin()), -1).flatten(-3)

        m = self.cross["attend"](self.extra(F.relu(self.embed(gamma(8.0)))), latents)
        first, second = (
            F.relu(F.relu(band(gamma(sigma))) + mod(m))
            for band, mod, sigma in zip(self.bands, self.mods, self.sigmas, strict=True)
        )
        h = F.relu(self.mlp[0](second + first))
        return self.to_rgb[0](first) + self.to_rgb[1](h)


MINE = LocalityLayout(
    "mine",
    query_feature="embed",
    query_linear="extra",
    attention="cross.attend",
    band_features="bands",
    modulations="mods",
    hidden="mlp",
    outputs="to_rgb",
    query_frequencies=lambda module: torch.linspace(1, 8.0, 4),
    band_frequencies=lambda module: [torch.linspace(1, sigma, 4) for sigma in module.sigmas],
)


def test_a_layout_of_ones_own():
    torch.manual_seed(0)
    model = nn.Sequential(Mine().double())
    assert str(accelerate(model)) == "nothing in the model was recognised"
    fast = copy.deepcopy(model)
    report = accelerate(fast, adapters=[locality_adapter(MINE)], verify=True)
    assert report.replaced[0][:2] == ("0", "Mine") and report.verified[0].gradients < 1e-3
    coords = torch.rand(2, 9, 2, dtype=torch.float64)
    tokens = torch.randn(2, 5, 7, dtype=torch.float64)
    assert (
        max(apart(everything(fast[0], coords, tokens), everything(model[0], coords, tokens)))
        < 1e-10
    )
    by_name = fast[0](latents=tokens, points=coords)
    torch.testing.assert_close(by_name, model[0](coords, tokens))


def test_zeros_do_not_hide_the_variant():
    """With its modulations at zero a decoder computes the same in two variants."""
    model = make(WithoutRelu)
    for layer in model.modulation_lins:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    fast = copy.deepcopy(model)
    accelerate(fast)
    for net in (model, fast):
        for layer in net.modulation_lins:
            nn.init.constant_(layer.bias, -1.0)
    given = inputs_of(model, 9)
    torch.testing.assert_close(fast(*given), model(*given))


def test_what_the_fast_form_does_not_serve_runs_the_own_code(monkeypatch):
    model = make()
    accelerate(model)
    coords, tokens = inputs_of(model, 9)
    monkeypatch.setattr(LAINRDecoder, "query", lambda *a: 1 / 0)
    model(coords, tokens=tokens)  # the fast form
    for given in ((coords.float(), tokens), (coords, tokens[:1]), (coords[..., :1], tokens)):
        with pytest.raises(ZeroDivisionError):
            model(*given)


@pytest.mark.parametrize("kind", [LowRankLinear, WrappedLinear])
@pytest.mark.parametrize("name", ["query_lin", "hv_lins.0", "modulation_ca.to_q"])
def test_what_was_changed_runs_the_own_code(name, kind):
    model = make(dtype=torch.float32)
    given = inputs_of(model, 9)
    before = model(*given)
    accelerate(model)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, kind(model.get_submodule(name)))
    got = model(*given)
    restore(model)
    want = model(*given)
    assert torch.equal(got, want) and apart([want], [before])[0] > 1e-3
    assert accelerate(model).left


def test_options_of_the_attention_changed_afterwards():
    model = make(dtype=torch.float32)
    given = inputs_of(model, 9)
    accelerate(model)
    model.modulation_ca.heads = 3
    got = model(*given)
    restore(model)
    assert torch.equal(got, model(*given))
    model = make(attention=MultiheadAttention, dtype=torch.float32)
    accelerate(model)
    model.modulation_ca.dropout = 0.5
    assert not torch.equal(model(*given), model(*given))
    model.eval()
    assert torch.equal(model(*given), model(*given))


def test_it_stays_the_module_it_is():
    model = make(dtype=torch.float32)
    given = inputs_of(model, 9)
    want = model(*given)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    accelerate(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(*given), want, rtol=1e-4, atol=1e-5)
    assert restore(model) == [""]
    assert torch.equal(model(*given), want)


def test_compiled():
    torch.compiler.reset()
    model = make(dtype=torch.float32)
    given = inputs_of(model, 9)
    want = model(*given)
    accelerate(model)
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(*given)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Gated(LAINRDecoder):
    """The same parts, another formula."""

    def modulated(self, feature, modulation):
        return F.relu(feature * modulation)


def test_what_is_left_alone_and_why():
    def left(model):
        report = accelerate(model)
        assert not report.replaced
        return report.left[0].why

    assert "computes no variant of LA-GINR's decoder" in left(make(Gated))
    model = make()
    model.bandwidth_lins[0] = nn.Sequential(nn.Linear(24, 18), nn.ReLU(), nn.Linear(18, 18))
    assert "other layers than linear ones" in left(model)
    model = make()
    model.omegas = nn.Parameter(model.omegas)
    assert left(model) == "its frequencies are learned"
    model = make()
    model.modulation_ca = nn.MultiheadAttention(18, 2, add_zero_attn=True)
    assert "modulation_ca" in left(model)
    model = make()
    model.hv_lins = nn.Identity()
    assert left(model) == "its hv_lins is not a list of layers"
    del model.hv_lins
    assert not accelerate(model).left
