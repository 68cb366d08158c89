"""Test-time optimisation: what is fitted, what it is fitted to, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_training import MODEL

import ginr_fast
from ginr_fast.ops.field_mlp import op as field_op
from ginr_fast.ops.locality_decode import op as locality_op
from ginr_fast.ops.locality_decode import squared_error as locality_error
from ginr_fast.rays import camera_rays, orbit_poses
from ginr_fast.systems.audio_inr import AudioIpc, AudioIpcConfig
from ginr_fast.systems.fit_instances import (
    fit_clips,
    fit_fields,
    fit_images,
    fit_views,
    point_draw,
    ray_draw,
)
from ginr_fast.systems.fitted import Fitted
from ginr_fast.systems.fitting import FittingOptions
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.ipc import Ipc, IpcConfig
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.light_fields import LaGinrLightField, LaGinrLightFieldConfig
from ginr_fast.systems.mnif import Mnif, MnifConfig
from ginr_fast.systems.radiance_views import TransInrViews, TransInrViewsConfig
from ginr_fast.systems.samples import PointSamples, RaySamples
from ginr_fast.systems.trans_inr import TransInr, TransInrConfig

ENCODER: dict[str, Any] = {
    "encoder_dim": 32,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_head_dim": 16,
    "encoder_mlp_dim": 48,
}
FIELD: dict[str, Any] = {"hidden_dim": 32, "hidden_layers": 1, "frequencies": 8, "bandwidth": 8.0}
IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4, **ENCODER, **FIELD}
SIZE = ginr_fast.grid(16, 16)


def model_of(name: str) -> ImageInr:
    torch.manual_seed(0)
    if name == "la_ginr":
        return LaGinr(MODEL).eval()
    if name == "trans_inr":
        return TransInr(TransInrConfig(**IMAGE, groups=4)).eval()
    return Ipc(IpcConfig(**IMAGE, latents=9)).eval()


def photographs(count: int = 2) -> torch.Tensor:
    """Smooth images in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, 16, mode="bilinear")


def errors(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (found - wanted).square().flatten(1).mean(1)


CASES = [
    (name, target)
    for name in ("la_ginr", "trans_inr", "ipc")
    for target in ("tokens", "weights", "decoder")
    if (name, target) != ("la_ginr", "weights")
]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_every_target_comes_closer_and_the_model_stays(name: str, target: Any) -> None:
    model, images = model_of(name), photographs()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    start = model.reconstruct(images)
    fitted = fit_images(model, images, FittingOptions(30, target))
    found = fitted.images(SIZE)
    assert (errors(found, images) < 0.95 * errors(start, images)).all()
    assert torch.allclose(found, fitted.decode(SIZE).permute(0, 3, 1, 2).clamp(0, 1), atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert torch.equal(model.reconstruct(images), start)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_an_instance_does_not_depend_on_the_batch(name: str, target: Any) -> None:
    model, images = model_of(name).double(), photographs(3).double()
    options = FittingOptions(5, target, points=100)
    together = fit_images(model, images, options).decode(SIZE)
    alone = fit_images(model, images[1:2], options).decode(SIZE)
    assert torch.allclose(together[1:2], alone, rtol=0, atol=1e-9)


def test_the_steps_are_those_of_adam_on_the_published_formula() -> None:
    model, images = model_of("la_ginr").double(), photographs().double()
    with torch.no_grad():
        tokens = model.encode(images)
    expected = tokens.clone().requires_grad_()
    optimizer = torch.optim.Adam([expected], lr=0.02)
    for _ in range(4):
        with ginr_fast.backend("reference"):
            found = model.decode(SIZE, expected)
        loss = 2 * (found - images.permute(0, 2, 3, 1)).square().mean()  # summed over both
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fitted = fit_images(model, images, FittingOptions(4, learning_rate=0.02))
    moved = (expected - tokens).norm()
    assert (fitted.instances - expected).norm() < 1e-6 * moved


def test_with_tokens_no_gradient_of_a_parameter_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, ...]] = []
    for module, name, place in (
        (locality_op, "_backward_op", -1),
        (locality_error, "Backward", 1),
        (field_op, "_backward_op", -1),
    ):
        original = getattr(module, name)

        def spy(*arguments: Any, original: Any = original, place: int = place) -> Any:
            asked.append(tuple(arguments[place]))
            return original(*arguments)

        monkeypatch.setattr(module, name, spy)
    fit_images(model_of("la_ginr"), photographs(), FittingOptions(2))
    assert asked == [("keys", "values")] * 2
    asked.clear()
    with ginr_fast.backend("reference"):
        fit_images(model_of("la_ginr"), photographs(), FittingOptions(1))
    assert asked == []
    fit_images(model_of("trans_inr"), photographs(), FittingOptions(3, "weights"))
    assert asked == [("weights",)] * 3
    asked.clear()
    fit_images(model_of("la_ginr"), photographs(1), FittingOptions(1, "decoder"))
    assert "band_weight" in asked[0] and "query_weight" in asked[0]


@pytest.mark.parametrize("target", ["tokens", "decoder"])
def test_an_error_on_the_way_leaves_the_model_as_it_was(target: Any) -> None:
    model = model_of("la_ginr")

    def fail(step: int, fitted: Fitted) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fit_images(model, photographs(), FittingOptions(2, target), fail)
    assert all(each.requires_grad and each.grad is None for each in model.parameters())


def test_steps_are_seen_and_can_be_ended() -> None:
    model, images = model_of("la_ginr"), photographs(1)
    seen: list[float] = []

    def look(step: int, fitted: Fitted) -> bool:
        assert step == len(seen) + 1 and not fitted.instances.requires_grad
        seen.append(float(errors(fitted.images(SIZE), images)))
        return step == 7

    fitted = fit_images(model, images, FittingOptions(50), look)
    assert len(seen) == 7 and seen[-1] < seen[0]
    assert float(errors(fitted.images(SIZE), images)) == seen[-1]


@pytest.mark.parametrize("target", ["tokens", "weights", "decoder"])
def test_no_instance_at_all(target: Any) -> None:
    fitted = fit_images(model_of("ipc"), torch.zeros(0, 3, 16, 16), FittingOptions(2, target))
    assert fitted.images(SIZE).shape == (0, 3, 16, 16) and len(fitted) == 0


def test_fitting_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        fitted = fit_images(model_of("ipc"), photographs(), FittingOptions(1))
    assert not fitted.instances.requires_grad


def test_points_of_a_step_follow_from_seed_and_step() -> None:
    values = torch.rand(2, 16, 16, 3)
    options = FittingOptions(points=40, seed=3)
    first, again = (point_draw(SIZE, values, options) for _ in range(2))
    samples, other = first(5), first(6)
    assert isinstance(samples.coords, torch.Tensor) and isinstance(other.coords, torch.Tensor)
    assert torch.equal(samples.coords, again(5).coords)
    assert not torch.equal(samples.coords, other.coords)
    assert len(samples.coords.unique(dim=0)) == 40
    # Values belong to their coordinates.
    places = ((samples.coords + 1) * 8 - 0.5).round().long()
    assert torch.equal(samples.values, values[:, places[:, 0], places[:, 1]])
    rays = torch.rand(1, 30, 3)
    assert ray_draw(rays, rays, rays, FittingOptions(), 1024)(0).origins.shape == (1, 30, 3)
    with pytest.raises(ValueError, match="points: expected at most the 256 that there are"):
        point_draw(SIZE, values, FittingOptions(points=257))(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1"),
        ({"points": 0}, "points: expected at least 1"),
        ({"target": "all"}, "target: expected one of tokens, weights, decoder"),
        ({"learning_rate": 0.0}, "learning_rate: expected above 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FittingOptions(**options)
    with pytest.raises(TypeError, match="steps: expected an integer"):
        FittingOptions(steps=1.5)  # type: ignore[arg-type]


def test_a_model_that_decodes_otherwise_is_fitted_to_what_it_shows() -> None:
    class Dimmed(LaGinr):
        def decode(self, coords: Any, tokens: torch.Tensor) -> torch.Tensor:
            return 0.25 * super().decode(coords, tokens)

    torch.manual_seed(0)
    model, images = Dimmed(MODEL).eval(), 0.1 + 0.05 * photographs()
    fitted = fit_images(model, images, FittingOptions(40))
    assert (errors(fitted.images(SIZE), images) < errors(model.reconstruct(images), images)).all()


def test_la_ginr_has_no_packed_weights() -> None:
    with pytest.raises(ValueError, match="target: expected 'tokens' or 'decoder' for a LaGinr"):
        fit_images(model_of("la_ginr"), photographs(), FittingOptions(1, "weights"))


@pytest.mark.parametrize("target", ["tokens", "weights", "decoder"])
def test_clips(target: Any) -> None:
    torch.manual_seed(0)
    config = AudioIpcConfig(length=128, patch_size=16, **ENCODER, **FIELD, latents=9)
    model = AudioIpc(config).eval()
    waves = torch.sin(torch.linspace(0, 20, 128)) * torch.tensor([[0.3], [0.8]])
    found = fit_clips(model, waves, FittingOptions(40, target)).decode(ginr_fast.grid(128))
    assert (errors(found[..., 0], waves) < 0.5 * errors(model.reconstruct(waves), waves)).all()


@pytest.mark.parametrize("target", ["tokens", "weights", "decoder"])
@pytest.mark.parametrize("modality", ["image", "scene"])
def test_fields_of_an_mnif(target: Any, modality: Any) -> None:
    torch.manual_seed(0)
    model = Mnif(MnifConfig(modality, 1, 16, 6, 8, w0=10.0, samples=6))
    latents = model.initial_latents(torch.randn(2, 8), 1.0)
    samples: PointSamples | RaySamples = PointSamples(SIZE, photographs().permute(0, 2, 3, 1))
    if modality == "scene":
        samples = RaySamples(torch.rand(2, 40, 3), torch.rand(2, 40, 3), torch.rand(2, 40, 3) * 0.3)
    seen: list[torch.Tensor] = []

    def look(step: int, fitted: Fitted) -> None:
        if isinstance(samples, RaySamples):
            rays = samples.origins, samples.directions
            part = fitted.parts[0]
            if len(part.instances) == 2:
                seen.append(errors(part.model.render(*rays, part.instances).color, samples.colors))
        elif len(fitted) == 2:
            seen.append(errors(fitted.decode(samples.coords), samples.values))

    fitted = fit_fields(model, latents, lambda step: samples, FittingOptions(30, target), look)
    assert len(fitted) == 2 and len(fitted.parts) == (2 if target == "decoder" else 1)
    if target != "decoder":
        assert (seen[-1] < seen[0]).all()
    elif isinstance(samples, PointSamples):
        before = errors(model.decode(SIZE, latents), samples.values)
        assert (errors(fitted.decode(SIZE), samples.values) < before).all()
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize(
    ("name", "target"),
    [("light", "tokens"), ("light", "decoder")]
    + [("radiance", target) for target in ("tokens", "weights", "decoder")],
)
def test_views(name: str, target: Any) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4, **ENCODER}
    model: Any = (
        LaGinrLightField(
            LaGinrLightFieldConfig(**sizes, latents=8, token_dim=16, hidden_dim=32, feature_dim=36)
        )
        if name == "light"
        else TransInrViews(
            TransInrViewsConfig(**sizes, hidden_dim=32, hidden_layers=1, samples=8, groups=4)
        )
    ).eval()
    poses = orbit_poses(2, radius=4.0)
    origins, directions = camera_rays(poses, 8, 8, focal=9.0)
    rays = origins.expand(2, -1, -1, -1, -1), directions.expand(2, -1, -1, -1, -1)
    images = torch.rand(2, 2, 3, 1, 1).expand(-1, -1, -1, 8, 8).contiguous()
    with torch.no_grad():
        start = model.color(*rays, model.encode(images, *rays))
    fitted = fit_views(model, images, *rays, FittingOptions(30, target, 0.01, points=64))
    wanted = images.movedim(2, -1)
    assert (errors(fitted.color(*rays), wanted) < 0.97 * errors(start, wanted)).all()
