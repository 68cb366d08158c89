"""Products of the blocked backends, whichever library takes them."""

from __future__ import annotations

import pytest
import torch

from ginr_fast.ops import gemm

X = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
W = torch.randn(24, 32, generator=torch.Generator().manual_seed(1))
BIAS = torch.randn(32, generator=torch.Generator().manual_seed(2))
OPERANDS = {
    "rows": (X, W.t().contiguous()),
    "a transposed weight": (X, W.t()),
    "columns of wider tensors": (X.repeat(1, 2)[:, 12:36], W.repeat(2, 2).t()[:32, 10:34]),
}


@pytest.fixture(params=[True, False], ids=["mkl", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_MKL", request.param)


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-6 * expected.norm())


@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["", "bias"])
def test_linear(library: None, operands: str, relu: bool, bias: torch.Tensor | None) -> None:
    x, weight = OPERANDS[operands]
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    found = gemm.linear(x, weight, bias, relu)
    assert near(found, expected.relu() if relu else expected)


@pytest.mark.parametrize("operands", OPERANDS)
def test_products_into_and_onto_columns_of_a_tensor(library: None, operands: str) -> None:
    x, weight = OPERANDS[operands]
    expected = x.double() @ weight.double().t()
    out = torch.ones(40, 50)
    gemm.linear_into(out[:, 5:37], x, weight)
    assert near(out[:, 5:37], expected)
    gemm.add_linear(out[:, 5:37], x, weight)
    assert near(out[:, 5:37], 2 * expected)
    assert bool((out[:, :5] == 1).all()) and bool((out[:, 37:] == 1).all())


@pytest.mark.parametrize("shape", [(24, 32), (32, 24)])
def test_transposed_product(library: None, shape: tuple[int, int]) -> None:
    x, y = torch.randn(70, shape[0] * 2)[:, ::2], torch.randn(70, shape[1])
    assert near(gemm.transposed_product(x, y), x.double().t() @ y.double())
