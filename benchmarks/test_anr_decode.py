"""``AnrDecoder`` at the published size against the published formula."""

from __future__ import annotations

import pytest
import torch
from decoder_cases import Case, gpu_cases, run

import ginr_fast

CASES = (
    Case("forward-shared", 4, 128, compiled=True),
    Case("train-shared", 4, 128, train=True),
    Case("forward-grid", 1, 128, grid=True),
    Case("forward-per-instance", 2, 128, per_instance=True),
    Case("train-mish", 1, 128, train=True, activation="mish"),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case", gpu_cases(128) if torch.cuda.is_available() else CASES, ids=lambda case: case.name
)
def test_anr_decode(benchmark, case: Case, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    decoder = ginr_fast.AnrDecoder(activation=case.activation)
    run(benchmark, "anr_decode", decoder, case, dtype, device)
