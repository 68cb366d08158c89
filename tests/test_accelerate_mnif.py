"""accelerate() on mNIF's LinearMixtureINR, and the renderer of its code."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from adapter_decoders import LinearMixtureINR, apart, derivatives
from torch import nn

from ginr_fast.adapters import accelerate, restore
from ginr_fast.adapters.mnif_rendering import nerf_volume_rendering

MODES = [
    ("all-layer", True),
    ("layerwise", True),
    ("two-layers", True),
    ("all-layer", False),
    ("layerwise", False),
]


def make(mode="layerwise", latent=True, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    model = LinearMixtureINR(mixture_type=mode, use_latent_embedding=latent, **arguments)
    return model.to(dtype)


def context_of(model, batch=2):
    torch.manual_seed(1)
    dtype = model.model_param.net[0][0].weight.dtype
    if model.use_latent_embedding:
        return 0.1 * torch.randn(batch, 9, dtype=dtype)
    columns = 1 if model.mixture_type == "all-layer" else model.num_ctx_params
    noise = 0.1 * torch.randn(batch, model.k_mixtures, columns, dtype=dtype)
    return noise + 1 / model.k_mixtures


def coords_of(model, *shape):
    weight = model.model_param.net[0][0].weight
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(*shape, weight.shape[-1], generator=generator, dtype=torch.float64)
    return (2 * points - 1).to(weight.dtype)


def everything(model, coords, context):
    """Values and both derivatives in parameters, context and coordinates."""
    coords, context = coords.clone().requires_grad_(), context.clone().requires_grad_()
    leaves = [*model.model_param.parameters(), context, coords]
    if model.use_latent_embedding:
        leaves += model.latent_to_mixture.parameters()
    return derivatives(lambda: model({"coords": coords}, context)["model_out"], leaves)


@pytest.mark.parametrize("pred_type", ["image", "scene"])
@pytest.mark.parametrize(("mode", "latent"), MODES)
def test_values_and_both_derivatives(mode, latent, pred_type):
    """In float64 to rounding; in float32 as close as the published code is itself."""
    model = make(mode, latent, pred_type=pred_type, in_channels=3, out_channels=4)
    fast = copy.deepcopy(model)
    report = accelerate(fast)
    assert "mixture_average of 6 networks" in str(report) and not report.left
    coords, context = coords_of(model, 2, 7), context_of(model)
    want = everything(model, coords, context)
    assert max(apart(everything(fast, coords, context), want)) < 1e-10

    single = [everything(m.float(), coords.float(), context.float()) for m in (fast, model)]
    errors, published = (apart(found, want) for found in single)
    assert errors[0] <= max(2e-5, 2 * published[0])
    for error, own in zip(errors[1:], published[1:], strict=True):
        assert error <= max(1e-4, 3 * own)


def test_what_it_returns_and_takes():
    model = make()
    fast = copy.deepcopy(model)
    accelerate(fast)
    context = context_of(model)
    inputs = {"coords": coords_of(model, 2, 7), "context_params": context}
    for arguments in (
        (inputs,),
        (inputs, context),
        (inputs, None, model.latent_to_mixture(context)),
    ):
        got, want = fast(*arguments), model(*arguments)
        assert got.keys() == want.keys() and got["model_in"] is inputs
        torch.testing.assert_close(got["l1_mean"], want["l1_mean"])
    for shape, batch in (((7,), 2), ((1, 7), 2), ((3, 7), 1), ((7,), 1), ((2, 0), 2)):
        inputs, context = {"coords": coords_of(model, *shape)}, context_of(model, batch)
        want = model(inputs, context)["model_out"]
        torch.testing.assert_close(fast(inputs, context)["model_out"], want)
    flat = make("layerwise", latent=False)
    context = context_of(flat)
    fast = copy.deepcopy(flat)
    accelerate(fast)
    inputs = {"coords": coords_of(flat, 1, 7)}
    for given in (context.flatten(1), context[0].flatten()):
        want = flat(inputs, given)["model_out"]
        torch.testing.assert_close(fast(inputs, given)["model_out"], want)


def test_what_the_fast_form_does_not_serve_runs_the_own_code(monkeypatch):
    model = make()
    accelerate(model)
    monkeypatch.setattr(LinearMixtureINR, "get_combined_weight", lambda *a: 1 / 0)
    model({"coords": coords_of(model, 2, 7)}, context_of(model))  # the fast form
    for coords in (
        coords_of(model, 2, 7).float(),
        coords_of(model, 5, 7),
        coords_of(model, 2, 3, 7),
    ):
        with pytest.raises(ZeroDivisionError):
            model({"coords": coords}, context_of(model))
    with pytest.raises(KeyError, match="coords"):
        model({}, context_of(model))


def set_w0(model):
    for layer in model.model.net:
        layer[1].w0 = 5.0


def add_last_layer(model):
    model.use_last_layer, model.last_layer = True, nn.Linear(3, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    "change",
    [
        set_w0,
        lambda model: setattr(model.model.net[-1], "1", nn.Identity()),
        add_last_layer,
    ],
)
def test_an_option_changed_afterwards_runs_the_own_code(change):
    model = make()
    inputs, context = {"coords": coords_of(model, 2, 7)}, context_of(model)
    before = model(inputs, context)["model_out"]
    accelerate(model)
    change(model)
    got = model(inputs, context)["model_out"]
    restore(model)
    want = model(inputs, context)["model_out"]
    assert torch.equal(got, want) and not torch.equal(got, before)


def test_cavia_runs_through_it():
    """Two second-order steps of the context, then the gradient of all parameters."""
    model = make(w0=5.0)
    fast = copy.deepcopy(model)
    accelerate(fast)
    coords, target = coords_of(model, 2, 30), torch.rand(2, 30, 3, dtype=torch.float64)
    found = []
    for net in (fast, model):
        context = torch.zeros(2, 9, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            loss = (net({"coords": coords}, context)["model_out"] - target).square().mean()
            (step,) = torch.autograd.grad(loss, context, create_graph=True)
            context = context - 0.1 * step
        loss = (net({"coords": coords}, context)["model_out"] - target).square().mean()
        wanted = [*net.latent_to_mixture.parameters(), *net.model_param.parameters()]
        found.append([context.detach(), *torch.autograd.grad(loss, wanted)])
    assert found[1][0].abs().max() > 1e-3
    assert max(apart(*found)) < 1e-9


def test_it_stays_the_module_it_is():
    model = make(dtype=torch.float32)
    inputs, context = {"coords": coords_of(model, 2, 7)}, context_of(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    want = model(inputs, context)["model_out"]
    report = accelerate(model, verify=True)
    assert report.verified[0].values < 1e-4 and report.verified[0].gradients < 1e-3
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(inputs, context)["model_out"], want)
        assert type(twin).__name__ == "LinearMixtureINR"
    assert restore(model) == [""]
    assert torch.equal(model(inputs, context)["model_out"], want)


def test_half_precision_and_autocast():
    model = make(dtype=torch.float32, w0=5.0)
    coords, context = coords_of(model, 2, 50), context_of(model)
    want = model.double()({"coords": coords.double()}, context.double())["model_out"]
    accelerate(model.float())
    with torch.autocast("cpu", torch.bfloat16):
        got = model({"coords": coords}, context)["model_out"]
    assert got.dtype == torch.bfloat16 and apart([got], [want])[0] < 1.5e-2
    half = model.to(torch.float16)
    got = half({"coords": coords.half()}, context.half())["model_out"]
    assert got.dtype == torch.float16 and apart([got], [want])[0] < 1.5e-2


def test_who_listens_to_its_parts_is_heard(monkeypatch):
    model = make()
    accelerate(model)
    heard = []
    inputs = {"coords": coords_of(model, 2, 7), "context_params": context_of(model)}
    model.latent_to_mixture.register_forward_hook(lambda *a: heard.append("coefficients"))
    model(inputs)
    assert heard == ["coefficients"]
    listening = model.model.net[1][1].register_forward_hook(lambda *a: heard.append("sine"))
    model(inputs)
    assert "sine" in heard
    listening.remove()
    monkeypatch.setattr(LinearMixtureINR, "get_combined_weight", lambda *a: 1 / 0)
    model(inputs)  # the fast form


def test_compiled():
    torch.compiler.reset()
    model = make(dtype=torch.float32)
    coords, context = coords_of(model, 2, 7), context_of(model)
    want = model({"coords": coords}, context)["model_out"]
    accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled({"coords": coords}, context)["model_out"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Doubled(LinearMixtureINR):
    def forward(self, inputs, context_params=None, coefficients=None):
        return super().forward(inputs, context_params, coefficients)


class Weighted(LinearMixtureINR):
    def get_combined_weight(self, mixture):
        return super().get_combined_weight(mixture)


class Renamed(LinearMixtureINR):
    """A subclass that changes nothing of what is computed."""


def left(model) -> str:
    before = type(model)
    report = accelerate(model)
    assert not report.replaced and type(model) is before
    return report.left[0].why


def test_what_is_left_alone_and_why(monkeypatch):
    assert accelerate(Renamed()).replaced
    assert left(Doubled()) == "Doubled overrides forward"
    assert left(Weighted()) == "Weighted overrides get_combined_weight"
    model = make()
    model.use_last_layer = True
    assert "last layer" in left(model)
    model = make()
    model.mixture_type = "per-pixel"
    assert "'per-pixel'" in left(model)
    model = make()
    model.model.net[1][1] = nn.ReLU()
    assert "sine with one w0" in left(model)
    model = make()
    model.model_param.net[1][0].weight = nn.Parameter(torch.zeros(6, 16, 17))
    assert "shapes" in left(model)
    monkeypatch.setattr(
        LinearMixtureINR,
        "get_mixture_weight",
        lambda self, c: c.view(-1, self.num_ctx_params, self.k_mixtures).transpose(1, 2),
    )
    assert "gives other values" in left(make())


# --- the renderer ---


def formula(out, t, directions, opt):
    """Colours, depth and opacity as mNIF's code defines them."""
    rgb, sigma = out[..., :3].unflatten(1, (-1, 6)), out[..., -1].unflatten(1, (-1, 6))
    rgb = {
        "sigmoid": torch.sigmoid,
        "relu": torch.relu,
        "no_use": lambda x: x,
        "sine2.5": lambda x: torch.sin(2.5 * x),
    }[opt.rgb_activation](rgb)
    elu = lambda x: (F.elu(x, alpha=0.1) + 0.1).clip(0, 10)  # noqa: E731
    sigma = {
        "elu": elu,
        "relu": torch.relu,
        "leakyrelu": lambda x: F.leaky_relu(x) + 0.1,
        "shift": lambda x: (x + 0.5).clip(0, 10),
        "sine5+shift0.9": lambda x: (torch.sin(5 * x) + 0.9).clip(0, 10),
        "sine5+shift0.5+elu": lambda x: elu(torch.sin(5 * x) + 0.5),
        "elu+scale3": lambda x: elu(3 * x),
        "no_use": lambda x: x,
    }[opt.density_activation](sigma)
    rgb, sigma = rgb.flatten(0, 1), sigma.flatten(0, 1)
    if opt.rendering_type == "mip-nerf":
        where, delta = (t[:, 1:] + t[:, :-1]) / 2, t[:, 1:] - t[:, :-1]
    else:
        last = 1e-3 if opt.rendering_type == "functa" else 1e10
        where, delta = t, torch.cat((t[:, 1:] - t[:, :-1], torch.full_like(t[:, :1], last)), 1)
    kept = torch.exp(-sigma * delta * directions.norm(dim=-1, keepdim=True))
    before = torch.cat((torch.ones_like(kept[:, :1]), kept.cumprod(1)[:, :-1]), 1)
    weight = before * (1 - kept)
    color, opacity = (weight[..., None] * rgb).sum(1), weight.sum(1)
    color = color + (1 - opacity[:, None]) if opt.white_bkgd else color
    return torch.cat((color, (weight * where).sum(1, keepdim=True), opacity[:, None]), 1)


OPTIONS = [
    ("no_use", "elu", "nerf", True, 4),
    ("sigmoid", "relu", "functa", False, 4),
    ("relu", "leakyrelu", "nerf", True, 5),
    ("sine2.5", "sine5+shift0.9", "mip-nerf", True, 4),
    ("no_use", "sine5+shift0.5+elu", "functa", True, 4),
    ("sigmoid", "elu+scale3", "mip-nerf", False, 6),
    ("no_use", "shift", "nerf", False, 4),
]


@pytest.mark.parametrize(("rgb", "density", "rendering", "white", "channels"), OPTIONS)
def test_rendering(rgb, density, rendering, white, channels):
    torch.manual_seed(3)
    opt = SimpleNamespace(
        num_samples_per_ray=5,
        rgb_activation=rgb,
        density_activation=density,
        rendering_type=rendering,
        white_bkgd=white,
    )
    batch, rays, ends = 2, 4, 7 if rendering == "mip-nerf" else 6
    t = torch.rand(batch * rays, ends, dtype=torch.float64).sort(dim=1).values + 0.8
    directions = torch.randn(batch * rays, 3, dtype=torch.float64)
    out = torch.randn(batch, rays * 6, channels, dtype=torch.float64, requires_grad=True)
    model_in = {"t_vals": t, "rays_d": directions}

    def ours():
        prediction = {"model_in": model_in, "model_out": out}
        assert nerf_volume_rendering(prediction, opt, "all") is prediction
        found = prediction["model_out"]
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        assert shapes == {"rgb": (2, 4, 3), "depth": (2, 4), "acc": (2, 4)}
        return torch.cat((found["rgb"], found["depth"][..., None], found["acc"][..., None]), -1)

    def theirs():
        return formula(out, t, directions, opt).unflatten(0, (batch, rays))

    # Opaque samples: an epsilon of 1e-10, which the formula leaves out.
    assert max(apart(derivatives(ours, [out]), derivatives(theirs, [out]))) < 1e-7
    prediction = nerf_volume_rendering({"model_in": model_in, "model_out": out}, opt)
    torch.testing.assert_close(prediction["model_out"], ours()[..., :3])


def test_unknown_activations_are_named():
    known = {"num_samples_per_ray": 5, "rendering_type": "nerf", "white_bkgd": True}
    prediction = {
        "model_in": {"t_vals": torch.rand(1, 6), "rays_d": torch.randn(1, 3)},
        "model_out": torch.randn(1, 6, 4),
    }
    for rgb, density, name in (("tanh", "elu", "rgb_activation"), ("relu", "x", "density_act")):
        opt = SimpleNamespace(rgb_activation=rgb, density_activation=density, **known)
        with pytest.raises(ValueError, match=name):
            nerf_volume_rendering(prediction, opt)
