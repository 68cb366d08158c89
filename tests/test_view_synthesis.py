"""Few-shot view synthesis: posed views to tokens, tokens and rays to colours."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ginr_fast.encoders import ViewTokenizer
from ginr_fast.rays import camera_rays, random_poses
from ginr_fast.systems.light_fields import (
    IpcLightField,
    IpcLightFieldConfig,
    LaGinrLightField,
    LaGinrLightFieldConfig,
    LightField,
)
from ginr_fast.systems.radiance_views import (
    IpcViews,
    IpcViewsConfig,
    RadianceConfig,
    RadianceViews,
    TransInrViews,
    TransInrViewsConfig,
)
from ginr_fast.systems.view_synthesis import ViewInr, ViewInrConfig

SIZE = 8
ENCODER: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 4,
    "encoder_dim": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_head_dim": 8,
    "encoder_mlp_dim": 24,
}
RADIANCE: dict[str, Any] = {
    **ENCODER,
    "hidden_dim": 16,
    "hidden_layers": 1,
    "frequencies": 3,
    "bandwidth": 4.0,
    "samples": 7,
}
CONFIGS: dict[str, ViewInrConfig] = {
    "trans-inr": TransInrViewsConfig(**RADIANCE, groups=4),
    "trans-inr with directions": TransInrViewsConfig(**RADIANCE, groups=1, view_dim=8),
    "ipc": IpcViewsConfig(**RADIANCE, latents=5),
    "ipc with directions": IpcViewsConfig(**RADIANCE, latents=5, view_dim=8),
    "la-ginr light field": LaGinrLightFieldConfig(
        **ENCODER, latents=6, token_dim=12, hidden_dim=16, feature_dim=36
    ),
    "ipc light field": IpcLightFieldConfig(
        **ENCODER, hidden_dim=16, hidden_layers=1, frequencies=3, latents=5
    ),
}
RADIANCE_NAMES = [name for name in CONFIGS if "light" not in name]
LIGHT_NAMES = [name for name in CONFIGS if "light" in name]


def built(config: ViewInrConfig) -> ViewInr:
    """A model with the same values every time."""
    torch.manual_seed(0)
    if isinstance(config, TransInrViewsConfig):
        return TransInrViews(config)
    if isinstance(config, IpcViewsConfig):
        return IpcViews(config)
    if isinstance(config, LaGinrLightFieldConfig):
        return LaGinrLightField(config)
    assert isinstance(config, IpcLightFieldConfig)
    return IpcLightField(config)


def posed_views(
    batch: int, views: int, distance: float = 4.0, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and rays of cameras around the origin, float32."""
    images = torch.rand(batch, views, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    poses = random_poses(batch * views, distance, seed).reshape(batch, views, 4, 4)
    return images, *camera_rays(poses, SIZE, SIZE, focal=1.03 * SIZE)


def doubled(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


# The tokenizer


@pytest.mark.parametrize("rays", ["origin_direction", "plucker"])
def test_tokens_are_patches_of_colours_and_rays(rays: Any) -> None:
    torch.manual_seed(0)
    tokenizer = ViewTokenizer(SIZE, 4, 10, rays).double()
    images, origins, directions = doubled(*posed_views(2, 3))
    tokens = tokenizer(images, origins, directions)
    assert tokens.shape == (2, 3 * 4, 10)
    embed = tokenizer.patch_tokenizer.embed
    for batch, view, row, column in ((0, 0, 0, 0), (0, 1, 0, 1), (1, 2, 1, 0)):
        numbers = []  # channel by channel, row by row
        for channel in range(9):
            for i in range(4 * row, 4 * row + 4):
                for j in range(4 * column, 4 * column + 4):
                    o, d = origins[batch, view, i, j], directions[batch, view, i, j]
                    if rays == "plucker":
                        d = d / math.sqrt(sum(float(x) ** 2 for x in d))
                        moment = (
                            o[1] * d[2] - o[2] * d[1],
                            o[2] * d[0] - o[0] * d[2],
                            o[0] * d[1] - o[1] * d[0],
                        )
                        pixel = [*images[batch, view, :, i, j], *d, *moment]
                    else:
                        pixel = [*images[batch, view, :, i, j], *o, *d]
                    numbers.append(float(pixel[channel]))
        patch = 2 * row + column
        expected = embed.weight @ torch.tensor(numbers, dtype=torch.float64) + embed.bias
        expected = expected + tokenizer.patch_tokenizer.position[patch]
        assert torch.allclose(tokens[batch, 4 * view + patch], expected, atol=1e-12)


def test_tokenizers_name_bad_arguments() -> None:
    with pytest.raises(ValueError, match="patch_size: expected a divisor of image_size 8, got 3"):
        ViewTokenizer(SIZE, 3)
    with pytest.raises(ValueError, match="image_size: expected a positive integer, got 0"):
        ViewTokenizer(0, 4)
    with pytest.raises(ValueError, match="rays: expected one of origin_direction, plucker, got"):
        ViewTokenizer(SIZE, 4, rays="none")  # type: ignore[arg-type]
    tokenizer = ViewTokenizer(SIZE, 4, 10)
    images, origins, directions = posed_views(2, 3)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, V, 3, 8, 8\)"):
        tokenizer(images[..., 1:], origins, directions)
    with pytest.raises(ValueError, match=r"directions: expected shape \(2, 3, 8, 8, 3\)"):
        tokenizer(images, origins, directions[:, 1:])
    with pytest.raises(TypeError, match="origins: expected dtype float32, got float64"):
        tokenizer(images, origins.double(), directions)
    with pytest.raises(ValueError, match="images: expected at least one view"):
        tokenizer(images[:, :0], origins[:, :0], directions[:, :0])


# Any model


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes(name: str) -> None:
    model = built(CONFIGS[name])
    known = posed_views(2, 3)
    tokens = model.encode(*known)
    decoder: Any = model.decoder
    count = getattr(decoder, "tokens", getattr(CONFIGS[name], "latents", 0))
    assert tokens.shape == (2, count, decoder.token_dim)
    _, origins, directions = posed_views(2, 1, seed=2)
    colors = model.color(origins, directions, tokens)
    assert colors.shape == origins.shape and colors.dtype == torch.float32
    flat = (origins.reshape(2, -1, 3), directions.reshape(2, -1, 3))
    assert torch.equal(model(*known, *flat), model.color(*flat, tokens))
    assert torch.allclose(model.color(*flat, tokens).reshape(colors.shape), colors, atol=1e-6)
    nothing = tuple(part[:0] for part in known)
    assert model(*nothing, *(part[:0] for part in flat)).shape == (0, SIZE**2, 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_support_views_are_a_set_of_any_size(name: str) -> None:
    model = built(CONFIGS[name])
    known = posed_views(2, 4)
    tokens = model.encode(*known)
    order = [2, 0, 3, 1]
    assert torch.allclose(model.encode(*(part[:, order] for part in known)), tokens, atol=1e-5)
    # But which view a picture belongs to does matter, and so does every view.
    swapped = model.encode(known[0][:, order], *known[1:])
    assert not torch.allclose(swapped, tokens, atol=1e-4)
    for views in (1, 3):
        fewer = model.encode(*(part[:, :views] for part in known))
        assert fewer.shape == tokens.shape and not torch.allclose(fewer, tokens, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_unit_of_length_does_not_matter(name: str) -> None:
    config, scale = CONFIGS[name], 1.3 / 4
    changes: dict[str, Any] = {"camera_distance": 1.3}
    if isinstance(config, RadianceConfig):
        changes |= {"near": 2 * scale, "far": 6 * scale}
    large, small = built(config).double(), built(replace(config, **changes)).double()
    images, origins, directions = doubled(*posed_views(1, 2))
    asked = doubled(*posed_views(1, 1, seed=2)[1:])
    expected = large(images, origins, directions, *asked)
    # A ray's parameter counts its direction's lengths, which stay: the world shrinks about it.
    found = small(images, scale * origins, directions, scale * asked[0], asked[1])
    assert torch.allclose(found, expected, atol=1e-10)
    if isinstance(large, RadianceViews) and isinstance(small, RadianceViews):
        weights = large.decoder.weights(large.encode(images, origins, directions))
        depth = large.march(*asked, weights).depth
        assert depth.max() > 0.1
        shrunk = small.march(scale * asked[0], asked[1], weights).depth
        assert torch.allclose(shrunk, scale * depth, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = built(CONFIGS[name])
    _, origins, directions = posed_views(2, 1, seed=2)
    colors = model(*posed_views(2, 3), origins, directions, 0)
    (colors * torch.rand_like(colors)).sum().backward()
    for what, parameter in model.named_parameters():
        assert parameter.grad is not None, what
        # A bias of all keys moves all logits of a query alike: it has no effect.
        assert what.endswith("key_projection.bias") or parameter.grad.abs().max() > 0, what


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_tokens_and_rays(name: str) -> None:
    model = built(CONFIGS[name]).double()
    tokens = model.encode(*doubled(*posed_views(1, 1))).detach().requires_grad_()
    _, origins, directions = doubled(*posed_views(1, 1, seed=2))
    rays = [part[:, 0, 3, 3:5].contiguous().requires_grad_() for part in (origins, directions)]
    assert torch.autograd.gradcheck(
        lambda tokens, *rays: model.color(*rays, tokens), (tokens, *rays), fast_mode=True
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_views_are_the_colours_of_their_rays(name: str) -> None:
    model = built(CONFIGS[name])
    tokens = model.encode(*posed_views(2, 2))
    poses = random_poses(3, 4.0, seed=5)
    center = (3.5, 2.0)
    origins, directions = camera_rays(poses, 5, 7, 6.0, center)
    expected = torch.stack(
        [
            model.color(*(part[view].expand(2, 5, 7, 3) for part in (origins, directions)), tokens)
            for view in range(3)
        ],
        1,
    )
    expected = expected.permute(0, 1, 4, 2, 3).clamp(0, 1)
    for max_rays in (1, 16, 1000):
        found = model.render_view(tokens, poses, 5, 7, 6.0, center=center, max_rays=max_rays)
        assert found.shape == (2, 3, 3, 5, 7) and not found.requires_grad
        assert torch.allclose(found, expected, atol=1e-5)
    assert model.render_view(tokens, poses[0], 5, 7, 6.0).shape == (2, 3, 5, 7)
    assert model.render_view(tokens[:0], poses, 5, 7, 6.0).shape == (0, 3, 3, 5, 7)


@pytest.mark.parametrize("name", ["ipc", "la-ginr light field"])
def test_models_name_bad_arguments(name: str) -> None:
    model = built(CONFIGS[name])
    images, origins, directions = posed_views(2, 3)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, V, 3, 8, 8\), got"):
        model.encode(images[0], origins[0], directions[0])
    with pytest.raises(ValueError, match=r"origins: expected shape \(2, 3, 8, 8, 3\), got"):
        model.encode(images, origins[:1], directions)
    with pytest.raises(ValueError, match="directions: expected shape"):
        model.encode(images, origins, directions[:1])
    with pytest.raises(TypeError, match="images: expected floating point"):
        model.encode(images.to(torch.uint8), origins, directions)
    tokens = model.encode(images, origins, directions)
    with pytest.raises(ValueError, match="directions: expected"):
        model.color(origins, directions[:, :1], tokens)
    with pytest.raises(ValueError, match="tokens: expected shape"):
        model.color(origins, directions, tokens[..., :-1])
    pose = random_poses(1, 4.0, seed=5)[0]
    with pytest.raises(ValueError, match=r"poses: expected shape \(..., 4, 4\), got \(3, 4\)"):
        model.render_view(tokens, pose[:3], 5, 7, 6.0)
    with pytest.raises(TypeError, match="poses: expected a tensor, got list"):
        model.render_view(tokens, pose.tolist(), 5, 7, 6.0)
    for wrong in ({"height": 0}, {"width": 2.0}, {"max_rays": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a positive integer"):
            model.render_view(tokens, pose, **{"height": 5, "width": 7, "focal": 6.0, **wrong})
    with pytest.raises(ValueError, match="focal: expected positive"):
        model.render_view(tokens, pose, 5, 7, -6.0)


def test_configs_name_bad_values() -> None:
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="camera_distance: expected a positive number"):
            LaGinrLightFieldConfig(camera_distance=wrong)
    for near, far in ((2.0, 2.0), (-1.0, 2.0), (3.0, 2.0)):
        with pytest.raises(ValueError, match="near, far: expected 0 <= near < far"):
            TransInrViewsConfig(near=near, far=far)
    with pytest.raises(ValueError, match="patch_size: expected a divisor of image_size 8, got 5"):
        built(replace(CONFIGS["ipc"], patch_size=5))


# Volume rendering, as TransINR's code and IPC's do it


def field_values(
    layers: list[tuple[torch.Tensor, Any]], x: torch.Tensor, view: torch.Tensor, config: Any
) -> list[float]:
    """Colour and density of a field before their activations, number by number."""

    def linear(layer: tuple[torch.Tensor, Any], values: list[float]) -> list[float]:
        weight, bias = (part[0].tolist() for part in layer)
        return [
            b + sum(w * v for w, v in zip(row, values, strict=True))
            for row, b in zip(weight, bias, strict=True)
        ]

    def relu(values: list[float]) -> list[float]:
        return [max(value, 0.0) for value in values]

    top, count = math.log2(config.bandwidth), config.frequencies
    frequencies = [2 ** (top * index / (count - 1)) for index in range(count)]
    phases = [float(component) * w for component in x for w in frequencies]
    h = [math.cos(phase) for phase in phases] + [math.sin(phase) for phase in phases]
    trunk = 1 + config.hidden_layers
    for layer in layers[:trunk]:
        h = relu(linear(layer, h))
    if not config.view_dim:
        return linear(layers[trunk], h)
    length = math.sqrt(sum(float(component) ** 2 for component in view))
    seen = relu(linear(layers[trunk], [float(component) / length for component in view]))
    density = linear(layers[trunk + 1], h)
    return linear(layers[trunk + 3], relu(linear(layers[trunk + 2], h + seen))) + density


def marched(
    layers: list[tuple[torch.Tensor, Any]], o: torch.Tensor, d: torch.Tensor, config: Any
) -> list[float]:
    """The colour of one ray, sample by sample, on white."""
    step = (config.far - config.near) / (config.samples - 1)
    color, clear = [0.0, 0.0, 0.0], 1.0
    total = 0.0
    for index in range(config.samples):
        x = o + d * (config.near + index * step)
        *rgb, density = field_values(layers, x, d, config)
        # Not multiplied by the direction's length; a thousandth behind the last sample.
        interval = step if index + 1 < config.samples else 1e-3
        alpha = 1 - math.exp(-max(density, 0.0) * interval)
        weight = clear * alpha
        color = [c + weight / (1 + math.exp(-v)) for c, v in zip(color, rgb, strict=True)]
        total += weight
        clear *= min(1 - alpha + 1e-10, 1.0)
    return [c + 1 - total for c in color]


@pytest.mark.parametrize("name", RADIANCE_NAMES)
def test_colours_of_rays_are_those_of_the_published_renderer(name: str) -> None:
    config: Any = CONFIGS[name]
    model = built(config).double()
    assert isinstance(model, RadianceViews)
    tokens = model.encode(*doubled(*posed_views(1, 2))).detach()
    tokens = 3 * torch.randn_like(tokens)  # fields that differ from place to place
    weights = model.decoder.weights(tokens).detach()
    last = model.decoder.spec.slots[-1 if not config.view_dim else -5]
    assert last.kind == "bias"  # densities that hide some of what is behind them
    weights[:, last.offset + last.size - 1] += 0.5
    _, origins, directions = doubled(*posed_views(1, 1, seed=2))
    rays = [part[:, 0, ::3, ::3].reshape(1, -1, 3) for part in (origins, directions)]
    assert (rays[1].norm(dim=-1) - 1).abs().max() > 0.05
    found = model.march(*rays, weights)
    layers = [tuple(part.detach() for part in pair) for pair in model.decoder.spec.unpack(weights)]
    expected = torch.tensor(
        [marched(layers, o, d, config) for o, d in zip(*(part[0] for part in rays), strict=True)],
        dtype=torch.float64,
    )
    assert 0.05 < found.opacity.mean() < 0.98
    assert torch.allclose(found.color[0], expected, atol=1e-9)
    # What trains is float32.
    single = model.float().march(*(part.float() for part in rays), weights.float()).color
    assert (single[0] - expected).norm() < 2e-5 * expected.norm()


def test_colours_come_from_the_weights_that_tokens_give() -> None:
    model = built(CONFIGS["trans-inr"])
    assert isinstance(model, RadianceViews)
    tokens = model.encode(*posed_views(2, 2))
    _, *rays = posed_views(2, 1, seed=2)
    assert torch.equal(
        model.color(*rays, tokens), model.march(*rays, model.decoder.weights(tokens)).color
    )


def test_samples_move_along_rays_by_a_seed() -> None:
    model = built(CONFIGS["trans-inr"])
    tokens = model.encode(*posed_views(2, 2))
    _, *rays = posed_views(2, 1, seed=2)
    still = model.color(*rays, tokens)
    assert torch.equal(model.color(*rays, tokens, 3), model.color(*rays, tokens, 3))
    assert not torch.equal(model.color(*rays, tokens, 3), still)
    assert not torch.equal(model.color(*rays, tokens, 3), model.color(*rays, tokens, 4))


def test_published_sizes() -> None:
    trans_inr, ipc = TransInrViewsConfig(), IpcViewsConfig()
    for config in (trans_inr, ipc):
        assert (config.image_size, config.patch_size, config.encoder_dim) == (128, 8, 768)
        assert (config.near, config.far, config.samples) == (2.0, 6.0, 128)
        spec = config.spec
        assert (spec.layers, spec.hidden_dim, spec.input_dim) == (6, 256, 120)
        assert spec.encoding is not None and len(spec.encoding.frequencies) == 20
        assert spec.encoding.frequencies[0] == 1.0
        assert spec.encoding.frequencies[-1] == pytest.approx(256.0)
    assert trans_inr.groups == 32 and ipc.latents == 256 and ipc.modulated_layer == 1
    light = LaGinrLightFieldConfig()
    assert (light.bandwidths, light.query_bandwidth) == ((8.0, 4.0), 2.0)
    assert (light.feature_dim, light.hidden_dim, light.latents) == (252, 256, 256)


# Light fields


@pytest.mark.parametrize("name", LIGHT_NAMES)
def test_light_fields_decode_pluecker_coordinates(name: str) -> None:
    model = built(replace(CONFIGS[name], camera_distance=2.5)).double()
    assert isinstance(model, LightField)
    tokens = model.encode(*doubled(*posed_views(2, 2, distance=2.5)))
    _, o, d = doubled(*posed_views(2, 1, distance=2.5, seed=2))
    unit = d / d.square().sum(-1, keepdim=True).sqrt()
    a, b = (o / 2.5).unbind(-1), unit.unbind(-1)
    moment = torch.stack(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]], -1
    )
    coords = torch.cat([unit, moment], -1)
    assert coords.abs().max() <= 1 and moment.abs().max() > 0.3
    expected = model.decoder(coords, tokens) + 0.5
    assert torch.allclose(model.color(o, d, tokens), expected, atol=1e-12)
    # A ray is the same whatever its first point and the length of its direction, seed or not.
    moved = model.color(o + 0.7 * d, 2 * d, tokens, 5)
    assert torch.allclose(moved, expected, atol=1e-10)


@pytest.mark.parametrize("name", LIGHT_NAMES)
def test_rays_shared_by_all_scenes_give_the_same_colours(name: str) -> None:
    model = built(CONFIGS[name])
    tokens = model.encode(*posed_views(3, 2))
    _, origins, directions = posed_views(1, 1, seed=2)
    shared = [part[0].expand(3, *part.shape[1:]) for part in (origins, directions)]
    expected = model.color(*(part.contiguous() for part in shared), tokens)
    assert torch.allclose(model.color(*shared, tokens), expected, atol=1e-5)
