"""Fields on grids, whose first layer the CPU kernels compute as a sum of tables, one an axis."""

from __future__ import annotations

import math

import pytest
import torch
from field_cases import NATIVE, engine, make_spec, make_weights, relative_error, threads
from torch import Tensor

import ginr_fast
from ginr_fast import CoordinateGrid, FieldSpec, FourierEncoding
from ginr_fast.ops import native, native_field

ENCODING = FourierEncoding.log_spaced(5, 20.0)
USABLE = native.build_info()["cpu_paths_usable"]
PATHS = [*NATIVE, *(["native amx"] if "amx" in USABLE else [])]
SHAPES = [(40, 16), (10, 70), (33, 129), (1, 3, 5, 64), (6, 5, 17), (200, 16)]
SPECS = {
    "relu": {"hidden_dim": 21},
    "sine": {"hidden_dim": 16, "activation": "sine", "w0": 2.0},
    "linear, no bias": {"hidden_dim": 130, "activation": "none", "bias": False},
    "wide": {"hidden_dim": 160, "hidden_layers": 2, "out_dim": 5},
}


def axes(shape: tuple[int, ...]) -> CoordinateGrid:
    """Places that are neither even nor symmetric."""
    generator = torch.Generator().manual_seed(len(shape))
    return CoordinateGrid(tuple(torch.rand(size, generator=generator) * 2 - 1 for size in shape))


def run(name: str, where: CoordinateGrid | Tensor, weights: Tensor, spec: FieldSpec):
    weights = weights.clone().requires_grad_()
    with engine(name):
        values = ginr_fast.field_mlp(where, weights, spec)
        cotangent = torch.linspace(-1, 2, values.numel()).view_as(values).to(values)
        (grad,) = torch.autograd.grad(values, weights, cotangent)
    return values.detach(), grad


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tables_are_the_first_layer(shape: tuple[int, ...], kind: str, path: str) -> None:
    spec = make_spec(coord_dim=len(shape), encoding=ENCODING, **SPECS[kind])
    where, weights = axes(shape), make_weights(spec, 3)
    assert native_field.takes_grid(spec, shape, weights)
    plan = ginr_fast.explain(ginr_fast.field_mlp, where, weights, spec).plans[0]
    assert plan.flops < plan.naive_flops
    points = where.tensor().double().unsqueeze(0)
    exact = run("reference", points, weights.double(), spec)
    # A unit near 0 may fall on the other side of a ReLU.
    limits = (2e-6, 2e-3 if "relu" in (kind, spec.activation) else 1e-5)
    for found, wanted, limit in zip(run(path, where, weights, spec), exact, limits, strict=True):
        assert found.shape == wanted.shape and relative_error(found, wanted) <= limit


def test_what_is_written_out() -> None:
    spec = make_spec(encoding=ENCODING)
    weights = make_weights(spec, 1)

    def taken(shape: tuple[int, ...], spec: FieldSpec = spec, weights: Tensor = weights) -> bool:
        return native_field.takes_grid(spec, shape, weights)

    assert taken((16, 16)) and not taken((15, 16)) and not taken((64, 15))
    assert not taken((256,)) and not taken((2, 2, 2, 2, 64))
    assert not taken((1 << 14, 16)) and taken(((1 << 14) - 16, 16))
    assert not taken((64, 64), make_spec())  # without an encoding
    assert taken((64, 64), weights=weights.half())
    assert not taken((64, 64), weights=weights.bfloat16())
    sines = make_spec(encoding=ENCODING, activation="sine")
    assert taken((64, 64), sines, weights.bfloat16())


@pytest.mark.parametrize("path", PATHS)
def test_grid_points_written_as_coordinates_are_the_same(path: str) -> None:
    spec = make_spec(encoding=ENCODING, hidden_dim=32)
    where, weights = axes((20, 30)), make_weights(spec, 2)
    for found, wanted in zip(
        run(path, where.tensor(), weights, spec), run(path, where, weights, spec), strict=True
    ):
        assert torch.equal(found, wanted)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    spec = make_spec(encoding=ENCODING, hidden_dim=128)
    where, weights = axes((90, 70)), make_weights(spec, 3)
    with threads(1):
        alone = run(PATHS[-1], where, weights, spec)
    for count in (2, 3):
        with threads(count):
            for found, wanted in zip(run(PATHS[-1], where, weights, spec), alone, strict=True):
                assert torch.equal(found, wanted)


def test_gradients_of_gradients_and_of_axes() -> None:
    spec = make_spec(encoding=ENCODING, activation="sine", w0=2.0)
    plain, weights = axes((18, 16)), make_weights(spec, 2)

    def results(name: str, dtype: torch.dtype) -> list[Tensor]:
        places = [axis.to(dtype).requires_grad_() for axis in plain.axes]
        leaf = weights.to(dtype).requires_grad_()
        with engine(name):
            fixed = ginr_fast.field_mlp(plain.to(dtype=dtype), leaf, spec)
            (first,) = torch.autograd.grad(fixed.square().sum(), leaf, create_graph=True)
            second = torch.autograd.grad(first.square().sum(), leaf)
            moved = ginr_fast.field_mlp(CoordinateGrid(tuple(places)), leaf, spec)
            return [first.detach(), *second, *torch.autograd.grad(moved.square().sum(), places)]

    exact = results("reference", torch.float64)
    for found, wanted in zip(results(NATIVE[-1], torch.float32), exact, strict=True):
        assert relative_error(found, wanted) <= 1e-4


def test_the_operator_itself_takes_no_other_grids() -> None:
    spec = make_spec(encoding=ENCODING)
    weights, places = make_weights(spec, 2), torch.rand(34)

    def call(places: Tensor, weights: Tensor, grid: list[int]) -> Tensor:
        return torch.ops.ginr_fast.field_mlp(places, weights, None, grid, spec.key, "native")

    assert call(places, weights, [18, 16]).shape == (2, 288, 3)
    for wrong in ((places[:20], weights), (places, weights.bfloat16())):
        with pytest.raises(ValueError, match="^grid: expected one that takes_grid, and its axes"):
            call(*wrong, [18, 16])
    with pytest.raises(ValueError, match="^coords: expected points where their gradient"):
        torch.ops.ginr_fast.field_mlp_backward(
            torch.rand(2, 288, 3), places, weights, None, [18, 16], spec.key, "native", ["coords"]
        )


@pytest.mark.parametrize("batch", [1, 40])
def test_long_axes_and_many_instances(batch: int) -> None:
    # Parts of the gradient that reach some of the tables' blocks, and more tables than 32 MB.
    spec = make_spec(encoding=ENCODING, hidden_dim=64, activation="none")
    where, weights = axes((9, 4000)), make_weights(spec, batch)
    points = where.tensor().double().unsqueeze(0)
    with engine("blocked"):
        leaf = weights.double().requires_grad_()
        exact = ginr_fast.field_mlp(points, leaf, spec)
        cotangent = torch.linspace(-1, 2, exact.numel()).view_as(exact).double()
        (of_weights,) = torch.autograd.grad(exact, leaf, cotangent)
    for path in PATHS[-2:]:
        values, found = run(path, where, weights, spec)
        assert relative_error(values, exact.detach()) <= 2e-6
        assert relative_error(found, of_weights) <= 1e-5


def test_nan_stays_where_it_is() -> None:
    spec = make_spec(encoding=ENCODING, hidden_dim=32)
    where, weights = axes((20, 30)), make_weights(spec, 2)
    where.axes[0][7] = math.nan
    with engine(PATHS[-1]):
        values = ginr_fast.field_mlp(where, weights, spec)
    rows = values.isnan().all(-1).all(-1)
    assert rows[:, 7].all() and values.isnan().any(-1).any(-1).sum() == 2


def test_compiled() -> None:
    spec = make_spec(encoding=ENCODING, hidden_dim=32)
    where, weights = axes((20, 30)), make_weights(spec, 2)

    def squared(weights: Tensor) -> Tensor:
        return ginr_fast.field_mlp(where, weights, spec).square()

    torch._dynamo.reset()
    found = torch.compile(squared, fullgraph=True, backend="aot_eager")(weights)
    torch.testing.assert_close(found, squared(weights), rtol=1e-4, atol=1e-5)


def test_opcheck() -> None:
    spec = make_spec(encoding=ENCODING, activation="sine", w0=2.0)
    weights = make_weights(spec, 2).requires_grad_()
    arguments = torch.cat(axes((18, 16)).axes), weights, None, [18, 16], spec.key, "native"
    torch.library.opcheck(torch.ops.ginr_fast.field_mlp.default, arguments)
    grad = torch.randn(2, 18 * 16, spec.out_dim, requires_grad=True)
    operator = torch.ops.ginr_fast.field_mlp_backward.default
    torch.library.opcheck(operator, (grad, *arguments, ["weights"]), atol=1e-4, rtol=1e-4)
