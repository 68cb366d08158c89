"""What the Triton kernels compile to, watched without a GPU, and the report that watches."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
pytest.importorskip("tyro")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import kernel_report  # noqa: E402
import toy_kernels  # noqa: E402
from kernel_cases import CASES  # noqa: E402
from kernel_compile import count, read, specialize  # noqa: E402
from kernel_costs import COSTS, H200, L2_BYTES, Cost, cost, roofline  # noqa: E402
from kernel_page import page  # noqa: E402

from ginr_fast.ops.kernels.launch import Launch, recording  # noqa: E402


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A Python program in which kernels are compiled, not interpreted."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute or two on two idle cores, from a cold cache
def test_every_kernel_stays_within_its_bounds_and_its_stored_table():
    # Of the other families the table is as current as its last writing; --check alone does all.
    result = run("benchmarks/kernel_report.py", "--check", "--families", "sm_80", "sm_90")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_kernel_of_the_library_is_compiled_in_some_case_and_has_a_cost():
    defined = set()
    for path in (ROOT / "ginr_fast" / "ops").rglob("*.py"):
        defined |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE))
    launched = set()
    for case in CASES.values():
        with recording("sm_90") as launches:
            case()
        launched |= {launch.name for launch in launches}
    assert launched == defined == set(COSTS)


def test_the_page_comes_from_the_stored_tables():
    expected = page(kernel_report.stored_tables())
    assert (ROOT / "docs" / "kernels.md").read_text() == expected, (
        "run python benchmarks/kernel_report.py --write"
    )


def test_stored_tables_hold_what_they_say():
    for version, table in kernel_report.stored_tables().items():
        assert table["triton"] == version
        keys = [kernel_report.identity(row) for row in table["rows"]]
        assert len(set(keys)) == len(keys)
        assert {row["case"] for row in table["rows"]} == set(CASES)
        assert {row["family"] for row in table["rows"]} == set(kernel_report.FAMILIES)
        text = kernel_report.table_path(version).read_text()
        assert kernel_report.dumps(json.loads(text)) == text


# The report itself, on kernels with known faults.


@pytest.fixture(scope="module")
def toys():
    result = run("tests/toy_kernels.py")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def _row(report, kernel="product_kernel", family="sm_90"):
    return {"case": "toy", "family": family, "kernel": kernel, "index": 0, **report}


@pytest.mark.parametrize("arch", [80, 90])
def test_a_kernel_that_must_spill_is_reported_as_spilling(toys, arch):
    spilling = toys["reports"][f"spilling product, sm_{arch}"]
    assert spilling["spill_store_bytes"] > 128
    assert spilling["spill_load_bytes"] > 0
    assert spilling["stack"] >= spilling["spill_store_bytes"] // 4
    assert spilling["counts"]["local"] > 0
    [problem] = [
        text
        for text in kernel_report.out_of_bounds(_row(spilling, family=f"sm_{arch}"))
        if "spill" in text
    ]
    assert f"{spilling['spill_store_bytes']} bytes of spill stores, at most 128" in problem
    calm = toys["reports"][f"small product, sm_{arch}"]
    assert calm["spill_store_bytes"] == calm["stack"] == calm["counts"]["local"] == 0
    assert kernel_report.out_of_bounds(_row(calm, family=f"sm_{arch}")) == []


def test_register_growth_is_flagged(toys):
    small = toys["reports"]["small product, sm_90"]
    large = toys["reports"]["large product, sm_90"]
    assert large["registers"] > small["registers"] + kernel_report.REGISTER_SLACK
    problems = kernel_report.worse(_row(large), _row(small))
    assert any(f"registers {small['registers']} -> {large['registers']}" in p for p in problems)
    assert kernel_report.worse(_row(small), _row(small)) == []


def test_instructions_are_counted(toys):
    copied = toys["reports"]["copy, sm_90"]
    assert copied["counts"]["special"] >= 1 and copied["counts"]["tensor"] == 0
    assert copied["counts"]["global_load"] >= 1 and copied["counts"]["global_store"] >= 1
    assert (copied["half_dots"], copied["wgmma"], copied["shared_bytes"]) == (0, 0, 0)
    hopper = toys["reports"]["small product, sm_90"]
    assert hopper["wgmma"] > 0 and hopper["counts"]["tensor"] > 0 and hopper["half_dots"] == 1
    ampere = toys["reports"]["small product, sm_80"]
    # 64 × 64 × 64 in products of 16 × 8 × 16 by 4 warps.
    assert ampere["wgmma"] == 0 and ampere["counts"]["tensor"] == 4 * 8 * 4 // 4
    assert ampere["shared_bytes"] >= 2 * 64 * 64 * 2


def test_specialisations_follow_divisibility_and_are_compiled_once(toys):
    assert toys["attributes"] == ["i32"] * 4
    assert toys["distinct"] == 2  # 1000 and 1001 share theirs, 1024 and 2048 theirs
    assert toys["again"] == toys["reports"]["copy, sm_90"]


def test_interpreted_kernels_are_refused():
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are compiled here: there is a GPU")
    with pytest.raises(TypeError, match="TRITON_INTERPRET"):
        specialize(toy_kernels.copy(), 90)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "benchmarks/kernel_report.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode != 0 and "TRITON_INTERPRET" in result.stderr


REPORT = {
    "registers": 100,
    "spill_store_bytes": 0,
    "spill_load_bytes": 0,
    "stack": 0,
    "shared_bytes": 1000,
    "tensor_memory_columns": 0,
    "wgmma": 4,
    "half_dots": 1,
    "counts": {"tensor": 16, "special": 8},
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"registers": 108}, None),
        ({"registers": 109}, "registers 100 -> 109"),
        ({"registers": 40}, None),
        ({"spill_store_bytes": 4}, "spill_store_bytes 0 -> 4"),
        ({"spill_load_bytes": 4}, "spill_load_bytes 0 -> 4"),
        ({"counts": {"tensor": 8, "special": 8}}, "tensor instructions 16 -> 8"),
        ({"counts": {"tensor": 16, "special": 9}}, "special instructions 8 -> 9"),
        ({"shared_bytes": 2000}, None),
    ],
)
def test_what_counts_as_worse(change, problem):
    found = kernel_report.worse(_row({**REPORT, **change}), _row(REPORT))
    assert (problem is None and not found) or problem in found[0]
    small = _row({**REPORT, **change}, family="small"), _row(REPORT, family="small")
    assert kernel_report.worse(*small) == []


@pytest.mark.parametrize(
    ("kernel", "family", "change", "problem"),
    [
        ("layer_kernel", "sm_80", {"shared_bytes": 166_912}, None),
        ("layer_kernel", "sm_80", {"shared_bytes": 166_913}, "shared memory 166913"),
        ("layer_kernel", "sm_90", {"shared_bytes": 232_449}, "shared memory 232449"),
        ("layer_kernel", "small", {"shared_bytes": 101_377}, "shared memory 101377"),
        ("layer_kernel", "small", {"spill_store_bytes": 500, "wgmma": 0}, None),
        ("layer_kernel", "sm_90", {"spill_store_bytes": 128}, None),
        ("layer_kernel", "sm_90", {"spill_store_bytes": 132}, "at most 128"),
        ("token_gradient_kernel", "sm_90", {"spill_store_bytes": 4}, "at most 0"),
        ("layer_kernel", "sm_90", {"wgmma": 0}, "no wgmma"),
        ("layer_kernel", "sm_80", {"wgmma": 0}, None),
        ("layer_kernel", "sm_90", {"wgmma": 0, "half_dots": 0}, None),
        ("layer_kernel", "sm_100", {"tensor_memory_columns": 513}, "513 columns"),
    ],
)
def test_absolute_bounds(kernel, family, change, problem):
    found = kernel_report.out_of_bounds(_row({**REPORT, **change}, kernel, family))
    assert (problem is None and not found) or problem in found[0]


def test_rows_that_come_and_go_are_differences():
    row, other = _row(REPORT), {**_row(REPORT), "index": 1}
    assert kernel_report.compare([row, other], [row, other]) == []
    [problem] = kernel_report.compare([row, other], [row])
    assert problem == "toy, product_kernel #2, sm_90: not in the stored table"
    [problem] = kernel_report.compare([row], [row, other])
    assert problem.endswith("no longer launched")
    assert kernel_report.compare([row], [row, other], whole=False) == []


def test_disassembly_and_log_are_read():
    text = """
        /*0000*/                   LDG.E.128 R4, [R2] ;
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R5], [R6] ;
        /*1f0a0*/             @UP1 UTMALDG.2D [UR4], [UR8] ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4] ;
        /*0040*/                   MUFU.EX2 R4, R4 ;
        /*0050*/                   STL [R1+0x4], R4 ;
        /*0060*/                   FMUL R4, R4, R5 ;  // LDL in a comment
    """
    counts = count(text)
    found = {kind: number for kind, number in counts.items() if number}
    assert found == {"global_load": 3, "tensor": 1, "special": 1, "local": 1}
    with pytest.raises(ValueError, match="log: no registers"):
        read(None, "")


def test_a_case_that_launches_nothing_and_an_unknown_family_are_errors():
    with pytest.raises(ValueError, match="launched no kernel"):
        kernel_report.rows_of({"nothing": lambda: None}, ["sm_90"])
    with pytest.raises(ValueError, match="families: .*sm_75"):
        kernel_report.main(kernel_report.Arguments(families=("sm_75",)))
    with pytest.raises(ValueError, match="write: "):
        kernel_report.main(kernel_report.Arguments(write=True, families=("sm_90",)))


# Costs and the roofline.


def test_the_forward_costs_what_the_algebra_says():
    """Tensor-core work of a whole forward against the sum over its maps."""
    with recording("sm_90") as launches:
        CASES["LA-GINR, 178², batch 16, bf16, forward"]()
    points, d, tokens, batch = 178 * 178, 256, 256, 16
    shared = points * (3 * d * d + d * d)  # features of three bands, query projection
    own = batch * points * (2 * tokens * d + 3 * d * d)  # the heads are sums over rows
    total = sum((cost(launch) for launch in launches), Cost())
    assert 1.0 <= total.tensor / (2 * (shared + own)) < 1.04  # rows are padded to whole tiles
    exponentials = sum(cost(launch).special for launch in launches if "attention" in launch.name)
    assert exponentials == pytest.approx(2 * batch * points * tokens, rel=0.04)  # two heads
    phases = total.special - exponentials
    assert phases == pytest.approx(points * 3 * 128 * 2 * 2, rel=0.04)  # in two column chunks


def _attention(**constants):
    import torch

    q = torch.empty(64, 32, dtype=torch.bfloat16, device="meta")
    values = {
        "ROWS": 64, "TOKENS": 32, "ALL_TOKENS": 128, "QUERY_DIM": 32, "QUERY_CHUNKS": 1,
        "VALUE_DIM": 64, "VALUE_CHUNKS": 1, "THRESHOLD": False, "STATISTICS": False,
        "RESIDENT": False, **constants,
    }  # fmt: skip
    return Launch("attention_kernel", None, (3, 2), {"q_ptr": q, "v_ptr": q}, values, 4, 2)


def test_costs_of_attention():
    plain = cost(_attention())
    assert plain.tensor == 6 * 2 * 64 * 128 * (32 + 64)
    assert plain.special == 6 * 64 * 128
    assert plain.l2 == 6 * 2 * (64 * 96 + 128 * 96)
    assert plain.memory == 64 * 32 * 2  # one tensor, given twice
    thresholded = cost(_attention(THRESHOLD=True))
    assert thresholded.tensor == 6 * 2 * 64 * 128 * (2 * 32 + 64)
    assert thresholded.special == 2 * plain.special


def test_a_resident_weight_is_read_once_a_program():
    """Costs of the same layer, each tile by a program of its own or walked over by two."""
    import torch

    def layer(grid, resident):
        x = torch.empty(1000, 64, dtype=torch.bfloat16, device="meta")
        constants = {
            "ROWS": 128, "COLUMNS": 32, "INNER": 64, "CHUNKS": 1, "ACTIVATION": "relu",
            "FEATURE": "none", "RESIDUAL": False, "SAVE": "none", "STORE": True, "HEAD": False,
            "RESIDENT": resident,
        }  # fmt: skip
        arguments = {"x_ptr": x, "count": 1000}
        return cost(Launch("layer_kernel", None, grid, arguments, constants, 4, 2))

    each, walked = layer((8, 2), False), layer((2, 2), True)
    assert each.tensor == walked.tensor == 8 * 2 * 2 * 128 * 32 * 64
    assert each.l2 - walked.l2 == (8 * 2 - 2 * 2) * 2 * 32 * 64


def test_the_binding_limit_sets_the_time():
    assert roofline(Cost(tensor=H200.tensor)) == (1.0, "tensor")
    assert roofline(Cost(tensor=1, l2=2 * H200.l2)) == (2.0, "l2")
    assert roofline(Cost(special=3 * H200.special, float32=H200.float32)) == (3.0, "special")
    fits, exceeds = Cost(memory=L2_BYTES), Cost(memory=2 * L2_BYTES)
    assert roofline(fits)[0] == 0.0
    assert roofline(exceeds) == (2 * L2_BYTES / H200.memory, "memory")


def test_a_kernel_without_a_cost_is_an_error():
    with pytest.raises(KeyError, match="product_kernel"):
        cost(toy_kernels.product(64, 4))


def test_the_page_says_what_the_rows_hold():
    row = {
        **_row({**REPORT, "counts": dict.fromkeys(("tensor", "special", "global_load"), 7)}),
        "constants": {"ROWS": 128, "COLUMNS": 64, "RELU": True, "SAVE": "none", "HEAD": False},
        "warps": 8,
        "stages": 3,
        "launches": 2,
        "cost": {"tensor": 2e9, "l2": 3e6, "memory": 4e6, "float32": 5e9, "special": 6e9},
        "microseconds": 12.0,
        "limit": "l2",
    }
    for kind in ("global_store", "shared_load", "shared_store", "local"):
        row["counts"][kind] = 3
    other = copy.deepcopy(row)
    other["case"] = "toy two"
    table = {"assembler": {"sm_90": "12.8"}, "roofline": vars(H200), "rows": [row, other]}
    text = page({"3.6.0": table})
    assert "1. toy\n2. toy two\n" in text
    line = "| 1, 2 | `product` | relu | 128×64, 8w 3s | 100 | 0/0 | 1000 | 7 | 4 | 7 | 7/3 | 3/3 |"
    assert line in text
    assert "| 1 | `product` | 2 | 2 | 3 | 4 | 5 | 6 | 12 | l2 |" in text
