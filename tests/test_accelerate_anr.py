"""accelerate() on ANR's ANR."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from adapter_decoders import ANR, LowRankLinear, Mish, WrappedLinear, apart, derivatives
from torch import nn

from ginr_fast.adapters import accelerate, restore

VARIANTS = [
    {},
    {"att_threshold": 0.12},
    {"activation": "mish", "depth": 1},
    {"activation": "mish", "depth": 2, "att_threshold": 0.0},
    {"hidden_dim": 17, "att_threshold": 0.1},  # an encoding of 16, one zero
    {"in_dim": 3, "hidden_dim": 20, "out_dim": 1},  # of 18, two zeros
    {"out_scale": 0.5, "out_bias": 0.25},
    {"out_scale": 0.5, "out_bias": 0.5, "rescale": True},
]


@pytest.fixture
def double():
    """ANR makes its frequencies in the default dtype, so its parameters can have no other."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(**arguments):
    torch.manual_seed(0)
    model = ANR(**arguments)
    with torch.no_grad():
        model.attn.to_q.weight *= 6  # else the attention is nearly uniform
    return model


def inputs_of(model, *shape, batch=2, seed=1):
    torch.manual_seed(seed)
    dtype = model.attn.to_q.weight.dtype
    coords = 2 * torch.rand(batch, *shape, model.in_dim, dtype=torch.float64) - 1
    tokens = torch.randn(batch, 7, model.attn.to_k.in_features, dtype=torch.float64)
    return coords.to(dtype), tokens.to(dtype)


def everything(model, coords, tokens):
    coords, tokens = coords.clone().requires_grad_(), tokens.clone().requires_grad_()
    model.set_params({"dtoken": tokens})
    return derivatives(lambda: model(coords), [*model.parameters(), tokens, coords])


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_values_and_both_derivatives(arguments, double):
    model = make(**arguments)
    fast = copy.deepcopy(model)
    report = accelerate(fast)
    assert "anr_decode: 3 heads" in str(report) and not report.left
    given = inputs_of(model, 3, 4)
    want = everything(model, *given)
    assert max(apart(everything(fast, *given), want)) < 1e-10

    torch.set_default_dtype(torch.float32)
    given = tuple(part.float() for part in given)
    errors, published = (apart(everything(m.float(), *given), want) for m in (fast, model))
    assert errors[0] <= max(2e-5, 2 * published[0])
    for error, own in zip(errors[1:], published[1:], strict=True):
        assert error <= max(1e-4, 3 * own)


def test_grids_and_points_of_any_shape():
    model = make(att_threshold=0.1)
    fast = copy.deepcopy(model)
    accelerate(fast)
    for shape in ((5,), (3, 4), (2, 3, 4)):
        coords, tokens = inputs_of(model, *shape)
        for given in (coords, coords[:1].expand_as(coords)):
            model.set_params({"dtoken": tokens})
            fast.set_params({"dtoken": tokens})
            torch.testing.assert_close(fast(given), model(given), rtol=1e-4, atol=1e-5)
            assert fast(given, scale=2).shape == given.shape[:-1] + (3,)


def test_what_the_fast_form_does_not_serve_runs_the_own_code(monkeypatch):
    model = make()
    accelerate(model)
    coords, tokens = inputs_of(model, 5)
    monkeypatch.setattr(ANR, "convert_posenc", lambda *a: 1 / 0)
    model.set_params({"dtoken": tokens})
    model(coords)  # the fast form
    for params, given in (
        (tokens[:1], coords),
        (tokens.double(), coords),
        (tokens, coords.double()),
        (tokens, coords[0]),
    ):
        model.set_params({"dtoken": params})
        with pytest.raises(ZeroDivisionError):
            model(given)


def patched(layer):
    layer.forward = lambda x: -nn.Linear.forward(layer, x)
    return layer


CHANGES = {
    "activation": lambda model: setattr(model.mlp[0], "1", Mish()),
    "bandwidth": lambda model: setattr(model, "pe_sigma", 4),
    "a subclass": lambda model: setattr(model.attn, "to_q", LowRankLinear(model.attn.to_q)),
    "wrapped": lambda model: setattr(model.mlp[0], "0", WrappedLinear(model.mlp[0][0])),
    "output, a subclass": lambda m: setattr(m.attn, "to_out", LowRankLinear(m.attn.to_out)),
    "patched": lambda model: patched(model.mlp[0][0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_runs_the_own_code(change):
    """Before it, so that it is left alone, and afterwards."""
    model = make()
    coords, tokens = inputs_of(model, 5)
    model.set_params({"dtoken": tokens})
    before = model(coords)
    accelerate(model)
    CHANGES[change](model)
    got = model(coords)
    restore(model)
    want = model(coords)
    assert torch.equal(got, want) and apart([want], [before])[0] > 1e-3
    if change not in ("activation", "bandwidth"):
        assert "linear" in accelerate(model).left[0].why


def test_quantised_afterwards():
    model = make().eval()
    coords, tokens = inputs_of(model, 5)
    model.set_params({"dtoken": tokens})
    accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eight_bits = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert apart([eight_bits(coords)], [model(coords)])[0] < 0.1


def test_no_parameters_is_the_own_error():
    model = make()
    accelerate(model)
    with pytest.raises(AssertionError):
        model(torch.rand(1, 5, 2))


def test_autocast():
    model = make(att_threshold=0.05, pe_sigma=4)
    coords, tokens = inputs_of(model, 40)
    model.set_params({"dtoken": tokens})
    want = model(coords)
    accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(coords)
    assert got.dtype == torch.bfloat16 and apart([got], [want])[0] < 1.5e-2


def test_it_stays_the_module_it_is():
    model = make(att_threshold=0.05)
    coords, tokens = inputs_of(model, 6)
    model.set_params({"dtoken": tokens})
    state = {name: value.clone() for name, value in model.state_dict().items()}
    want = model(coords)
    report = accelerate(model, verify=True)
    assert report.verified[0].values < 1e-4 and report.verified[0].gradients < 1e-3
    assert model.params["dtoken"] is tokens
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(coords), want, rtol=1e-4, atol=1e-5)
    assert restore(model) == [""]
    assert torch.equal(model(coords), want)


def test_compiled():
    torch.compiler.reset()
    model = make(att_threshold=0.05)
    coords, tokens = inputs_of(model, 3, 4)
    model.set_params({"dtoken": tokens})
    want = model(coords)
    accelerate(model)
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(coords)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Encoded(ANR):
    def convert_posenc(self, x):
        return super().convert_posenc(x)


class Scaled(ANR):
    def forward(self, x, **kwargs):
        return 2 * super().forward(x, **kwargs)


def test_what_is_left_alone_and_why(monkeypatch):
    def left(model):
        report = accelerate(model)
        assert not report.replaced
        return report.left[0].why

    assert left(Encoded()) == "Encoded overrides convert_posenc"
    assert left(Scaled()) == "Scaled overrides forward"
    assert "does not encode" in left(make(use_pe=False))
    model = make()
    model.mlp[0][1] = nn.GELU()
    assert "ReLU or Mish" in left(model)
    model = make()
    model.attn.to_q = nn.Linear(16, 15)
    assert "attn.to_q" in left(model)
    model = make()
    model.attn.to_out = nn.Sequential(nn.Linear(15, 16), nn.Dropout(0.5))
    assert "attn.to_out" in left(model)
    own = ANR.forward
    monkeypatch.setattr(ANR, "forward", lambda self, x, **kwargs: 1.1 * own(self, x, **kwargs))
    assert "gives other values" in left(make())
