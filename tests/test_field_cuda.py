"""The CUDA side of field_mlp, run on a CPU thread by thread."""

from __future__ import annotations

import math

import pytest
import torch
from field_cases import ENCODING, LIMITS, make_coords, make_spec, make_weights, relative_error
from field_emulation import A100, H100, Emulated, call_of, emulated
from torch import Tensor

from ginr_fast import FieldSpec, FourierEncoding
from ginr_fast.ops.field_mlp import reference

DTYPES = list(LIMITS)


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.fixture
def gpu() -> Emulated:
    kernels = emulated()
    kernels.device(A100)
    return kernels


def values_and_gradients(
    spec: FieldSpec, coords: Tensor, weights: Tensor, grad: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Of the formula in a dtype: values, gradients of weights and of every instance's points."""
    weights = weights.detach().to(dtype).requires_grad_()
    precise = torch.promote_types(dtype, torch.float32)
    coords = coords.expand(weights.shape[0], -1, -1).to(precise).clone().requires_grad_()
    values = reference.field_mlp(coords, weights, spec)
    grads = torch.autograd.grad(values, [weights, coords], grad.to(dtype))
    return [values.detach(), *grads]


def check(
    gpu: Emulated, spec: FieldSpec, batch: int, count: int, dtype: torch.dtype, shared: bool = False
) -> None:
    coords = make_coords("points", 1 if shared else batch, count, spec.coord_dim)
    weights = make_weights(spec, batch, dtype)
    generator = torch.Generator().manual_seed(3)
    # As small as the gradients of a mean over many samples.
    grad = (1e-7 * torch.randn(batch, count, spec.out_dim, generator=generator)).bfloat16().float()
    got = [gpu.field(spec, coords, weights), *gpu.field_backward(spec, coords, weights, grad)]
    want = values_and_gradients(spec, coords, weights, grad, torch.float64)
    own = values_and_gradients(spec, coords, weights, grad, dtype)
    for index, (result, expected, plain) in enumerate(zip(got, want, own, strict=True)):
        assert result.shape == expected.shape
        # What PyTorch itself is off by where rounding changes the sign of a ReLU's sum, or where
        # float32 phases are rounded.
        bound = max(LIMITS[dtype] * (1 if index == 0 else 5), 1.5 * relative_error(plain, expected))
        assert relative_error(result, expected) <= bound, index


CASES = [
    # what changes the small spec, B, N
    ({"hidden_dim": 16, "hidden_layers": 0}, 1, 1),
    ({"hidden_dim": 16, "hidden_layers": 2, "activation": "sine"}, 3, 70),
    ({"hidden_dim": 24, "hidden_layers": 1, "activation": "relu", "out_dim": 16}, 2, 33),
    ({"hidden_dim": 24, "hidden_layers": 3, "activation": "sine", "bias": False}, 1, 65),
    ({"hidden_dim": 7, "hidden_layers": 1, "activation": "none", "coord_dim": 1}, 2, 300),
    ({"hidden_dim": 1, "hidden_layers": 0, "activation": "sine"}, 2, 31),
    ({"hidden_dim": 64, "hidden_layers": 4, "activation": "sine", "out_dim": 4}, 1, 600),
    ({"hidden_dim": 64, "hidden_layers": 5, "activation": "relu", "coord_dim": 3}, 1, 17),
    ({"hidden_dim": 64, "hidden_layers": 1, "out_activation": "sine", "w0": 5.0}, 1, 64),
    ({"hidden_dim": 64, "out_activation": "relu", "coord_dim": 16}, 1, 40),
    ({"hidden_dim": 65, "hidden_layers": 1, "activation": "sine", "out_activation": "sine"}, 1, 50),
    ({"hidden_dim": 128, "hidden_layers": 2, "activation": "sine", "coord_dim": 3}, 2, 70),
    ({"hidden_dim": 128, "hidden_layers": 0, "activation": "relu"}, 1, 130),
    ({"hidden_dim": 100, "hidden_layers": 1, "activation": "none", "coord_dim": 6}, 1, 20),
    ({"hidden_dim": 24, "encoding": ENCODING, "hidden_layers": 1}, 2, 65),
    ({"hidden_dim": 64, "encoding": ENCODING, "activation": "sine", "w0": 2.0}, 1, 40),
    (
        {"hidden_dim": 64, "encoding": FourierEncoding.log_spaced(64, 1024.0), "hidden_layers": 0},
        1,
        40,
    ),
    ({"hidden_dim": 128, "encoding": FourierEncoding.log_spaced(20, 256.0), "coord_dim": 3}, 1, 20),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize(("changes", "batch", "count"), CASES)
def test_values_and_gradients(gpu, changes, batch, count, dtype):
    check(gpu, make_spec(**changes), batch, count, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_shared_coordinates(gpu, dtype):
    check(gpu, make_spec(hidden_dim=32, activation="sine"), 3, 40, dtype, shared=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_dim": 128, "hidden_layers": 2, "activation": "sine"},
        {"hidden_dim": 64, "hidden_layers": 3, "encoding": FourierEncoding.log_spaced(30, 64.0)},
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_operands_that_take_turns_in_shared_memory(gpu, changes, dtype):
    spec = make_spec(**changes)
    call = call_of(spec, dtype, 1, 300)
    gpu.device(H100)
    roomy = gpu.plan(call, False)
    gpu.device(roomy[2] - 1)
    resident, _, size = gpu.plan(call, False)
    assert roomy[0] and not resident and size < roomy[2]
    coords, weights = make_coords("points", 1, 300, spec.coord_dim), make_weights(spec, 1, dtype)
    streamed = gpu.field(spec, coords, weights)
    gpu.device(H100)
    assert torch.equal(gpu.field(spec, coords, weights), streamed)

    grad = torch.randn(1, 300, spec.out_dim, generator=torch.Generator().manual_seed(3))
    gpu.device(1 << 20)
    assert gpu.plan(call, True)[:2] == (True, True)
    wanted = gpu.field_backward(spec, coords, weights, grad)
    least = next(size for size in range(60 << 10, H100, 1024) if fits(gpu, call, size))
    gpu.device(least)
    assert gpu.plan(call, True)[:2] == (False, False)
    for got, want in zip(gpu.field_backward(spec, coords, weights, grad), wanted, strict=True):
        assert torch.equal(got, want)


def fits(gpu: Emulated, call, size: int) -> bool:
    gpu.device(size)
    return not gpu.refused(call, True)


def test_only_what_is_wanted(gpu):
    for changes in ({"hidden_dim": 24}, {"hidden_dim": 24, "encoding": ENCODING}):
        spec = make_spec(**changes, activation="sine")
        coords, weights = make_coords("points", 2, 50, 2), make_weights(spec, 2)
        grad = torch.randn(2, 50, spec.out_dim, generator=torch.Generator().manual_seed(3))
        both = gpu.field_backward(spec, coords, weights, grad)
        of_weights, nothing = gpu.field_backward(spec, coords, weights, grad, (True, False))
        assert nothing is None and torch.equal(of_weights, both[0])
        nothing, of_coords = gpu.field_backward(spec, coords, weights, grad, (False, True))
        assert nothing is None and torch.equal(of_coords, both[1])


def test_values_do_not_depend_on_the_number_of_blocks(gpu):
    spec = make_spec(hidden_dim=64, activation="sine")
    coords, weights = make_coords("points", 1, 1000, 2), make_weights(spec, 1)
    grad = torch.randn(1, 1000, spec.out_dim, generator=torch.Generator().manual_seed(3))
    results = []
    for multiprocessors in (1, 3, 100):
        gpu.device(A100, multiprocessors)
        values = gpu.field(spec, coords, weights)
        results.append((values, *gpu.field_backward(spec, coords, weights, grad)))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[2], results[0][2])
        assert relative_error(other[1], results[0][1]) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"hidden_dim": 64, "hidden_layers": 2}, torch.bfloat16),
        ({"hidden_dim": 64, "encoding": ENCODING}, torch.float16),
        ({"hidden_dim": 100}, torch.float32),
    ],
)
def test_no_thread_waits_for_another_without_a_barrier(gpu, changes, dtype):
    spec = make_spec(**changes, activation="sine")
    coords, weights = make_coords("points", 1, 150, 2), make_weights(spec, 1, dtype)
    grad = torch.randn(1, 150, spec.out_dim, generator=torch.Generator().manual_seed(3))
    results = []
    for backwards in (False, True):
        gpu.device(A100, 1, backwards)
        values = gpu.field(spec, coords, weights)
        results.append((values, *gpu.field_backward(spec, coords, weights, grad)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_phases_of_any_size(gpu, dtype):
    # One sine of the coordinate: w0 and weight 1, so that the phase is a float32 number.
    spec = FieldSpec(1, 1, 1, 0, activation="sine", w0=1.0, bias=False)
    weights = torch.ones(1, 2, dtype=dtype)
    phases = torch.cat([torch.logspace(-6, 8, 2001), -torch.logspace(-6, 8, 2001)])
    got = gpu.field(spec, phases.view(1, -1, 1), weights).flatten()
    limit = 4e-7 if dtype == torch.float32 else 6e-4
    assert (got.double() - phases.double().sin()).abs().max() <= limit
    wild = torch.tensor([math.inf, -math.inf, math.nan, 3e38])
    got = gpu.field(spec, wild.view(1, -1, 1), weights).flatten()
    assert got[:3].isnan().all() and got[3].abs() <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_numbers_out_of_range_show(gpu, dtype):
    spec = make_spec(hidden_dim=32, activation="relu")
    coords, weights = make_coords("points", 1, 64, 2), make_weights(spec, 1, dtype)
    weights[0, 5] = math.nan
    assert gpu.field(spec, coords, weights).isnan().any()


def test_what_does_not_fit_is_refused(gpu):
    def refused(backward=False, dtype=torch.float32, **changes):
        return gpu.refused(call_of(make_spec(**changes), dtype, 1, 1), backward)

    assert not refused(hidden_dim=128, out_dim=16, coord_dim=16)
    assert refused(hidden_dim=129) and refused(out_dim=17) and refused(coord_dim=17)
    assert refused(encoding=FourierEncoding.log_spaced(129, 8.0))
    for dtype in DTYPES:  # any depth
        for width in (64, 128):
            deep = {"hidden_dim": width, "hidden_layers": 20, "activation": "sine"}
            for backward in (False, True):
                assert not refused(backward, dtype, **deep), (dtype, width, backward)
    gpu.device(100 << 10)
    assert refused(backward=True, hidden_dim=128)
