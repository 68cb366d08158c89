"""What only a GPU can show of ``locality_decode``: the blocked backend on CUDA tensors."""

from __future__ import annotations

import copy

import pytest
import torch

import ginr_fast

pytestmark = pytest.mark.gpu
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 1.5e-2}


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", ["grid", "points"])
def test_values_and_gradients(dtype, kind):
    torch.manual_seed(0)
    # Full float32 products: TF32 has a bound of its own.
    torch.backends.cuda.matmul.allow_tf32 = False
    decoder = ginr_fast.LocalityAwareDecoder().cuda()
    exact = copy.deepcopy(decoder).double()
    decoder = decoder.to(dtype)
    tokens = torch.randn(2, 256, 256, device="cuda", dtype=dtype, requires_grad=True)
    tokens64 = tokens.detach().double().requires_grad_()
    coords = ginr_fast.grid(40, 60, device="cuda")
    if kind == "points":
        coords = torch.rand(2, 2000, 2, device="cuda") * 2 - 1
    values = decoder(coords, tokens)
    with ginr_fast.backend("reference"):
        expected = exact(coords, tokens64)
    weights = torch.randn_like(expected)
    values.backward(weights.to(dtype))
    expected.backward(weights)
    assert _relative(values, expected) <= BOUNDS[dtype]
    assert tokens.grad is not None and tokens64.grad is not None
    assert _relative(tokens.grad, tokens64.grad) <= 5 * BOUNDS[dtype]


def test_compiled_whole():
    decoder = ginr_fast.LocalityAwareDecoder().cuda()
    tokens = torch.randn(2, 256, 256, device="cuda")
    grid = ginr_fast.grid(32, 32, device="cuda")
    compiled = torch.compile(decoder, fullgraph=True)
    torch.testing.assert_close(compiled(grid, tokens), decoder(grid, tokens))


def test_memory_stays_below_a_tenth_of_the_reference():
    decoder = ginr_fast.LocalityAwareDecoder().cuda()
    coords = ginr_fast.grid(178, 178, device="cuda").tensor().expand(16, -1, -1, -1)

    def peak(backend: str) -> int:
        tokens = torch.randn(16, 256, 256, device="cuda", requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with ginr_fast.backend(backend):
            decoder(coords.contiguous(), tokens).square().mean().backward()
        return torch.cuda.max_memory_allocated() - before

    assert 10 * peak("blocked") <= peak("reference")
