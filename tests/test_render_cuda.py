"""The CUDA side of volume_render and composite, run on a CPU thread by thread."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from field_cases import LIMITS, make_spec, make_weights, relative_error
from field_emulation import A100, H100, Emulated, call_of, emulated, render_call
from torch import Tensor

from ginr_fast.ops.field_mlp.reference import field_mlp
from ginr_fast.ops.volume_render import reference
from ginr_fast.ops.volume_render.convention import CONVENTIONS, RenderConvention, Rendering

MNIF = {"coord_dim": 3, "out_dim": 4, "hidden_dim": 64, "hidden_layers": 2, "activation": "sine"}
FIELD = make_spec(**{**MNIF, "hidden_dim": 32, "hidden_layers": 1})


@pytest.fixture
def gpu() -> Emulated:
    kernels = emulated()
    kernels.device(A100)
    return kernels


def make_rays(batch: int, count: int) -> tuple[Tensor, Tensor]:
    """From around a sphere of radius 1.3 roughly towards its middle; directions of any length."""
    generator = torch.Generator().manual_seed(5)
    origins = torch.randn(batch, count, 3, generator=generator)
    origins = 1.3 * origins / origins.norm(dim=-1, keepdim=True)
    aim = 0.3 * torch.randn(batch, count, 3, generator=generator)
    return origins, (aim - origins) * torch.rand(batch, count, 1, generator=generator).add(0.5)


def dense(weights: Tensor, last: float = 3.0) -> Tensor:
    """The same fields with more density: the last bias."""
    weights = weights.clone()
    weights[:, -1] = last
    return weights


def check(
    gpu: Emulated,
    spec,
    rendering: Rendering,
    batch: int,
    count: int,
    weights: Tensor,
    first_rays: Tensor | None = None,
) -> None:
    """Values and gradients against the formula in float64."""
    origins, directions = make_rays(batch, count)
    call = render_call(rendering, first_rays=first_rays)
    generator = torch.Generator().manual_seed(6)
    grad = torch.randn(batch, count, 5, generator=generator).bfloat16().float()
    got, values = gpu.render(spec, call, weights, origins, directions, keep=True)
    assert torch.equal(gpu.render(spec, call, weights, origins, directions)[0], got)
    got_grad = gpu.render_backward(spec, call, weights, origins, directions, values, grad)

    leaf = weights.double().requires_grad_()
    rays = origins.double(), directions.double()
    want = reference.volume_render(*rays, leaf, spec, rendering, first_rays)
    (want_grad,) = torch.autograd.grad(want, leaf, grad.double())
    limit = LIMITS[weights.dtype]
    assert relative_error(got, want.detach()) <= limit
    assert relative_error(got_grad, want_grad) <= 5 * limit


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("seed", [None, 2**40 + 7])
def test_conventions(gpu, convention, seed):
    rendering = Rendering(CONVENTIONS[convention], 0.8, 1.8, 12, seed)
    check(gpu, FIELD, rendering, 2, 11, dense(make_weights(FIELD, 2), 0.5))


@pytest.mark.parametrize("convention", ["mnif", "trans_inr"])
def test_numbers_of_rays(gpu, convention):
    rendering = Rendering(CONVENTIONS[convention], 0.8, 1.8, 12, 7)
    first = torch.tensor([300, (1 << 63) - 5])
    check(gpu, FIELD, rendering, 2, 40, dense(make_weights(FIELD, 2), 0.5), first)


@pytest.mark.parametrize("samples", [1, 2, 31, 33, 70])
def test_any_number_of_samples(gpu, samples):
    rule = replace(CONVENTIONS["functa"], last_interval=0.1)
    for seed in (None, 3):
        rendering = Rendering(rule, 0.8, 1.8, samples, seed)
        check(gpu, FIELD, rendering, 1, 5, dense(make_weights(FIELD, 1)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_dim": 24, "hidden_layers": 0, "bias": False},
        {"hidden_dim": 128, "hidden_layers": 1},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fields_and_dtypes(gpu, changes, dtype):
    spec = make_spec(**{**MNIF, **changes})
    rendering = Rendering(replace(CONVENTIONS["mnif"], last_interval=0.05), 0.8, 1.8, 32)
    check(gpu, spec, rendering, 1, 9, make_weights(spec, 1, dtype))


@pytest.mark.parametrize("density", ["relu", "none"])
def test_nothing_and_walls(gpu, density):
    rule = RenderConvention(color="sigmoid", density=density)
    rendering = Rendering(rule, 0.8, 1.8, 9)
    origins, directions = make_rays(1, 20)
    call = render_call(rendering)
    empty, wall = (dense(0 * make_weights(FIELD, 1), value) for value in (0.0, 1e6))
    out, values = gpu.render(FIELD, call, empty, origins, directions, keep=True)
    assert torch.equal(out, torch.tensor([1.0, 1, 1, 0, 0]).expand(1, 20, 5))
    out, values = gpu.render(FIELD, call, wall, origins, directions, keep=True)
    assert torch.allclose(out[0, :, :3], torch.full((20, 3), 0.5)) and (out[..., 3] == 1).all()
    assert torch.allclose(out[..., 4], torch.tensor(0.8))
    grad = torch.ones(1, 20, 5)
    grads = gpu.render_backward(FIELD, call, wall, origins, directions, values, grad)
    assert grads.isfinite().all()


def test_operands_that_take_turns_in_shared_memory(gpu):
    # Warps then evaluate together though their queues differ in length.
    spec = make_spec(**{**MNIF, "hidden_dim": 128})
    weights = dense(make_weights(spec, 2))
    origins, directions = make_rays(2, 19)
    call = render_call(Rendering(CONVENTIONS["mnif"], 0.8, 1.8, 40))
    results = []
    for size in (H100, 100 << 10):
        gpu.device(size)
        assert gpu.plan(call_of(spec, torch.float32, 2, 19), False)[0] == (size == H100)
        results.append(gpu.render(spec, call, weights, origins, directions)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("shared", [H100, 100 << 10])
def test_no_thread_waits_for_another_without_a_barrier(gpu, shared):
    spec = make_spec(**{**MNIF, "hidden_dim": 128})
    gpu.device(shared)
    assert gpu.plan(call_of(spec, torch.float32, 1, 12), False)[0] == (shared == H100)
    weights = dense(make_weights(spec, 1))
    origins, directions = make_rays(1, 12)
    call = render_call(Rendering(CONVENTIONS["mnif"], 0.8, 1.8, 21, 9), stop=0.05)
    grad = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(6))
    results = []
    for backwards in (False, True):
        gpu.device(shared, 1, backwards)
        out, values = gpu.render(spec, call, weights, origins, directions, keep=True)
        values = values.nan_to_num()
        gpu.device(A100, 1, backwards)
        grads = gpu.render_backward(spec, call, weights, origins, directions, values, grad)
        t = torch.arange(21.0).expand(12, 21).contiguous()
        rays = gpu.composite(call, values[0], t, torch.ones(12), grad[0])
        results.append((out, values, grads, rays[0], *rays[1]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def grid_bits(occupied: Tensor) -> Tensor:
    """(B, R, R, R) booleans as words of 32, cell (x R + y) R + z."""
    flat = occupied.flatten(1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 32)).view(len(flat), -1, 32)
    words = (flat.long() << torch.arange(32)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()


@pytest.mark.parametrize("last_interval", [1e-3, 1e10])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", [None, 4])
def test_occupancy_leaves_out_empty_cells(gpu, share, last_interval, seed):
    rule = RenderConvention(last_interval=last_interval, density="relu", color="none")
    rendering = Rendering(rule, 0.5, 2.1, 40, seed)
    resolution, side = 5, 0.6  # the rays begin and end outside the box, where nothing is left out
    generator = torch.Generator().manual_seed(8)
    occupied = torch.rand(2, *[resolution] * 3, generator=generator) < share
    bits = grid_bits(occupied)
    origins, directions = make_rays(2, 21)
    weights = dense(make_weights(FIELD, 2), 2.0)
    call = render_call(rendering, bits, resolution=resolution, low=-side, high=side)
    got, _ = gpu.render(FIELD, call, weights, origins, directions)

    t = reference.positions(rendering, 2, 21, origins.double()).expand(2, 21, -1)
    points = origins.double().unsqueeze(2) + t.unsqueeze(-1) * directions.double().unsqueeze(2)
    values = field_mlp(points.flatten(1, 2), weights.double(), FIELD).view(2, 21, 40, 4)
    cells = ((points + side) / (2 * side) * resolution).floor().long()
    inside = ((cells >= 0) & (cells < resolution)).all(-1)
    x, y, z = cells.clamp(0, resolution - 1).unbind(-1)
    seen = occupied[torch.arange(2).view(2, 1, 1), x, y, z] | ~inside
    if last_interval == 1e10:
        seen[..., -1] = True
    assert 0 < (~seen).sum() < seen.numel() or share == 1.0
    values[..., 3] = torch.where(seen, values[..., 3], -1.0)
    want = reference.composite(values, t, directions.double().norm(dim=-1), rule)
    assert relative_error(got, want) <= 2e-5
    assert (
        got - gpu.render(FIELD, render_call(rendering), weights, origins, directions)[0]
    ).any() == (share < 1.0)


def test_rays_end_where_nothing_passes(gpu):
    rule = RenderConvention(color="none", density="relu")
    rendering = Rendering(rule, 0.8, 1.8, 200)
    origins, directions = make_rays(1, 8)
    weights = dense(0.05 * make_weights(FIELD, 1), 20.0)
    everything, _ = gpu.render(FIELD, render_call(rendering), weights, origins, directions)
    call = render_call(rendering, stop=1e-2)
    out, values = gpu.render(FIELD, call, weights, origins, directions, keep=True)
    left_out = values.isnan().all(-1)[0]
    assert left_out.any(-1).all() and not left_out[:, :32].any()
    assert (left_out.int().diff(dim=-1) >= 0).all()  # from some sample on
    assert 0 < (out - everything).abs().max() <= 2e-2


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("samples", [1, 5, 32, 33, 70])
def test_composite(gpu, convention, samples):
    rule, rays = CONVENTIONS[convention], 9
    generator = torch.Generator().manual_seed(samples)
    values = 2 * torch.randn(rays, samples, 4, generator=generator)
    values[0, :, 3] = -50.0  # empty
    values[1, :, 3] = 1e4  # opaque
    t = torch.rand(rays, samples, generator=generator).cumsum(-1)
    scale = torch.rand(rays, generator=generator) + 0.5
    grad = torch.randn(rays, 5, generator=generator)
    call = render_call(Rendering(rule, 0.0, 1.0, samples))
    out, grads = gpu.composite(call, values, t, scale, grad)
    leaves = [x.double().requires_grad_() for x in (values, t, scale)]
    want = reference.composite(*leaves, rule)
    assert relative_error(out, want.detach()) <= 2e-6
    for got, expected in zip(grads, torch.autograd.grad(want, leaves, grad.double()), strict=True):
        assert (got.double() - expected).norm() <= 1e-5 * expected.norm().clamp_min(1e-6)
