"""``LocalityAwareDecoder`` at the paper's size against the published formula."""

from __future__ import annotations

import pytest
import torch
from decoder_cases import Case, gpu_cases, run

import ginr_fast

CASES = (
    Case("forward-shared", 8, 178, compiled=True),
    Case("train-shared", 4, 178, train=True, compiled=True),
    Case("forward-grid", 1, 178, grid=True),
    Case("train-grid", 1, 178, train=True, grid=True),
    Case("forward-per-instance", 2, 178, per_instance=True),
    Case("train-per-instance", 2, 178, train=True, per_instance=True),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case", gpu_cases(178) if torch.cuda.is_available() else CASES, ids=lambda case: case.name
)
def test_locality_decode(benchmark, case: Case, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    decoder = ginr_fast.LocalityAwareDecoder()
    run(benchmark, "locality_decode", decoder, case, dtype, device)
