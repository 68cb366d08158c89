"""What the CUDA kernels compile to, watched without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tyro")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cuda_report  # noqa: E402

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4ginr9field_mlp4cuda15backward_kernelINS_6device4ThinI\
NS3_9Operand16ILb1EEEEELi128EEEvNS1_7NetworkEPf' for 'sm_90a'
ptxas info    : Function properties for _ZN4ginr
    512 bytes stack frame, 848 bytes spill stores, 980 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 512 bytes cumulative stack size
ptxas info    : Compiling entry function '_ZN4ginr15mixture_average4cuda14average_kernelI6__halfEEv\
NS1_8SegmentsIKT_EEPS5_PS4_' for 'sm_90a'
ptxas info    : Function properties for _ZN4ginr
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 94 registers, used 1 barriers, 16384 bytes smem
"""


@pytest.mark.skipif(cuda_report.nvcc() is None, reason="needs nvcc")
@pytest.mark.timeout(300)
def test_kernels_stay_within_their_bounds_and_the_stored_table():
    command = [sys.executable, "benchmarks/cuda_report.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_stored_table_is_of_these_sources_and_none_of_its_kernels_spills():
    table = cuda_report.stored_table()
    assert cuda_report.stale(table) == []
    rows = table["rows"]
    assert [problem for row in rows for problem in cuda_report.out_of_bounds(row)] == []
    assert len({cuda_report.identity(row) for row in rows}) == len(rows)
    assert {row["arch"] for row in rows} == set(cuda_report.ARCHS)
    compiled = {row["source"] for row in rows}
    # This one only chooses among the kernels of the others.
    assert compiled == set(cuda_report.sources()) - {"field_mlp/cuda.cu"}
    assert cuda_report.dumps(json.loads(cuda_report.TABLE.read_text())) == (
        cuda_report.TABLE.read_text()
    )


def test_the_page_comes_from_the_stored_table():
    expected = cuda_report.page(cuda_report.stored_table())
    assert cuda_report.PAGE.read_text() == expected, "run python benchmarks/cuda_report.py --write"


def test_a_report_is_read_and_faults_are_found():
    spilled, fine = cuda_report.parse(REPORT, "some.cu")
    assert spilled == {
        "source": "some.cu",
        "kernel": "backward_kernel",
        "type": "bfloat16",
        "width": 128,
        "arch": "sm_90a",
        "registers": 255,
        "spill_store_bytes": 848,
        "spill_load_bytes": 980,
        "stack_bytes": 512,
        "static_shared_bytes": 0,
    }
    assert (fine["kernel"], fine["type"], fine["width"]) == ("average_kernel", "float16", 0)
    assert fine["static_shared_bytes"] == 16384
    assert len(cuda_report.out_of_bounds(spilled)) == 2 and not cuda_report.out_of_bounds(fine)
    fewer = {**fine, "registers": 80}
    assert cuda_report.compare([fine], [fine], True) == []
    assert len(cuda_report.compare([fine], [fewer], True)) == 1
    assert len(cuda_report.compare([fine], [fine, spilled], True)) == 1
    assert cuda_report.compare([fine], [fine, spilled], False) == []
    assert len(cuda_report.compare([spilled], [fine], False)) == 1
    table = {"sources": {**cuda_report.digests(), "common/mma.cuh": "another"}}
    assert len(cuda_report.stale(table)) == 1
