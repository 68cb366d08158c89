"""What only a GPU can show of fields and their rendering: the compiled CUDA kernels themselves."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from field_cases import (
    ENCODING,
    LIMITS,
    check_accuracy,
    has_phases,
    make_coords,
    make_spec,
    make_weights,
)
from torch import Tensor

import ginr_fast
from ginr_fast import FieldSpec, OccupancyGrid, RaySeed

pytestmark = pytest.mark.gpu
DTYPES = list(LIMITS)
SCENE = FieldSpec(3, 4, 64, 4, activation="sine")
SPECS = {
    "image": FieldSpec(2, 3, 64, 4, activation="sine", out_activation="sine"),
    "wide image": FieldSpec(2, 3, 128, 5, activation="sine", out_activation="sine"),
    "voxels": FieldSpec(3, 1, 64, 4, activation="sine", w0=50.0),
    "scene": SCENE,
    "relu": FieldSpec(3, 4, 100, 3, activation="relu"),
    "encoded": make_spec(hidden_dim=64, hidden_layers=2, encoding=ENCODING),
    "narrow": make_spec(hidden_dim=7, hidden_layers=0, bias=False),
}


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def make_rays(batch: int, count: int) -> tuple[Tensor, Tensor]:
    """Towards the middle from around it."""
    generator = torch.Generator().manual_seed(5)
    origins = torch.randn(batch, count, 3, generator=generator)
    origins = 1.3 * origins / origins.norm(dim=-1, keepdim=True)
    aim = 0.3 * torch.randn(batch, count, 3, generator=generator)
    return origins.cuda(), (aim - origins).cuda()


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_field(spec, dtype):
    for batch, count, kind in ((1, 4096, "points"), (3, 1001, "points"), (4, 1000, "one set")):
        coords = make_coords(kind, batch, count, spec.coord_dim).cuda()
        weights = make_weights(spec, batch, dtype).cuda()
        function = partial(ginr_fast.field_mlp, spec=spec)
        # Rounding to bfloat16 changes the sign of some ReLUs' sums, and points' gradients with it.
        signs = dtype == torch.bfloat16 and spec.activation == "relu"
        check_accuracy(
            function,
            [coords, weights],
            "native",
            LIMITS[dtype],
            wanted=[1] if signs else [0, 1],
            phases=has_phases(spec),
        )


@pytest.mark.parametrize("convention", ["mnif", "trans_inr", "functa", "nerf"])
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_rendering(convention, seed, dtype):
    origins, directions = make_rays(2, 333)
    weights = make_weights(SCENE, 2, dtype).cuda()
    function = partial(
        ginr_fast.volume_render, spec=SCENE, near=0.8, far=1.8, samples=32, convention=convention,
        seed=seed,
    )  # fmt: skip
    inputs = [origins, directions, weights]
    check_accuracy(function, inputs, "native", LIMITS[dtype], wanted=[2], phases=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_rendering_does_not_depend_on_how_rays_are_split(dtype):
    """Values and gradients of some instances, of some rays, and of numbers past 2^32."""
    inputs = *make_rays(3, 200), make_weights(SCENE, 3, dtype).cuda()
    sight = {"near": 0.8, "far": 1.8, "samples": 32, "convention": "trans_inr"}

    def found(origins: Tensor, directions: Tensor, weights: Tensor, seed: object) -> list[Tensor]:
        leaf = weights.detach().requires_grad_()
        with ginr_fast.backend("native"):
            out = ginr_fast.volume_render(origins, directions, leaf, SCENE, seed=seed, **sight)
        return [*(part.detach() for part in out), *torch.autograd.grad(out.color.sum(), leaf)]

    whole = found(*inputs, 4)
    first = 200 * torch.arange(3)
    for numbers in (first, first.cuda()):
        same = found(*inputs, RaySeed(4, numbers))
        assert all(torch.equal(a, b) for a, b in zip(same, whole, strict=True))
    some = found(*(x[[2, 0]] for x in inputs), RaySeed(4, first[[2, 0]]))
    for got, want in zip(some, whole, strict=True):
        torch.testing.assert_close(got, want[[2, 0]], rtol=1e-3, atol=1e-4)
    rays = [x[:, 70:] for x in inputs[:2]]
    *part, _ = found(*rays, inputs[2], RaySeed(4, first + 70))
    for got, want in zip(part, whole, strict=False):
        torch.testing.assert_close(got, want[:, 70:], rtol=1e-3, atol=1e-4)
    seed = RaySeed(4, torch.tensor([7, 1 << 40, (1 << 63) - 3]))
    function = partial(ginr_fast.volume_render, spec=SCENE, seed=seed, **sight)
    check_accuracy(function, inputs, "native", LIMITS[dtype], wanted=[2], phases=True)


def test_rendering_with_a_grid():
    origins, directions = make_rays(2, 500)
    weights = make_weights(SCENE, 2).cuda()
    grid = OccupancyGrid.build(weights, SCENE, resolution=32, threshold=0.2, stop=1e-3)
    assert 0 < grid.occupied.max() < 1
    sight = {"near": 0.5, "far": 2.1, "samples": 64, "occupancy": grid}
    with ginr_fast.backend("native"):
        got = ginr_fast.volume_render(origins, directions, weights, SCENE, **sight)
    grid = OccupancyGrid(grid.bits.cpu(), grid.resolution, grid.low, grid.high, grid.stop)
    sight["occupancy"] = grid
    rays = origins.cpu(), directions.cpu()
    want = ginr_fast.volume_render(*rays, weights.cpu(), SCENE, **sight)
    for a, b in zip(got, want, strict=True):
        # A sample on the border of a cell may fall on its other side, a ray may end one slab later.
        assert (a.cpu() - b).abs().mean() <= 1e-3


def test_the_same_bits_every_time_and_on_any_stream():
    coords = make_coords("points", 8, 4096, 3).cuda()
    weights = make_weights(SCENE, 8).cuda().requires_grad_()

    def once() -> list[Tensor]:
        with ginr_fast.backend("native"):
            values = ginr_fast.field_mlp(coords, weights, SCENE)
        return [values, *torch.autograd.grad(values.square().sum(), [weights])]

    first = once()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        second = once()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_of_the_size_of_all_activations_is_in_memory():
    coords = torch.rand(1, 1 << 20, 3, device="cuda")
    weights = make_weights(SCENE, 1).cuda().requires_grad_()
    with ginr_fast.backend("native"):
        ginr_fast.field_mlp(coords[:, :64], weights, SCENE).sum().backward()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ginr_fast.field_mlp(coords, weights, SCENE).sum().backward()
    # One layer's activations of all samples are 256 MiB in float32.
    assert torch.cuda.max_memory_allocated() - before < 200 << 20


def test_second_order():
    spec = make_spec(hidden_dim=24, activation="sine", w0=3.0)
    results = []
    for backend in ("native", "reference"):
        coords = make_coords("points", 2, 100, 2).cuda()
        weights = make_weights(spec, 2).cuda().requires_grad_()
        with ginr_fast.backend(backend):
            loss = ginr_fast.field_mlp(coords, weights, spec).square().sum()
            (slope,) = torch.autograd.grad(loss, weights, create_graph=True)
            results.append(torch.autograd.grad(slope.square().sum(), weights)[0])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
