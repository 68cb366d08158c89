"""The extension's sine, cosine and exponential over the whole range of float, on every path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from field_cases import NATIVE, engine

from ginr_fast import _C

SINE_LIMIT = 2e-7  # absolute; the head of csrc/common/vector_math.h
EXPONENTIAL_LIMIT = 1e-7  # relative, where the result is a normal number


def every_exponent(mantissas: int) -> torch.Tensor:
    """Floats of every exponent (that of denormals and of 0 too) and either sign."""
    generator = np.random.default_rng(0)
    exponents = np.repeat(np.arange(255, dtype=np.uint32), mantissas)
    bits = (exponents << 23) | generator.integers(0, 1 << 23, exponents.size, dtype=np.uint32)
    sign = np.uint32(1 << 31)
    return torch.from_numpy(np.concatenate((bits, bits | sign)).view(np.float32).copy())


def special() -> torch.Tensor:
    tiny, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    edges = [0.0, -0.0, 1e-45, -1e-45, tiny, -tiny, largest, -largest, 2.5e4, 5e4, -2.5e4, -5e4]
    return torch.tensor([*edges, math.inf, -math.inf, math.nan])


def near_multiples() -> torch.Tensor:
    """Floats around multiples of pi/2, where reductions lose digits, far beyond both limits of the
    fast reduction."""
    multiples = torch.arange(-60_000, 60_000, dtype=torch.float64) * (math.pi / 2)
    floats = multiples.float().numpy()
    up, down = (np.nextafter(floats, np.float32(side)) for side in (math.inf, -math.inf))
    return torch.from_numpy(np.concatenate((floats, up, down)))


def dense(low: float, high: float, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, generator=generator) * (high - low) + low


def sine_cosine(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sine, cosine = torch.full_like(x, 9.0), torch.full_like(x, 9.0)
    _C.vector_sine_cosine(x.data_ptr(), x.numel(), sine.data_ptr(), cosine.data_ptr())
    return sine, cosine


def exponential(x: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(x, 9.0)
    _C.vector_exponential(x.data_ptr(), x.numel(), out.data_ptr())
    return out


@pytest.mark.parametrize("name", NATIVE)
def test_sine_and_cosine(name):
    x = torch.cat((every_exponent(1500), special(), near_multiples(), dense(-300, 300, 900_000)))
    assert x.numel() > 2_000_000
    with engine(name):
        results = sine_cosine(x)
    finite = x.isfinite()
    for got, function in zip(results, (np.sin, np.cos), strict=True):
        want = torch.from_numpy(function(x.numpy()[finite.numpy()].astype(np.float64)))
        assert (got[finite].double() - want).abs().max() <= SINE_LIMIT
        assert got[~finite].isnan().all()
        assert (got[finite].abs() <= 1.0000001).all()


@pytest.mark.parametrize("name", NATIVE)
def test_small_arguments_keep_relative_accuracy(name):
    """sin x = x for tiny x, denormals too."""
    x = every_exponent(100)
    x = x[(x.abs() < 1e-4) & (x != 0)]
    with engine(name):
        sine, cosine = sine_cosine(x)
    assert torch.equal(torch.signbit(sine), torch.signbit(x))
    assert torch.allclose(sine, x, rtol=1e-6, atol=0)
    assert (cosine - 1).abs().max() <= 1e-7


@pytest.mark.parametrize("name", NATIVE)
def test_exponential(name):
    x = torch.cat((every_exponent(2500), special(), dense(-104, 89, 900_000)))
    assert x.numel() > 2_000_000
    with engine(name):
        got = exponential(x)
    number = ~x.isnan()
    assert got[~number].isnan().all()
    x, got = x[number], got[number]
    with np.errstate(over="ignore"):
        want = torch.from_numpy(np.exp(x.numpy().astype(np.float64)))
    smallest, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    normal = (want >= smallest) & (want <= largest)
    assert ((got[normal].double() - want[normal]) / want[normal]).abs().max() <= EXPONENTIAL_LIMIT
    below = want < smallest
    assert (got[below].double() - want[below]).abs().max() <= smallest * 2.0**-23
    assert (got[want > largest * (1 + 2.0**-24)] == math.inf).all()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
@pytest.mark.parametrize("name", NATIVE)
def test_counts_that_fill_no_vector(name, count):
    """Exactly ``count`` numbers are written."""
    x, outs = torch.linspace(-3, 3, 40), [torch.full((40,), 9.0) for _ in range(3)]
    with engine(name):
        _C.vector_sine_cosine(x.data_ptr(), count, outs[0].data_ptr(), outs[1].data_ptr())
        _C.vector_exponential(x.data_ptr(), count, outs[2].data_ptr())
    for out, want in zip(outs, (x.sin(), x.cos(), x.exp()), strict=True):
        assert torch.allclose(out[:count], want[:count], rtol=1e-6, atol=1e-6)
        assert (out[count:] == 9).all()
