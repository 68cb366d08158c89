"""OccupancyGrid: what it marks, and that rendering with it gives the dense picture."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from field_cases import NATIVE, engine, make_spec, make_weights, threads
from test_volume_render import RANGE, make_rays

import ginr_fast
from ginr_fast import BackendError, FieldSpec, OccupancyGrid, volume_render
from ginr_fast.ops.volume_render.convention import CONVENTIONS

BOX_SPEC = make_spec(coord_dim=3, out_dim=4, hidden_dim=9, hidden_layers=1)
HALF = 0.35


def soft_box(half=HALF, sharpness=40.0, density=8.0):
    """A ReLU field: density within |x|, |y|, |z| < half, falling to well below 0 outside; the
    colour varies with the place.

    max(x, -x) a coordinate, then half - that, summed where it is negative."""
    first, first_bias = torch.zeros(9, 3), torch.zeros(9)
    for axis in range(3):
        first[2 * axis, axis], first[2 * axis + 1, axis] = 1.0, -1.0
        first[6 + axis, axis], first_bias[6 + axis] = 1.0, 2.0  # x + 2 > 0: the colour's input
    second, second_bias = torch.zeros(9, 9), torch.zeros(9)
    for axis in range(3):  # how far beyond the box
        second[axis, 2 * axis] = second[axis, 2 * axis + 1] = 1.0
        second_bias[axis] = -half
        second[3 + axis, 6 + axis] = 1.0
    last, last_bias = torch.zeros(4, 9), torch.tensor([-0.5, -0.5, -0.5, density])
    last[3, :3] = -sharpness * density
    for axis in range(3):
        last[axis, 3 + axis] = 0.5
    parameters = [first, first_bias, second, second_bias, last, last_bias]
    return BOX_SPEC.pack([p.unsqueeze(0) for p in parameters])


def bits_of(grid):
    """(B, R, R, R) booleans, read bit by bit as documented."""
    resolution = grid.resolution
    out = torch.zeros(grid.batch, *(resolution,) * 3, dtype=torch.bool)
    for b, row in enumerate(grid.bits.tolist()):
        for x, y, z in itertools.product(range(resolution), repeat=3):
            place = (x * resolution + y) * resolution + z
            out[b, x, y, z] = bool((row[place // 32] >> (place % 32)) & 1)
    return out


def full(batch, resolution, stop=0.0):
    words = -(-(resolution**3) // 32)
    bits = torch.full((batch, words), -1, dtype=torch.int32)
    return OccupancyGrid(bits, resolution, (-1.0,) * 3, (1.0,) * 3, stop)


def render(rays, weights, spec, **settings):
    with torch.no_grad():
        return volume_render(*rays, weights, spec, **{**RANGE, "samples": 32, **settings})


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("batch", "count", "samples"), [(1, 130, 32), (3, 5, 65), (2, 9, 1)])
def test_a_full_grid_gives_the_dense_picture(batch, count, samples, convention, seed, name):
    spec = make_spec(coord_dim=3, out_dim=4, activation="sine", w0=5.0)
    rays, weights = make_rays(batch, count), make_weights(spec, batch)
    settings = {"samples": samples, "convention": convention, "seed": seed}
    with engine(name):
        want = render(rays, weights, spec, **settings)
        for resolution in (1, 3, 16):
            got = render(rays, weights, spec, **settings, occupancy=full(batch, resolution))
            for a, b in zip(got, want, strict=True):
                assert a.shape == b.shape and (a - b).abs().max() <= 1e-6


def test_the_layout_of_bits():
    """A box off centre, other along each axis, and two instances: bit (x·R + y)·R + z."""
    resolution = 11
    weights = soft_box().repeat(2, 1)
    weights[1, -1] = -1.0  # the density's bias: nothing anywhere
    grid = OccupancyGrid.build(
        weights,
        BOX_SPEC,
        low=(-1, -0.9, -2),
        high=(1.2, 1, 1),
        resolution=resolution,
        convention="trans_inr",
        points=3,
    )
    assert grid.bits.dtype == torch.int32 and grid.bits.shape == (2, -(-(11**3) // 32))
    assert (grid.low, grid.high) == ((-1.0, -0.9, -2.0), (1.2, 1.0, 1.0))
    bits = bits_of(grid)
    assert not bits[1].any()
    corners = [torch.linspace(a, b, 12) for a, b in zip(grid.low, grid.high, strict=True)]
    for cell in itertools.product(range(resolution), repeat=3):
        spans = [
            (axis[i].item(), axis[i + 1].item()) for axis, i in zip(corners, cell, strict=True)
        ]
        widths = [b - a for a, b in spans]
        if all(a < HALF and b > -HALF for a, b in spans):  # touches the box
            assert bits[0][cell]
        # Cells further off than the neighbour of a cell that touches it.
        if any(
            a - w > HALF + 0.03 or b + w < -HALF - 0.03
            for (a, b), w in zip(spans, widths, strict=True)
        ):
            assert not bits[0][cell]
    assert torch.equal((grid.occupied * 11**3).round().long(), bits.flatten(1).sum(1))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("convention", ["trans_inr", "nerf", "functa", "mnif"])
def test_the_picture_of_a_blob_is_the_dense_one(convention, name):
    weights = soft_box() if convention in ("trans_inr", "nerf") else soft_box(sharpness=100.0)
    rays = make_rays(1, 900)
    grid = OccupancyGrid.build(weights, BOX_SPEC, resolution=32, convention=convention)
    assert 0.03 < grid.occupied.item() < 0.2
    settings = {"convention": convention, "far": 2.2, "near": 0.3, "samples": 64}
    with engine(name):
        dense = render(rays, weights, BOX_SPEC, **settings)
        sparse = render(rays, weights, BOX_SPEC, **settings, occupancy=grid)
    assert 0.05 < dense.opacity.mean() <= 1.0
    for a, b in zip(sparse, dense, strict=True):
        assert (a - b).abs().max() < 1 / 255


def test_what_lies_outside_the_box_is_evaluated():
    weights = soft_box()
    rays = make_rays(1, 300)
    grid = OccupancyGrid.build(
        weights, BOX_SPEC, low=0.6, high=0.9, resolution=8, convention="nerf", stop=0.0
    )
    assert not grid.bits.any()
    dense = render(rays, weights, BOX_SPEC, convention="nerf")
    sparse = render(rays, weights, BOX_SPEC, convention="nerf", occupancy=grid)
    assert dense.opacity.max() > 0.5
    assert (sparse.color - dense.color).abs().max() <= 1e-6


def test_empty_cells_are_skipped_and_early_rays_end():
    """Skipping shows where the grid is wrong on purpose; ending early where `stop` is large."""
    weights, rays = soft_box(), make_rays(1, 300)
    empty = OccupancyGrid(
        torch.zeros(1, 16, dtype=torch.int32), 8, (-1.0,) * 3, (1.0,) * 3, stop=0.0
    )
    settings = {"convention": "trans_inr", "near": 0.5, "far": 2.0, "samples": 64}
    dense = render(rays, weights, BOX_SPEC, **settings)
    skipped = render(rays, weights, BOX_SPEC, **settings, occupancy=empty)
    inside = dense.opacity > 0.2
    assert inside.any() and (skipped.opacity[inside] < dense.opacity[inside] - 0.1).all()
    for stop in (0.5, 1e-1, 1e-3):
        ended = render(rays, weights, BOX_SPEC, **settings, occupancy=full(1, 4, stop))
        assert (dense.opacity - ended.opacity).max() <= stop + 1e-6
        assert (ended.opacity <= dense.opacity + 1e-6).all()
    assert (ended.color - dense.color).abs().max() < 1 / 255


def test_what_is_not_a_number_stays_visible():
    weights = soft_box()
    weights[0, 0] = math.nan
    grid = OccupancyGrid.build(weights, BOX_SPEC, resolution=4)
    assert bits_of(grid).all()
    assert render(make_rays(1, 3), weights, BOX_SPEC, occupancy=grid).color.isnan().all()


def test_threads_and_strange_layouts_do_not_matter():
    weights = torch.cat([soft_box(), soft_box(half=0.2), soft_box(half=0.5)])
    rays = make_rays(3, 700)
    grid = OccupancyGrid.build(weights, BOX_SPEC, resolution=17, convention="nerf")
    found = []
    for number in (1, 2, 5):
        with threads(number):
            found.append(render(rays, weights, BOX_SPEC, convention="nerf", occupancy=grid))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    turned = OccupancyGrid(grid.bits.T.contiguous().T, 17, grid.low, grid.high, grid.stop)
    got = render(rays, weights, BOX_SPEC, convention="nerf", occupancy=turned)
    assert all(torch.equal(a, b) for a, b in zip(got, found[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    settings = {"resolution": 8, "points": 2, "convention": "nerf"}
    want = OccupancyGrid.build(soft_box(), BOX_SPEC, **settings)
    got = OccupancyGrid.build(soft_box().to(dtype), BOX_SPEC, **settings)
    assert bits_of(want).sum() == 6**3  # the box, and the cells beside it
    assert torch.equal(bits_of(got), bits_of(want))
    if dtype == torch.float64:
        with pytest.raises(BackendError, match="no occupancy grid"):
            render(make_rays(1, 3), soft_box().double(), BOX_SPEC, occupancy=got)


def test_nothing_to_render():
    for batch, count in ((0, 5), (2, 0)):
        weights = make_weights(BOX_SPEC, batch)
        grid = OccupancyGrid.build(weights, BOX_SPEC, resolution=4)
        out = render(make_rays(batch, count), weights, BOX_SPEC, occupancy=grid)
        assert out.color.shape == (batch, count, 3) and out.depth.shape == (batch, count)
        assert grid.occupied.shape == (batch,)


BUILD = {"weights": soft_box(), "spec": BOX_SPEC}


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("spec", None, TypeError, "expected a FieldSpec, got NoneType"),
        ("spec", make_spec(), ValueError, "expected 3 coordinates and no view branch"),
        ("spec", make_spec(coord_dim=3, out_dim=4, view_dim=2), ValueError, "expected 3 coord"),
        ("weights", None, TypeError, "expected a tensor, got NoneType"),
        ("weights", soft_box()[:, 1:], ValueError, r"expected shape \(B, 166\), got \(1, 165\)"),
        ("weights", soft_box().long(), TypeError, "expected dtype .*, got int64"),
        ("resolution", 0, ValueError, "expected an integer from 1 to 512, got 0"),
        ("resolution", 513, ValueError, "expected an integer from 1 to 512, got 513"),
        ("resolution", 8.0, TypeError, "expected an integer, got 8.0"),
        ("resolution", True, TypeError, "expected an integer, got True"),
        ("points", 0, ValueError, "expected an integer from 1 to 8, got 0"),
        ("points", 9, ValueError, "expected an integer from 1 to 8, got 9"),
        ("points", "2", TypeError, "expected an integer, got '2'"),
        ("threshold", -1e-3, ValueError, "expected a number from 0 up, got -0.001"),
        ("threshold", math.nan, ValueError, "expected a number from 0 up, got nan"),
        ("threshold", None, TypeError, "expected a number, got None"),
        ("stop", math.inf, ValueError, "expected a number from 0 up, got inf"),
        ("stop", "0", TypeError, "expected a number, got '0'"),
        ("low", None, TypeError, "expected a number or three, got None"),
        ("low", "abc", TypeError, "expected a number or three, got 'abc'"),
        ("low", (0.0, 0.0), ValueError, r"expected a finite number or three, got \(0.0, 0.0\)"),
        ("low", math.nan, ValueError, "expected a finite number or three, got nan"),
        ("high", (1, 1, None), TypeError, r"expected a number or three, got \(1, 1, None\)"),
        ("high", 1e300, ValueError, "expected a finite number or three, got 1e.300"),
        ("high", (1.0, -1.0, 1.0), ValueError, "expected above low"),
        ("convention", "nothing", ValueError, "expected one of mnif, functa, trans_inr, nerf"),
        ("convention", None, TypeError, "expected a name or a RenderConvention, got NoneType"),
    ],
)
def test_wrong_arguments_of_build(argument, value, error, message):
    with pytest.raises(error, match=f"^{argument}: {message}"):
        OccupancyGrid.build(**{**BUILD, argument: value})


GRID = {"bits": torch.zeros(1, 16, dtype=torch.int32), "resolution": 8, "low": (-1.0,) * 3}
GRID = {**GRID, "high": (1.0,) * 3, "stop": 0.0}


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("bits", None, TypeError, "expected a tensor, got NoneType"),
        ("bits", GRID["bits"].long(), TypeError, "expected dtype int32, got int64"),
        ("bits", GRID["bits"].float(), TypeError, "expected dtype int32, got float32"),
        ("bits", GRID["bits"][:, 1:], ValueError, r"expected shape \(B, 16\), got \(1, 15\)"),
        ("bits", GRID["bits"][0], ValueError, r"expected shape \(B, 16\), got \(16\)"),
        ("resolution", 9, ValueError, "expected shape"),
        ("resolution", 0, ValueError, "expected an integer from 1 to 512, got 0"),
        ("low", (2.0,) * 3, ValueError, "expected above low"),
        ("stop", -1.0, ValueError, "expected a number from 0 up, got -1.0"),
    ],
)
def test_wrong_arguments_of_a_grid(argument, value, error, message):
    with pytest.raises(error, match=message):
        OccupancyGrid(**{**GRID, argument: value})


def test_wrong_grids_for_a_rendering():
    weights, rays = soft_box(), make_rays(1, 3)
    grid = OccupancyGrid.build(weights, BOX_SPEC, resolution=4)
    with pytest.raises(TypeError, match="occupancy: expected an OccupancyGrid, got Tensor"):
        render(rays, weights, BOX_SPEC, occupancy=grid.bits)
    with pytest.raises(ValueError, match="occupancy: expected a grid of 2 instances on cpu, got 1"):
        render(make_rays(2, 3), weights.expand(2, -1), BOX_SPEC, occupancy=grid)
    for index in range(3):
        inputs = [x.clone() for x in (*rays, weights)]
        inputs[index].requires_grad_()
        with pytest.raises(ValueError, match="occupancy: expected None where gradients are wanted"):
            volume_render(*inputs, BOX_SPEC, **RANGE, samples=4, occupancy=grid)
        with torch.no_grad():
            volume_render(*inputs, BOX_SPEC, **RANGE, samples=4, occupancy=grid)
    for backend in ("blocked", "reference"):
        with (
            ginr_fast.backend(backend),
            pytest.raises(BackendError, match="volume_render.*no occupancy grid"),
        ):
            render(rays, weights, BOX_SPEC, occupancy=grid)
    assert isinstance(BOX_SPEC, FieldSpec)
