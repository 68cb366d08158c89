"""LA-GINR as a whole: encode, decode, reconstruct, tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ginr_fast
from ginr_fast.encoders.lattice import lattice_embedding
from ginr_fast.systems.la_ginr import LaGinr, LaGinrConfig
from ginr_fast.systems.tiling import reconstruct_photograph

SMALL = LaGinrConfig(
    image_size=16,
    patch_size=4,
    encoder_dim=32,
    encoder_depth=1,
    encoder_heads=2,
    encoder_head_dim=16,
    encoder_mlp_dim=48,
    latents=9,
    token_dim=24,
    hidden_dim=32,
    feature_dim=32,
    bandwidths=(8.0, 4.0),
    query_bandwidth=4.0,
)


@pytest.fixture
def model() -> LaGinr:
    torch.manual_seed(0)
    return LaGinr(SMALL).eval()


class Copying(LaGinr):
    """A model that remembers its image exactly and decodes it bilinearly: what tiling and grids
    do is then visible without training."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, None]

    def decode(self, coords, tokens):
        size = self.config.image_size
        images = tokens.view(-1, 3, size, size)
        where = coords.tensor().flip(-1).expand(len(images), -1, -1, -1)
        sampled = torch.nn.functional.grid_sample(
            images, where, align_corners=False, padding_mode="border"
        )
        return sampled.permute(0, 2, 3, 1)


def test_the_published_sizes_are_the_defaults() -> None:
    model = LaGinr(replace(LaGinrConfig(), encoder_depth=1))
    with torch.no_grad():
        tokens = model.encode(torch.rand(1, 3, 178, 178))
    assert tokens.shape == (1, 256, 256)
    assert LaGinrConfig().encoder_depth == 6


def test_forward_is_decode_of_encode(model: LaGinr) -> None:
    images = torch.rand(2, 3, 16, 16)
    coords = torch.rand(40, 2) * 2 - 1
    with torch.no_grad():
        found = model(images, coords)
        assert found.shape == (2, 40, 3)
        assert torch.equal(found, model.decode(coords, model.encode(images)))
        one = model(images[1:], coords)
    assert torch.allclose(found[1:], one, atol=1e-5)


def test_every_parameter_learns(model: LaGinr) -> None:
    model(torch.rand(2, 3, 16, 16), torch.rand(40, 2)).square().mean().backward()
    idle = [
        name
        for name, parameter in model.named_parameters()
        # The key bias shifts all logits of a query alike, which softmax ignores.
        if "key_projection.bias" not in name
        and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert not idle


def test_reconstruct_is_decode_on_pixel_centres(model: LaGinr) -> None:
    images = torch.rand(2, 3, 16, 16)
    found = model.reconstruct(images, scale=1.5)
    assert found.shape == (2, 3, 24, 24)
    with torch.no_grad():
        values = model.decode(ginr_fast.grid(24, 24).tensor(), model.encode(images))
    expected = values.permute(0, 3, 1, 2).clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_rows_in_blocks_change_nothing(model: LaGinr, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = model.encode(torch.rand(2, 3, 16, 16)).detach()
    whole = model.render(tokens, ginr_fast.grid(11, 7))
    monkeypatch.setattr("ginr_fast.systems.image_rendering._POINTS_AT_ONCE", 40)
    assert torch.allclose(model.render(tokens, ginr_fast.grid(11, 7)), whole, atol=1e-5)
    assert model.render(tokens, ginr_fast.grid(0, 7)).shape == (2, 3, 0, 7)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "2", 0.01])
def test_scale_is_checked(model: LaGinr, scale: object) -> None:
    with pytest.raises(ValueError, match="^scale:"):
        model.reconstruct(torch.rand(1, 3, 16, 16), scale=scale)  # type: ignore[arg-type]


def test_images_are_checked(model: LaGinr) -> None:
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, 16, 16\)"):
        model.encode(torch.rand(1, 3, 16, 17))
    with pytest.raises(TypeError, match="images: expected floating point"):
        model.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert model.reconstruct(torch.rand(0, 3, 16, 16)).shape == (0, 3, 16, 16)


def test_lattice_tells_places_apart() -> None:
    for count in (1, 7, 64, 400):
        embedding = lattice_embedding(count, 32, side=8)
        assert embedding.shape == (count, 32)
        assert len(embedding.unique(dim=0)) == count
        likeness = embedding @ embedding.T
        assert (likeness.argmax(1) == torch.arange(count)).all()


def test_latents_start_with_likeness_to_the_patches_around_them(model: LaGinr) -> None:
    config = replace(SMALL, latents=16)
    torch.manual_seed(1)
    model = LaGinr(config)
    likeness = model.encoder.latents @ model.tokenizer.position.T
    assert (likeness.argmax(1) == torch.arange(16)).all()


@pytest.mark.parametrize("scale", [1, 2, 4, 1.5, 0.75])
@pytest.mark.parametrize("shape", [(16, 16), (37, 50), (9, 40), (5, 3)])
def test_tiles_cover_an_image_without_seams(scale: float, shape: tuple[int, int]) -> None:
    model = Copying(SMALL)
    # A linear ramp: bilinear interpolation is exact on it, except within half a pixel of a tile's
    # border, where the value is held.
    rows, columns = torch.linspace(0, 1, shape[0]), torch.linspace(0, 1, shape[1])
    image = torch.stack([rows[:, None].expand(shape), columns.expand(shape), torch.ones(shape)])
    found = reconstruct_photograph(model, image, scale)
    assert found.shape == (3, round(shape[0] * scale), round(shape[1] * scale))
    expected = torch.nn.functional.interpolate(
        image[None], size=found.shape[1:], mode="bilinear", align_corners=False
    )[0]
    assert torch.allclose(found[2], torch.ones_like(found[2]), atol=1e-5)
    step = max(1 / max(size - 1, 1) for size in shape)
    assert (found - expected).abs().max() <= (1e-5 if scale == 1 else 0.6 * step)


@pytest.mark.parametrize("overlap", [0, 1, 8, 15])
def test_any_overlap_reproduces_the_image_at_its_own_scale(overlap: int) -> None:
    image = torch.rand(3, 40, 23)
    found = reconstruct_photograph(Copying(SMALL), image, 1, overlap=overlap, batch_size=3)
    assert torch.allclose(found, image, atol=1e-4)


def test_tiling_names_bad_arguments(model: LaGinr) -> None:
    image = torch.rand(3, 20, 20)
    with pytest.raises(ValueError, match=r"overlap: expected 0 to 15 pixels, got 16"):
        reconstruct_photograph(model, image, overlap=16)
    with pytest.raises(ValueError, match=r"image: expected shape \(3, H, W\)"):
        reconstruct_photograph(model, image[:1])
    with pytest.raises(ValueError, match="image: expected at least one pixel"):
        reconstruct_photograph(model, image[:, :0])
    with pytest.raises(TypeError, match="image: expected floating point"):
        reconstruct_photograph(model, image.byte())
    with pytest.raises(ValueError, match="batch_size"):
        reconstruct_photograph(model, image, batch_size=0)
