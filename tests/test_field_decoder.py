"""FieldDecoder: values, streaming, and views in pieces that equal the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ginr_fast
from ginr_fast.decoders.field import FieldDecoder
from ginr_fast.rays import camera_rays, orbit_poses

IMAGE = ginr_fast.FieldSpec(
    coord_dim=2,
    out_dim=3,
    hidden_dim=12,
    hidden_layers=1,
    activation="sine",
    w0=5.0,
    out_activation="sine",
)
SCENE = ginr_fast.FieldSpec(
    coord_dim=3, out_dim=4, hidden_dim=12, hidden_layers=1, activation="sine", w0=5.0
)
MARCH = {"near": 0.8, "far": 1.8, "samples": 9}


def weights_of(spec: ginr_fast.FieldSpec, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 0.4 * torch.randn(count, spec.parameter_count, generator=generator)


def test_it_evaluates_fields_and_has_no_parameters() -> None:
    decoder, weights = FieldDecoder(IMAGE), weights_of(IMAGE, 2).requires_grad_()
    assert not list(decoder.parameters()) and not decoder.state_dict()
    found = decoder(ginr_fast.grid(5, 4), weights)
    assert torch.equal(found, ginr_fast.field_mlp(ginr_fast.grid(5, 4), weights, IMAGE))
    found.sum().backward()
    assert weights.grad is not None and weights.grad.abs().sum() > 0


def test_scale_and_bias_apply_to_values() -> None:
    weights, where = weights_of(IMAGE), ginr_fast.grid(6, 6)
    plain = FieldDecoder(IMAGE)(where, weights)
    torch.testing.assert_close(FieldDecoder(IMAGE, 0.5, 0.25)(where, weights), 0.5 * plain + 0.25)


def test_packed_weights_take_the_place_of_tokens(tmp_path: Path) -> None:
    decoder, weights, where = (
        FieldDecoder(IMAGE, 0.5, 0.5),
        weights_of(IMAGE),
        ginr_fast.grid(20, 13),
    )
    expected = decoder(where, weights)
    blocks = [block for _, block in ginr_fast.stream(decoder, where, weights, max_points=30)]
    assert len(blocks) == 10
    torch.testing.assert_close(torch.cat(blocks, 1), expected)
    path = ginr_fast.decode_to_file(decoder, where, weights, tmp_path / "image.png", 30)
    pixels = np.asarray(Image.open(path)).astype(float)
    assert np.abs(pixels - 255 * expected[0].numpy()).max() <= 0.51


@pytest.mark.parametrize("occupied", [False, True])
def test_a_view_is_its_rays_whatever_the_pieces(occupied: bool) -> None:
    weights, poses = weights_of(SCENE, 2), orbit_poses(3, radius=1.3)
    decoder = FieldDecoder(SCENE)
    rays = [part.expand(2, 3, 7, 10, 3) for part in camera_rays(poses, 7, 10, 9.0)]
    cells = ginr_fast.OccupancyGrid.build(weights, SCENE, resolution=8) if occupied else None
    expected = decoder.render(*rays, weights, **MARCH, occupancy=cells)
    for max_rays in (1, 40, 1000):
        found = decoder.render_view(
            weights, poses, 7, 10, 9.0, **MARCH, occupancy=cells, max_rays=max_rays
        )
        for name, got, want in zip(found._fields, found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, msg=name)
    assert expected.color.std() > 1e-2 and expected.depth.std() > 1e-2


def test_one_pose_no_pose_and_another_principal_point() -> None:
    weights, decoder = weights_of(SCENE), FieldDecoder(SCENE)
    pose = orbit_poses(1, radius=1.3)[0]
    one = decoder.render_view(weights, pose, 8, 8, 9.0, **MARCH)
    assert one.color.shape == (1, 8, 8, 3) and one.depth.shape == (1, 8, 8)
    assert not one.color.requires_grad
    none = decoder.render_view(weights, torch.empty(0, 4, 4), 8, 8, 9.0, **MARCH)
    assert none.color.shape == (1, 0, 8, 8, 3)
    # Moving the principal point by two columns moves the picture by as many.
    moved = decoder.render_view(weights, pose, 8, 8, 9.0, **MARCH, center=(6.0, 4.0))
    torch.testing.assert_close(moved.color[:, :, 2:], one.color[:, :, :-2])


def test_double_precision_stays() -> None:
    weights, pose = weights_of(SCENE).double(), orbit_poses(1, radius=1.3)[0]
    found = FieldDecoder(SCENE).render_view(weights, pose, 4, 4, 9.0, **MARCH)
    assert found.color.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"height": 0}, "height"),
        ({"width": 2.5}, "width"),
        ({"max_rays": 0}, "max_rays"),
        ({"poses": torch.eye(3)}, "poses"),
        ({"poses": [1.0]}, "poses"),
        ({"weights": torch.zeros(1, 5)}, "weights"),
        ({"focal": -1.0}, "focal"),
        ({"samples": 0}, "samples"),
        ({"convention": "other"}, "convention"),
    ],
)
def test_bad_input_is_named(change: dict, name: str) -> None:
    call = {
        "weights": weights_of(SCENE),
        "poses": torch.eye(4),
        "height": 4,
        "width": 4,
        "focal": 5.0,
        **MARCH,
    } | change
    with pytest.raises((TypeError, ValueError), match=name):
        FieldDecoder(SCENE).render_view(**call)


def test_construction_is_checked() -> None:
    with pytest.raises(TypeError, match="spec"):
        FieldDecoder("field")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="output_scale"):
        FieldDecoder(SCENE, output_scale=float("nan"))
    assert "parameters=" in repr(FieldDecoder(SCENE))
