"""Coordinate grids."""

from __future__ import annotations

import pytest
import torch

from ginr_fast import CoordinateGrid, grid


def test_pixel_centres():
    axes = grid(4, 2, dtype=torch.float64).axes
    assert torch.equal(axes[0], torch.tensor([-0.75, -0.25, 0.25, 0.75], dtype=torch.float64))
    assert torch.equal(axes[1], torch.tensor([-0.5, 0.5], dtype=torch.float64))
    assert grid(5).dtype == torch.float32


def test_centres_are_rounded_once():
    exact = grid(8192, dtype=torch.float64).axes[0]
    assert torch.equal(grid(8192).axes[0], exact.float())
    assert torch.equal(exact, -exact.flip(0))


def test_bounds():
    assert torch.equal(grid(2, bounds=(0, 1)).axes[0], torch.tensor([0.25, 0.75]))
    rows, columns = grid(2, 1, bounds=[(0.0, 4.0), (1.0, -1.0)]).axes
    assert torch.equal(rows, torch.tensor([1.0, 3.0])) and torch.equal(columns, torch.zeros(1))
    pairs = grid(2, 2, bounds=((0, 1), (0, 2))).axes
    assert torch.equal(pairs[1], 2 * pairs[0])
    assert torch.equal(grid(2, bounds=[0, 2]).axes[0], pairs[1])


def test_a_refined_grid_halves_the_distances():
    coarse, fine = grid(3).axes[0], grid(6).axes[0]
    torch.testing.assert_close(fine.view(3, 2).mean(1), coarse)


def test_tensor_is_the_grid_point_by_point():
    made = grid(2, 3, 4)
    points = made.tensor()
    assert points.shape == (2, 3, 4, 3)
    for i in range(2):
        for j in range(3):
            for k in range(4):
                expected = [axis[n] for axis, n in zip(made.axes, (i, j, k), strict=True)]
                assert torch.equal(points[i, j, k], torch.stack(expected))


def test_properties():
    made = grid(2, 3, 0)
    assert (made.shape, made.numel, made.coord_dim) == ((2, 3, 0), 0, 3)
    assert grid(2, 3).numel == 6
    assert made.device == torch.device("cpu") and made.tensor().shape == (2, 3, 0, 3)


def test_to():
    made = grid(2, 3)
    double = made.to(dtype=torch.float64)
    assert double.dtype == torch.float64 and made.dtype == torch.float32
    assert torch.equal(double.axes[1], made.axes[1].double())
    moved = made.to("meta")
    assert moved.device.type == "meta" and moved.shape == made.shape
    assert grid(3, device="meta").device.type == "meta"


@pytest.mark.parametrize(
    ("shape", "arguments", "error", "message"),
    [
        ((), {}, ValueError, "shape: expected at least one axis"),
        ((-1,), {}, ValueError, "shape: expected non-negative integers"),
        ((2.5,), {}, (TypeError, ValueError), "shape: "),
        (("2",), {}, (TypeError, ValueError), "shape: "),
        (((2, 3),), {}, (TypeError, ValueError), "shape: "),
        ((2, 3), {"bounds": [(0, 1)]}, ValueError, "bounds: expected 1 or 2 pairs, got 1"),
        ((2,), {"bounds": [(0, 1), (0, 1)]}, ValueError, "bounds: .*got 2"),
        ((2, 3), {"bounds": 1}, (TypeError, ValueError), "bounds: "),
        ((2, 3), {"bounds": (0, 1, 2)}, (TypeError, ValueError), "bounds: "),
        ((2,), {"bounds": [(0, 1, 2)]}, (TypeError, ValueError), "bounds: "),
        ((2,), {"bounds": None}, (TypeError, ValueError), "bounds: "),
        ((2,), {"bounds": (0, "1")}, (TypeError, ValueError), "bounds: "),
        ((2,), {"dtype": torch.float16}, TypeError, "dtype: expected float32 or float64"),
        ((2,), {"dtype": torch.int64}, TypeError, "dtype: expected float32 or float64"),
    ],
    ids=str,
)
def test_wrong_grids(shape, arguments, error, message):
    with pytest.raises(error, match=message):
        grid(*shape, **arguments)


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ((), TypeError, "axes: expected a non-empty tuple"),
        ([torch.zeros(2)], TypeError, "axes: expected a non-empty tuple"),
        (torch.zeros(2), TypeError, "axes: "),
        ((torch.zeros(2), [0.0]), TypeError, r"axes\[1\]: expected a 1-D tensor"),
        ((torch.zeros(2, 2),), TypeError, r"axes\[0\]: expected a 1-D tensor"),
        ((torch.zeros(()),), TypeError, r"axes\[0\]: expected a 1-D tensor"),
        ((torch.zeros(2).half(),), TypeError, r"axes\[0\]: .*got torch.float16"),
        ((torch.zeros(2).long(),), TypeError, r"axes\[0\]: .*got torch.int64"),
        ((torch.zeros(2), torch.zeros(2).double()), ValueError, r"axes\[1\]: .*dtype and device"),
        ((torch.zeros(2), torch.zeros(2, device="meta")), ValueError, r"axes\[1\]: .*device"),
    ],
    ids=str,
)
def test_wrong_axes(axes, error, message):
    with pytest.raises(error, match=message):
        CoordinateGrid(axes)
