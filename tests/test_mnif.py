"""mNIF: the model, its published checkpoints, CAVIA and auto-decoding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import ginr_fast
from ginr_fast.systems.mnif import MNIF_SIZES, Mnif, MnifConfig
from ginr_fast.systems.mnif_adaptation import (
    AutoDecoder,
    Cavia,
    CaviaConfig,
    PointSamples,
    RaySamples,
    fit_latents,
    instance_errors,
    latent_penalty,
)
from ginr_fast.systems.mnif_published import (
    from_published,
    load_published,
    published_step_sizes,
    to_published,
)

SMALL = MnifConfig(hidden_layers=2, hidden_dim=8, mixtures=5, latent_dim=7)
KINDS = ("latent", "layerwise", "shared")


def model_of(config: MnifConfig, seed: int = 0) -> Mnif:
    torch.manual_seed(seed)
    return Mnif(config).double()


def latents(model: Mnif, count: int, std: float = 0.3) -> torch.Tensor:
    noise = torch.randn(count, model.config.context_dim, dtype=torch.float64)
    return model.initial_latents(noise, std)


def image_samples(count: int, points: int = 30) -> PointSamples:
    coords = torch.rand(count, points, 2, dtype=torch.float64) * 2 - 1
    return PointSamples(coords, torch.rand(count, points, 3, dtype=torch.float64) * 2 - 1)


def by_hand(model: Mnif, latent: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """Eq. 6 for one instance, basis by basis: averages nothing but what layers give."""
    config = model.config
    layers = config.spec.layers
    if config.coefficients == "latent":
        assert model.projection is not None
        flat = latent @ model.projection.weight.T + model.projection.bias
        alpha = flat.view(config.mixtures, layers).T
    elif config.coefficients == "layerwise":
        alpha = latent.view(layers, config.mixtures)
    else:
        alpha = latent.expand(layers, -1)
    h = coords
    for layer in range(layers):
        weight, bias = model.bases[2 * layer], model.bases[2 * layer + 1]
        each = torch.einsum("moi,ni->mno", weight, h) + bias[:, None]
        h = torch.einsum("m,mno->no", alpha[layer], each)
        if layer < layers - 1 or config.modality != "scene":
            h = torch.sin(config.w0 * h)
    return h


# The model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", ["image", "voxels", "scene"])
def test_decoding_is_the_mixture_of_the_bases(kind: str, modality: str) -> None:
    model = model_of(replace(SMALL, coefficients=kind, modality=modality))
    dim, out = model.config.spec.coord_dim, model.config.spec.out_dim
    latent = latents(model, 3)
    coords = torch.rand(3, 11, dim, dtype=torch.float64) * 2 - 1
    found = model.decode(coords, latent)
    assert found.shape == (3, 11, out)
    expected = torch.stack([by_hand(model, *one) for one in zip(latent, coords, strict=True)])
    assert torch.allclose(found, expected, atol=1e-10)
    assert torch.equal(model(coords, latent), found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_basis_counts_the_same_at_the_start(kind: str) -> None:
    model = model_of(replace(SMALL, coefficients=kind))
    zeros = torch.zeros(2, model.config.context_dim, dtype=torch.float64)
    coefficients = model.coefficients(model.initial_latents(zeros, 0.1))
    assert coefficients.shape == (2, 4, 5)
    assert torch.allclose(coefficients, torch.full_like(coefficients, 1 / 5))


def test_bases_start_as_sirens() -> None:
    torch.manual_seed(0)
    model = Mnif(MnifConfig(hidden_layers=2, hidden_dim=64, mixtures=32, latent_dim=4, w0=20.0))
    bounds = [1 / 2, 1 / math.sqrt(2), *[math.sqrt(6 / 64) / 20, 1 / 8] * 3]
    for base, bound in zip(model.bases, bounds, strict=True):
        assert 0.9 * bound < base.abs().max() <= bound
        assert not torch.equal(base[0], base[1])
    torch.manual_seed(0)
    larger = Mnif(replace(model.config, initial_gain=3.0))
    assert torch.allclose(larger.bases[2], 3 * model.bases[2])


def test_scenes_start_about_a_color_and_a_density() -> None:
    torch.manual_seed(0)
    config = replace(SMALL, modality="scene", mixtures=400, initial_color=0.5, initial_density=2.0)
    start = Mnif(config).bases[-1].mean(0)
    assert torch.allclose(start, torch.tensor([0.5, 0.5, 0.5, 2.0]), atol=0.05)
    images = replace(config, modality="image")
    assert Mnif(images).bases[-1].mean(0).abs().max() < 0.05


def test_published_sizes() -> None:
    # Tables 1-3: learnable and inference parameters. 4.6 M is what (S) has with the scenes' H; the
    # appendix gives images and voxels a larger one.
    for name, learnable, inference in (
        ("images-s", None, 17.2e3),
        ("images-l", 33.4e6, 83.3e3),
        ("voxels-s", None, 17.2e3),
        ("voxels-l", 46.3e6, 83.3e3),
        ("scenes-s", 4.6e6, 17.2e3),
    ):
        config = MNIF_SIZES[name]
        assert config.spec.parameter_count == pytest.approx(inference, rel=0.02)
        if learnable is not None:
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in Mnif(config).parameters())
            assert count == pytest.approx(learnable, rel=0.01)
    assert (MNIF_SIZES["voxels-s"].w0, MNIF_SIZES["voxels-l"].w0) == (50.0, 30.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"modality": "sound"}, "modality: expected one of image, voxels, scene"),
        ({"coefficients": "own"}, "coefficients"),
        ({"mixtures": 0}, "mixtures"),
        ({"latent_dim": 2.0}, "latent_dim"),
        ({"initial_gain": 0.0}, "initial_gain"),
        ({"initial_color": float("nan")}, "initial_color"),
        ({"near": 2.0}, "near, far"),
        ({"hidden_layers": -1}, "hidden_layers"),
        ({"w0": 0.0}, "w0"),
    ],
)
def test_bad_sizes_are_named(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        replace(SMALL, **changes)


def test_bad_calls_are_named() -> None:
    model = Mnif(SMALL)
    with pytest.raises(ValueError, match=r"latent: expected shape \(B, 7\), got \(2, 6\)"):
        model.coefficients(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="render: expected a model of scenes"):
        model.render(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 7))


def test_rendering_takes_near_far_and_samples_from_the_config() -> None:
    torch.manual_seed(0)
    config = replace(SMALL, modality="scene", near=0.5, far=1.5, samples=6)
    model = Mnif(config)
    latent = model.initial_latents(torch.randn(2, 7), 0.1)
    origins, directions = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    found = model.render(origins, directions, latent)
    expected = ginr_fast.volume_render(
        origins,
        directions,
        model.weights(latent),
        config.spec,
        near=0.5,
        far=1.5,
        samples=6,
        convention="mnif",
    )
    assert found.color.shape == (2, 5, 3) and found.opacity.shape == (2, 5)
    assert torch.equal(found.color, expected.color)
    jittered = [model.render(origins, directions, latent, seed=seed).color for seed in (1, 1, 2)]
    assert torch.equal(jittered[0], jittered[1]) and not torch.equal(jittered[0], jittered[2])


# Published checkpoints


@pytest.mark.parametrize("kind", KINDS)
def test_published_checkpoints_round_trip(kind: str) -> None:
    torch.manual_seed(0)
    model = Mnif(replace(SMALL, coefficients=kind))
    rates = torch.rand(model.config.context_dim)
    state = to_published(model, rates)
    assert state["model_param.net.0.0.weight"].shape == (5, 8, 2)
    assert state["model_param.net.3.0.bias"].shape == (5, 3)
    assert state["model.net.3.0.weight"].shape == (3, 8)
    assert published_step_sizes(state) is not None
    assert torch.equal(published_step_sizes(state), rates)
    assert published_step_sizes(to_published(model)) is None
    found = from_published(state)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    again = load_published(state, "image", coefficients=kind if kind != "latent" else "layerwise")
    latent = model.initial_latents(torch.randn(2, model.config.context_dim), 0.1)
    where = ginr_fast.grid(3, 4)
    assert torch.equal(again.decode(where, latent), model.decode(where, latent))


def test_the_published_projection_is_read_as_published() -> None:
    """latent_to_mixture's output viewed (B, M, layers), as the published code does."""
    torch.manual_seed(0)
    model = Mnif(SMALL)
    state = to_published(model)
    latent = torch.randn(2, 7)
    flat = latent @ state["latent_to_mixture.weight"].T + state["latent_to_mixture.bias"]
    published = flat.view(2, 5, 4)
    found = model.coefficients(latent)
    for layer in range(4):
        assert torch.allclose(found[:, layer], published[:, :, layer])


def test_other_checkpoints_are_named() -> None:
    state = to_published(Mnif(SMALL))
    with pytest.raises(ValueError, match="state: encoder.weight is not of a published mNIF"):
        from_published({**state, "encoder.weight": torch.zeros(2)})
    del state["model_param.net.2.0.bias"]
    with pytest.raises(ValueError, match="all of them"):
        from_published(state)
    with pytest.raises(ValueError, match="modality: voxels has 3 coordinates, the checkpoint 2"):
        load_published(to_published(Mnif(SMALL)), "voxels")
    shared = to_published(Mnif(SMALL))
    shared["latent_to_mixture.weight"] = shared["latent_to_mixture.weight"][:5]
    with pytest.raises(ValueError, match="latent_to_mixture.weight of 20 rows.* got 5"):
        load_published(shared, "image")


# CAVIA


def plain_cavia(cavia: Cavia, samples: PointSamples, start: torch.Tensor) -> torch.Tensor:
    """Algorithm 1 instance by instance, in plain PyTorch."""
    config, model, errors = cavia.config, cavia.model, []
    for coords, values, latent in zip(*samples, start, strict=True):
        latent = latent.clone().requires_grad_()
        for _ in range(config.inner_steps):
            loss = (by_hand(model, latent, coords) - values).square().mean()
            (gradient,) = torch.autograd.grad(loss, latent, create_graph=config.second_order)
            rate = config.inner_learning_rate
            if cavia.step_sizes is not None:
                rate = rate * cavia.step_sizes.clamp(*config.meta_sgd_range)
            latent = latent - rate * gradient
        errors.append((by_hand(model, latent, coords) - values).square().mean())
    return torch.stack(errors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("meta_sgd", [True, False])
def test_cavia_and_its_gradients_are_those_of_plain_pytorch(
    kind: str, second_order: bool, meta_sgd: bool
) -> None:
    model = model_of(replace(SMALL, coefficients=kind, w0=3.0))
    config = CaviaConfig(inner_learning_rate=0.1, second_order=second_order, meta_sgd=meta_sgd)
    cavia = Cavia(model, config).double()
    samples, start = image_samples(3), latents(model, 3)
    parameters = list(cavia.parameters())
    assert len(parameters) == 8 + 2 * (kind == "latent") + meta_sgd
    found = cavia(samples, start)
    expected = plain_cavia(cavia, samples, start)
    assert torch.allclose(found, expected, rtol=1e-9)
    gradients = [torch.autograd.grad(each.mean(), parameters) for each in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-10)
        assert ours.abs().sum() > 0


def test_second_order_and_first_order_differ() -> None:
    model = model_of(replace(SMALL, w0=3.0))
    samples, start = image_samples(2), latents(model, 2)
    gradients = []
    for second_order in (True, False):
        cavia = Cavia(model, CaviaConfig(second_order=second_order, meta_sgd=False))
        gradients.append(torch.autograd.grad(cavia(samples, start).mean(), model.bases[2])[0])
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


def test_instances_adapt_alone_and_get_better() -> None:
    model = model_of(replace(SMALL, w0=3.0))
    cavia = Cavia(model, CaviaConfig(inner_learning_rate=0.05, meta_sgd=False))
    samples, start = image_samples(4), latents(model, 4)
    together = cavia.adapt(samples, start)
    alone = [
        cavia.adapt(PointSamples(*(part[i : i + 1] for part in samples)), start[i : i + 1])
        for i in range(4)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)
    before, after = (instance_errors(model, latent, samples) for latent in (start, together))
    assert (after < before).all()
    with torch.no_grad():  # adaptation needs gradients wherever it is called
        assert torch.allclose(cavia.adapt(samples, start), together)


def test_step_sizes_start_and_are_cut_within_their_ranges() -> None:
    torch.manual_seed(0)
    cavia = Cavia(Mnif(replace(SMALL, latent_dim=500)))
    assert cavia.step_sizes is not None
    sizes = cavia.step_sizes.detach()
    assert 0.005 <= sizes.min() < 0.01 and 0.095 < sizes.max() <= 0.1
    model = model_of(replace(SMALL, w0=3.0))
    outside = Cavia(model).double()
    still = Cavia(model).double()
    assert outside.step_sizes is not None and still.step_sizes is not None
    outside.step_sizes.data.fill_(-3.0)
    still.step_sizes.data.fill_(0.0)
    samples, start = image_samples(2), latents(model, 2)
    assert torch.equal(outside.adapt(samples, start), start)
    assert torch.equal(still.adapt(samples, start), start)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"inner_steps": 0}, "inner_steps"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate"),
        ({"meta_sgd_initial": (0.2, 0.1)}, "meta_sgd_initial"),
        ({"meta_sgd_range": (1.0, 0.0)}, "meta_sgd_range"),
    ],
)
def test_bad_cavia_settings_are_named(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        CaviaConfig(**changes)


# Auto-decoding


def test_auto_decoding_trains_the_latents_of_the_batch() -> None:
    torch.manual_seed(0)
    decoder = AutoDecoder(Mnif(replace(SMALL, w0=3.0)), 6, std=0.1).double()
    assert decoder.latents.weight.shape == (6, 7)
    assert 0.05 < decoder.latents.weight.std() < 0.2
    samples, chosen = image_samples(2), torch.tensor([4, 1])
    errors, penalty = decoder(samples, chosen)
    latent = decoder.latents.weight[chosen]
    assert torch.allclose(errors, instance_errors(decoder.model, latent, samples))
    assert torch.allclose(penalty, 0.5 * latent.square().sum(1))
    errors.sum().backward()
    touched = decoder.latents.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [False, True, False, False, True, False]
    assert all(base.grad.abs().sum() > 0 for base in decoder.model.bases)


@pytest.mark.parametrize("kind", ["layerwise", "shared"])
def test_coefficients_are_penalised_about_the_uniform_mixture(kind: str) -> None:
    model = model_of(replace(SMALL, coefficients=kind))
    zeros = torch.zeros(2, model.config.context_dim, dtype=torch.float64)
    assert latent_penalty(model, model.initial_latents(zeros, 0.1)).abs().max() < 1e-15
    decoder = AutoDecoder(model, 50, std=0.1)
    assert decoder.latents.weight.mean().item() == pytest.approx(1 / 5, rel=0.05)
    assert decoder.latents.weight.std().item() == pytest.approx(0.1 / 5, rel=0.2)


def test_fitting_touches_latents_only() -> None:
    model = model_of(replace(SMALL, w0=3.0))
    truth = latents(model, 3, std=0.3)
    coords = image_samples(3, 60).coords
    samples = PointSamples(coords, model.decode(coords, truth).detach())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = torch.zeros(3, 7, dtype=torch.float64)
    seen: list[int] = []

    def draw(step: int) -> PointSamples:
        seen.append(step)
        return samples

    found = fit_latents(model, draw, start, steps=150, learning_rate=0.1)
    assert seen == list(range(150)) and not found.requires_grad
    errors = [instance_errors(model, latent, samples).max() for latent in (start, found)]
    assert errors[1] < 0.01 * errors[0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    decayed = fit_latents(model, draw, start, 150, 0.1, weight_decay=10.0)
    assert decayed.norm() < 0.1 * found.norm()
    with pytest.raises(ValueError, match="steps: expected a positive"):
        fit_latents(model, draw, start, 0, 0.1)
    with pytest.raises(ValueError, match="learning_rate"):
        fit_latents(model, draw, start, 1, 0.0)


def test_scenes_adapt_through_the_renderer() -> None:
    model = model_of(replace(SMALL, modality="scene", w0=3.0, samples=8))
    origins, directions = (torch.randn(2, 20, 3, dtype=torch.float64) for _ in range(2))
    colors = torch.rand(2, 20, 3, dtype=torch.float64)
    samples = RaySamples(origins, directions, colors)
    start = latents(model, 2)
    rendered = model.render(origins, directions, start).color
    expected = (rendered - colors).square().mean((1, 2))
    assert torch.allclose(instance_errors(model, start, samples), expected)
    fitted = fit_latents(model, lambda step: samples, start, 30, 0.05, seed=3)
    assert instance_errors(model, fitted, samples).sum() < expected.sum()
    cavia = Cavia(model, CaviaConfig(inner_learning_rate=0.05, meta_sgd=False))
    assert cavia(samples, start).sum() < expected.sum()
