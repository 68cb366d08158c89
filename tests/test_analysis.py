"""The paper's analyses: its published counts, similarity of bases, interpolation, cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ginr_fast
from ginr_fast.analysis.decoded import pictures_of
from ginr_fast.analysis.inference import PUBLISHED, SIZES, count, measure, published
from ginr_fast.analysis.pictures import (
    GREEN,
    CameraOptions,
    bilinear,
    depth_picture,
    framed_sheet,
    image_of,
    orbit,
)
from ginr_fast.analysis.similarity import basis_similarity, draw_similarity
from ginr_fast.ops.volume_render.convention import RenderedRays
from ginr_fast.rays import camera_rays, orbit_poses
from ginr_fast.systems.mnif import MNIF_SIZES, Mnif, MnifConfig

SMALL = MnifConfig(hidden_layers=1, hidden_dim=8, mixtures=5, latent_dim=7)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def printed(text: str) -> tuple[float, float]:
    """A figure of the paper and half its last digit: ``"4.6 M"`` is (4.6e6, 0.05e6)."""
    number, unit = text.split()
    factor = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    decimals = len(number.partition(".")[2])
    return float(number) * factor, 0.5 * 10**-decimals * factor * 1.0001


# Tables 1 to 3


@pytest.mark.parametrize("name", sorted(MNIF_SIZES))
def test_the_published_counts_follow_from_the_sizes(name: str) -> None:
    config = MNIF_SIZES[name]
    paper = published(config)
    assert paper is not None
    # What the tables print for (S) is the model of scenes; the network of (L) is that of images.
    small = name.endswith("-s")
    if small:
        config = replace(config, latent_dim=MNIF_SIZES["scenes-s"].latent_dim)
    for value, text in (
        (count(MNIF_SIZES["scenes-s"] if small else config).learnable, paper.learnable),
        (count(MNIF_SIZES["scenes-s" if small else "images-l"]).inference, paper.inference),
        (count(config).multiply_adds, paper.multiply_adds),
    ):
        figure, half = printed(text)
        assert abs(value - figure) <= half, (value, text)


@pytest.mark.parametrize(
    ("kind", "sizes", "learnable", "inference"),
    [
        ("shared", (2, 64, 64, 64), "557.2 K", "8.7 K"),
        ("layerwise", (2, 64, 64, 256), "557.2 K", "8.7 K"),
        ("latent", (2, 64, 64, 256), "623.0 K", "8.7 K"),
        ("latent", (2, 64, 16, 256), "155.8 K", "8.7 K"),
        ("latent", (2, 64, 256, 256), "2.5 M", "8.7 K"),
        ("latent", (2, 64, 1024, 256), "10.0 M", "8.7 K"),
        ("latent", (5, 128, 256, 256), "21.8 M", "83.3 K"),
        ("latent", (5, 128, 256, 512), "22.3 M", "83.3 K"),
        ("latent", (5, 128, 256, 1024), "23.2 M", "83.3 K"),
    ],
)
def test_the_counts_of_the_ablations(
    kind: str, sizes: tuple[int, ...], learnable: str, inference: str
) -> None:
    """Table 4."""
    config = MnifConfig("image", *sizes, coefficients=kind)
    found = count(config)
    for value, text in ((found.learnable, learnable), (found.inference, inference)):
        figure, half = printed(text)
        assert abs(value - figure) <= half, (value, text)


def test_counted_parameters_are_those_of_the_model() -> None:
    for kind in ("latent", "layerwise", "shared"):
        config = replace(SMALL, coefficients=kind)
        model = Mnif(config)
        assert count(config).learnable == sum(p.numel() for p in model.parameters())
    assert count(SMALL, 10).multiply_adds == 100 * (2 * 8 + 8 * 8 + 8 * 3) + 7 * 5 * 3
    with pytest.raises(ValueError, match="size"):
        count(SMALL, 0)


def test_an_unpublished_size_has_no_row() -> None:
    assert published(SMALL) is None
    assert {key[0] for key in PUBLISHED} == set(SIZES)


# Measurements


@pytest.mark.parametrize("modality", ["image", "voxels", "scene"])
def test_costs_are_measured(modality: str) -> None:
    model = Mnif(replace(SMALL, modality=modality, samples=4))
    latent = torch.zeros(1, 7)
    found = measure(model, latent, size=16, rounds=2)
    assert 0 < found.seconds < 60
    assert found.peak_bytes is None or found.peak_bytes >= 0
    if modality == "scene":
        assert measure(model, latent, size=16, rounds=1, occupancy=True).seconds > 0
    else:
        with pytest.raises(ValueError, match="occupancy"):
            measure(model, latent, size=16, rounds=1, occupancy=True)
    with pytest.raises(ValueError, match="rounds"):
        measure(model, latent, size=16, rounds=0)


def test_measured_memory_is_that_of_the_output() -> None:
    model = Mnif(replace(SMALL, modality="voxels"))
    found = measure(model, torch.zeros(1, 7), size=160, rounds=1)
    if found.peak_bytes is None:
        pytest.skip("peak memory cannot be read here")
    values = 4 * 160**3
    assert values <= found.peak_bytes < 8 * values


# Similarity of the bases


def test_similarity_of_known_bases(tmp_path: Path) -> None:
    model = Mnif(replace(SMALL, mixtures=3))
    with torch.no_grad():
        for base in model.bases:
            base.zero_()
            base.flatten(1)[0, 0] = 2.0
            base.flatten(1)[1, 0] = -0.5  # opposite: as alike as can be
            base.flatten(1)[2, 0] = 1.0
            base.flatten(1)[2, 1] = 1.0
    layers = basis_similarity(model)
    assert [layer.layer for layer in layers] == [0, 1, 2]
    r = 0.5**0.5
    expected = torch.tensor([[0, 1, r], [1, 0, r], [r, r, 0]])
    for layer in layers:
        torch.testing.assert_close(layer.matrix, expected)
        assert layer.mean == pytest.approx((1 + 2 * r) / 3)
        assert layer.highest == pytest.approx(1.0)
    draw_similarity(layers, tmp_path / "new" / "bases.png")
    assert Image.open(tmp_path / "new" / "bases.png").width > 300


def test_one_basis_is_like_no_other() -> None:
    layers = basis_similarity(Mnif(replace(SMALL, mixtures=1)))
    assert [(layer.mean, layer.highest) for layer in layers] == [(0.0, 0.0)] * 3


# Pictures


def test_bilinear_interpolation() -> None:
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 2.0]])
    found = bilinear(corners, 5)
    rows, columns = torch.meshgrid(torch.linspace(0, 2, 5), torch.linspace(0, 1, 5), indexing="ij")
    torch.testing.assert_close(found, torch.stack([columns, rows], dim=-1))
    with pytest.raises(ValueError, match="corners"):
        bilinear(corners[:3], 5)
    with pytest.raises(ValueError, match="steps"):
        bilinear(corners, 1)


def test_framed_pictures_are_green_around() -> None:
    pictures = [np.full((32, 32, 3), value, dtype=np.uint8) for value in (10, 20, 30, 40)]
    sheet = np.asarray(framed_sheet(pictures, 2, {0, 3}))
    assert (sheet[0, :36] == GREEN).all() and (sheet[0, 40:] == 255).all()
    assert (sheet[18, 18] == 10).all() and (sheet[-18, -18] == 40).all()


def test_an_image_at_any_size_is_the_model_s() -> None:
    model, latent = Mnif(replace(SMALL, initial_gain=5.0)), torch.randn(1, 7)
    with torch.no_grad():
        values = model.decode(ginr_fast.grid(9, 9), latent)[0]
    expected = ((0.5 * values + 0.5) * 255).round().to(torch.uint8).numpy()
    assert (image_of(model, latent, 9) == expected).mean() > 0.99
    assert image_of(model, latent, 50).shape == (50, 50, 3)


def test_an_orbit_is_what_the_model_renders() -> None:
    model = Mnif(replace(SMALL, modality="scene", samples=6, w0=5.0, initial_gain=5.0))
    latent = torch.randn(1, 7)
    camera = CameraOptions(elevation=30.0, azimuth=10.0)
    views = list(orbit(model, latent, 3, 8, camera))
    rays = camera_rays(orbit_poses(3, 1.3, 30.0, start=10.0), 8, 8, 131.25 / 128 * 8)
    with torch.no_grad():
        expected = model.render(*(part[None] for part in rays), latent)
    found = torch.stack([seen.color for seen in views])
    torch.testing.assert_close(found, expected.color[0], rtol=1e-5, atol=1e-5)
    skipped = torch.stack([seen.color for seen in orbit(model, latent, 3, 8, camera, True)])
    assert (skipped - found).abs().max() < 1 / 255


def test_depth_is_brighter_the_nearer() -> None:
    opacity = torch.tensor([1.0, 1.0, 0.5, 0.0])
    depth = torch.tensor([0.8, 1.8, 0.4, 0.0])  # the third: half of what is at 0.8
    found = depth_picture(RenderedRays(torch.zeros(4, 3), opacity, depth), 0.8, 1.8)
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, 0.0, 0.5, 0.0]))
    assert found.shape == (4, 3)


@pytest.mark.parametrize("modality", ["image", "voxels", "scene"])
def test_every_modality_has_a_picture(modality: str) -> None:
    model = Mnif(replace(SMALL, modality=modality, samples=4, initial_gain=3.0, w0=4.0))
    found = list(pictures_of(model, torch.randn(2, 7), 20, CameraOptions()))
    assert [picture.shape for picture in found] == [(20, 20, 3)] * 2
    assert found[0].dtype == np.uint8 and found[0].std() > 0


def test_a_shape_without_surface_is_white() -> None:
    model = Mnif(replace(SMALL, modality="voxels"))
    with torch.no_grad():
        for base in model.bases:
            base.zero_()
    assert next(pictures_of(model, torch.zeros(1, 7), 8, CameraOptions())).min() == 255
