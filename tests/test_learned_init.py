"""Learned Init: the model, its inner loop, and gradients of every order through it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import ginr_fast
from ginr_fast.systems.inner_loop import inner_loop
from ginr_fast.systems.learned_init import LearnedInit, LearnedInitConfig
from ginr_fast.systems.samples import PointSamples, RaySamples, Samples, instance_errors

RELU = LearnedInitConfig(
    hidden_layers=1,
    hidden_dim=8,
    frequencies=3,
    bandwidth=4.0,
    inner_steps=2,
    inner_learning_rate=0.05,
    normalize_weights=False,
)
SINE = replace(RELU, activation="sine", w0=3.0, frequencies=0)
SCENE = replace(SINE, modality="scene", samples=6, near=0.5, far=2.0, scale=1.5)
KINDS = {
    "relu": RELU,
    "sine": SINE,
    "normalised": replace(RELU, normalize_weights=True, inner_learning_rate=0.02),
    "scene": SCENE,
}
Layers = list[tuple[torch.Tensor, torch.Tensor]]


def model_of(config: LearnedInitConfig, seed: int = 0) -> LearnedInit:
    torch.manual_seed(seed)
    model = LearnedInit(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases start at 0
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
            if name == "step_sizes":
                parameter.uniform_(0.5, 1.5)
    return model


def samples_of(config: LearnedInitConfig, count: int, points: int = 20) -> Samples:
    def rand(dim: int) -> torch.Tensor:
        return torch.rand(count, points, dim, dtype=torch.float64)

    if config.modality == "scene":
        return RaySamples(rand(3) - 0.5, rand(3) * 2 - 1, rand(3))
    return PointSamples(rand(2) * 2 - 1, rand(3))


def one(samples: Samples, index: int) -> Samples:
    return type(samples)(*(part[index] for part in samples))


def layers_of(model: LearnedInit) -> Layers:
    return [(layer.weight, layer.bias) for layer in model.field]


def plain_field(config: LearnedInitConfig, layers: Layers, v: torch.Tensor) -> torch.Tensor:
    """A field at ``(..., d)``, in plain PyTorch."""
    h = v * config.scale
    if config.frequencies:
        lowest = 1.0 if config.modality == "scene" else math.pi
        last = max(config.frequencies - 1, 1)
        omega = [lowest * config.bandwidth ** (j / last) for j in range(config.frequencies)]
        phases = h[..., None] * torch.tensor(omega, dtype=h.dtype)
        h = torch.cat([phases.cos().flatten(-2), phases.sin().flatten(-2)], -1)
    for index, (weight, bias) in enumerate(layers):
        if config.normalize_weights:
            weight = weight / weight.square().sum(1, keepdim=True).sqrt()
        h = h @ weight.T + bias
        if index < len(layers) - 1:
            h = torch.relu(h) if config.activation == "relu" else torch.sin(config.w0 * h)
    return h + 0.5 if config.modality == "image" else h


def plain_render(config: LearnedInitConfig, layers: Layers, rays: Samples) -> torch.Tensor:
    """learnit's renderer, sample by sample."""
    origins, directions, _ = rays
    through, color = torch.ones(len(origins), 1, dtype=torch.float64), 1.0  # on white
    places = torch.linspace(config.near, config.far, config.samples, dtype=torch.float64)
    for k, t in enumerate(places):
        # The field multiplies by the scale; directions count in what is multiplied already.
        raw = plain_field(config, layers, origins + t * directions / config.scale)
        delta = places[k + 1] - t if k + 1 < config.samples else torch.tensor(1e-3)
        alpha = 1 - torch.exp(-torch.relu(raw[:, 3:]) * delta)
        color = color + through * alpha * (torch.sigmoid(raw[:, :3]) - 1)
        through = through * (1 - alpha + 1e-10)
    assert isinstance(color, torch.Tensor)
    return color


def plain_error(config: LearnedInitConfig, layers: Layers, samples: Samples) -> torch.Tensor:
    """The mean squared error of one instance."""
    if config.modality == "scene":
        return (plain_render(config, layers, samples) - samples[-1]).square().mean()
    return (plain_field(config, layers, samples[0]) - samples[-1]).square().mean()


def plain_adapted(
    model: LearnedInit, support: list[Samples], order: str
) -> tuple[Layers, torch.Tensor]:
    """The inner loop of one instance; and its error before the last step."""
    config, parameters = model.config, [part for pair in layers_of(model) for part in pair]
    sizes, last = model.step_sizes, torch.zeros(())
    for step in range(config.inner_steps):
        if order != "second":
            constants = [part.detach().requires_grad_() for part in parameters]
        else:
            constants = parameters
        pairs = list(zip(constants[::2], constants[1::2], strict=True))
        last = plain_error(config, pairs, support[step % len(support)])
        gradients = torch.autograd.grad(last, constants, create_graph=order == "second")
        offset, moved = 0, []
        for index, (part, at, gradient) in enumerate(
            zip(parameters, constants, gradients, strict=True)
        ):
            rate: torch.Tensor | float = config.inner_learning_rate
            if config.normalize_weights:
                rate = rate * at.square().sum() if part.ndim == 2 else 0.0
            if sizes is not None and config.step_sizes == "layer":
                rate = rate * sizes[index]
            elif sizes is not None:
                rate = rate * sizes[offset : offset + part.numel()].view(part.shape)
            offset += part.numel()
            moved.append(part - rate * gradient)
        parameters = moved
    return list(zip(parameters[::2], parameters[1::2], strict=True)), last


# The model


def test_defaults_are_those_of_ginr_ipc() -> None:
    config = LearnedInitConfig()
    spec = config.spec
    assert (spec.layers, spec.hidden_dim, spec.input_dim) == (5, 256, 256)
    assert spec.encoding is not None and spec.encoding.frequencies[0] == math.pi
    assert spec.encoding.frequencies[-1] == pytest.approx(128 * math.pi)
    assert (config.inner_steps, config.inner_learning_rate) == (2, 0.003)
    assert config.normalize_weights and config.order == "second"


def test_parameters_have_names_by_layer_and_published_starts() -> None:
    torch.manual_seed(0)
    model = LearnedInit(LearnedInitConfig(hidden_layers=1, hidden_dim=64, step_sizes="layer"))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "field.0.weight": (64, 256),
        "field.0.bias": (64,),
        "field.1.weight": (64, 64),
        "field.1.bias": (64,),
        "field.2.weight": (3, 64),
        "field.2.bias": (3,),
        "step_sizes": (6,),
    }
    state = model.state_dict()
    assert state["field.0.weight"].std().item() == pytest.approx(1 / 16, rel=0.05)
    assert not state["field.1.bias"].any() and (state["step_sizes"] == 1).all()
    sine = LearnedInit(replace(SINE, hidden_dim=64, w0=20.0)).state_dict()
    for name, bound in (("field.0.weight", 1 / 2), ("field.1.weight", math.sqrt(6 / 64) / 20)):
        assert 0.9 * bound < sine[name].abs().max() <= bound
    by_number = LearnedInit(replace(RELU, step_sizes="parameter"))
    assert by_number.state_dict()["step_sizes"].shape == (RELU.spec.parameter_count,)


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_gives_the_initialisation(kind: str) -> None:
    model = model_of(KINDS[kind])
    samples = samples_of(model.config, 3)
    start = model.initial(3)
    assert start.shape == (3, model.config.spec.parameter_count)
    assert torch.equal(model.adapt(samples, steps=0), start)
    coords = torch.rand(3, 7, model.config.spec.coord_dim, dtype=torch.float64) * 2 - 1
    expected = plain_field(model.config, layers_of(model), coords)
    assert torch.allclose(model.decode(coords, start), expected, atol=1e-12)
    for (weight, bias), layer in zip(model.config.spec.unpack(start), model.field, strict=True):
        assert bias is not None and torch.equal(bias[1], layer.bias)
        if model.config.normalize_weights:
            assert torch.allclose(weight.norm(dim=-1), torch.ones((), dtype=torch.float64))
        else:
            assert torch.equal(weight[1], layer.weight)


def test_grids_are_scaled_like_coordinates() -> None:
    model = model_of(replace(SINE, scale=0.5))
    where = ginr_fast.grid(4, 5, dtype=torch.float64)
    start = model.initial(2)
    assert torch.allclose(model.decode(where, start), model.decode(where.tensor(), start))


def test_rendering_is_that_of_learnit() -> None:
    model = model_of(SCENE)
    samples = samples_of(SCENE, 2)
    found = model.render(samples[0], samples[1], model.initial(2)).color
    for index in range(2):
        expected = plain_render(SCENE, layers_of(model), one(samples, index))
        assert torch.allclose(found[index], expected, atol=1e-9)
    jittered = [
        model.render(samples[0], samples[1], model.initial(2), seed=seed).color
        for seed in (1, 1, 2)
    ]
    assert torch.equal(jittered[0], jittered[1]) and not torch.equal(jittered[0], jittered[2])
    fewer = model.render(samples[0], samples[1], model.initial(2), samples=3)
    assert not torch.allclose(fewer.color, found)


# The inner loop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step_sizes", ["fixed", "layer", "parameter"])
@pytest.mark.parametrize("order", ["second", "first"])
def test_maml_and_its_gradients_are_those_of_plain_pytorch(
    kind: str, step_sizes: str, order: str
) -> None:
    config = replace(KINDS[kind], order=order, step_sizes=step_sizes)
    model = model_of(config)
    support = [samples_of(config, 3) for _ in range(2)]
    query = samples_of(config, 3)
    expected, weights = [], []
    for index in range(3):
        layers, _ = plain_adapted(model, [one(each, index) for each in support], order)
        expected.append(plain_error(config, layers, one(query, index)))
        weights.append(layers[1][0])
    found = model(support, query)
    assert torch.allclose(found.objective, torch.stack(expected), rtol=1e-9)
    assert torch.equal(found.errors, found.objective) and not found.errors.requires_grad
    adapted = model.adapt(lambda step: support[step], differentiable=True)
    assert adapted.requires_grad
    plain = torch.stack(weights)
    if config.normalize_weights:
        plain = plain / plain.norm(dim=-1, keepdim=True)
    assert torch.allclose(config.spec.unpack(adapted)[1][0], plain, rtol=1e-9, atol=1e-12)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(found.objective.mean(), parameters)
    theirs = torch.autograd.grad(torch.stack(expected).mean(), parameters)
    for left, right in zip(ours, theirs, strict=True):
        assert torch.allclose(left, right, rtol=1e-6, atol=1e-11)
        assert right.abs().sum() > 0


@pytest.mark.parametrize("kind", ["relu", "sine", "scene"])
def test_the_first_order_gradient_is_that_at_the_adapted_weights(kind: str) -> None:
    model = model_of(replace(KINDS[kind], order="first"))
    samples = samples_of(model.config, 2)
    found = torch.autograd.grad(model([samples]).objective.sum(), model.field[1].weight)[0]
    adapted = model.adapt(samples).requires_grad_()
    if isinstance(samples, RaySamples):
        values = model.render(samples.origins, samples.directions, adapted).color
    else:
        values = model.decode(samples.coords, adapted)
    error = (values - samples[-1]).square().mean((1, 2)).sum()
    (gradient,) = torch.autograd.grad(error, adapted)
    weight = model.config.spec.unpack(gradient)[1][0].sum(0)
    assert torch.allclose(found, weight, rtol=1e-9, atol=1e-12)
    second = model_of(replace(model.config, order="second"))
    exact = torch.autograd.grad(second([samples]).objective.sum(), second.field[1].weight)[0]
    assert (found - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize("kind", ["relu", "sine", "scene"])
def test_reptile_goes_towards_the_adapted_parameters(kind: str) -> None:
    config = replace(KINDS[kind], order="reptile", inner_steps=3)
    model = model_of(config)
    support = [samples_of(config, 2) for _ in range(3)]
    found = model(support)
    gradients = torch.autograd.grad(found.objective.mean(), list(model.field.parameters()))
    expected = [torch.zeros_like(gradient) for gradient in gradients]
    for index in range(2):
        layers, last = plain_adapted(model, [one(each, index) for each in support], "reptile")
        assert torch.allclose(found.errors[index], last, rtol=1e-9)
        ends = [part for pair in layers for part in pair]
        for total, start, end in zip(expected, model.field.parameters(), ends, strict=True):
            total += (start - end).detach() / 2
    for left, right in zip(gradients, expected, strict=True):
        assert torch.allclose(left, right, rtol=1e-7, atol=1e-13)
        assert left.abs().sum() > 0


def test_the_unrolled_loop_passes_gradcheck() -> None:
    torch.manual_seed(0)
    curvature = torch.randn(3, 4, dtype=torch.float64).exp()

    def unrolled(start: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        def errors(rows: torch.Tensor, step: int) -> torch.Tensor:
            return ((rows - step) ** 2 * curvature + rows**3).sum(1)

        return inner_loop(errors, lambda rows: rate * rows.square(), start, 3, "second")[0]

    start = torch.rand(3, 4, dtype=torch.float64).requires_grad_()
    rate = torch.full((4,), 0.05, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(unrolled, (start, rate))
    assert torch.autograd.gradgradcheck(unrolled, (start, rate))


@pytest.mark.parametrize("kind", KINDS)
def test_instances_adapt_alone_and_get_better(kind: str) -> None:
    model = model_of(KINDS[kind])
    samples = samples_of(model.config, 4)
    together = model.adapt(samples)
    alone = [model.adapt(type(samples)(*(part[i : i + 1] for part in samples))) for i in range(4)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)
    with torch.no_grad():  # adaptation needs gradients wherever it is called
        assert torch.allclose(model.adapt(samples), together)
    assert not together.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())

    def error(steps: int) -> float:
        return instance_errors(model, model.adapt(samples, steps), samples).mean().item()

    assert all(after < before for before, after in pairwise(map(error, (0, 1, 3, 10, 30))))


def test_every_step_sees_its_own_samples_and_jitter() -> None:
    model = model_of(SCENE)
    parts = [samples_of(SCENE, 2) for _ in range(2)]
    drawn = model.adapt(lambda step: parts[step % 2], steps=4)
    assert not torch.allclose(drawn, model.adapt(parts[0], steps=4))
    jittered = [model.adapt(parts[0], steps=2, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(jittered[0], jittered[1]) and not torch.equal(jittered[0], jittered[2])


# Images


def test_images_are_fitted_and_decoded_at_any_scale() -> None:
    torch.manual_seed(0)
    model = LearnedInit(replace(RELU, hidden_dim=32, frequencies=6, inner_learning_rate=0.2))
    images = torch.rand(2, 3, 6, 8)
    assert model.reconstruct(images, scale=2.5).shape == (2, 3, 15, 20)
    fitted = [model.reconstruct(images, steps=steps) for steps in (0, 2, 200)]
    errors = [(each - images).square().mean().item() for each in fitted]
    assert errors[0] > errors[1] > 4 * errors[2]
    assert torch.equal(fitted[1], model.reconstruct(images))
    assert all(each.min() >= 0 and each.max() <= 1 for each in fitted)
    samples = model.image_samples(images)
    assert torch.equal(samples.values[1, 2, 5], images[1, :, 2, 5])


# What is wrong is named


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"modality": "sound"}, "modality: expected one of image, scene"),
        ({"activation": "none"}, "activation: expected one of relu, sine"),
        ({"order": "third"}, "order: expected one of second, first, reptile"),
        ({"step_sizes": "own"}, "step_sizes"),
        ({"step_sizes": "layer", "order": "reptile"}, "step_sizes: Reptile"),
        ({"normalize_weights": True, "order": "reptile"}, "normalize_weights: Reptile"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate"),
        ({"frequencies": -1}, "frequencies"),
        ({"samples": 2.0}, "samples"),
        ({"scale": math.inf}, "scale"),
        ({"near": 6.0}, "near, far"),
        ({"hidden_layers": -1}, "hidden_layers"),
        ({"bandwidth": 0.0}, "highest"),
    ],
)
def test_bad_settings_are_named(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        replace(RELU, **changes)


def test_bad_calls_are_named() -> None:
    images, scenes = LearnedInit(RELU), LearnedInit(SCENE)
    with pytest.raises(ValueError, match="render: expected a model of scenes"):
        images.render(torch.zeros(1, 3), torch.zeros(1, 3), images.initial(1))
    with pytest.raises(ValueError, match="reconstruct: expected a model of images"):
        scenes.reconstruct(torch.rand(1, 3, 4, 4))
    with pytest.raises(TypeError, match="images: expected floating point"):
        images.reconstruct(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\)"):
        images.reconstruct(torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match="steps: expected at least 0, got -1"):
        images.reconstruct(torch.rand(1, 3, 4, 4), steps=-1)
    wrong = PointSamples(torch.rand(2, 5, 2), torch.rand(2, 1, 3))
    with pytest.raises(ValueError, match=r"values: expected shape \(2, 5, 3\), got \(2, 1, 3\)"):
        images.adapt(wrong)
