"""The search for tile sizes, its table and its choices, with a timer that is made up."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("tyro")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tune_tiles  # noqa: E402

from ginr_fast.ops.kernels import launch  # noqa: E402

PRESENT = {"rows": 64, "tokens": 32, "warps": 8, "stages": 2}


def entry(chips, tiles, bits=16, widest=128):
    return {"chips": chips, "bits": bits, "max_width": widest, "tiles": tiles}


def small_table():
    return {
        "attention": [
            entry(["sm_80", "sm_90"], PRESENT),
            entry(["sm_90", "small"], {**PRESENT, "rows": 32}, widest=100000),
            entry(["sm_90"], {**PRESENT, "rows": 16}, bits=32),
        ]
    }


def test_candidates_change_one_size_each():
    found = tune_tiles.candidates("attention", PRESENT)
    assert PRESENT not in found
    for tiles in found:
        assert tiles.keys() == PRESENT.keys()
        assert sum(tiles[name] != PRESENT[name] for name in PRESENT) == 1
    assert len({tuple(tiles.items()) for tiles in found}) == len(found)
    assert len(found) == 3 + 3 + 1 + 3  # rows, tokens, warps, stages
    # A size that an entry does not have is not invented.
    assert all("warps" not in t for t in tune_tiles.candidates("span", {"forward": 25344}))


def test_the_axes_cover_the_table_in_the_library():
    table = json.loads(launch.TABLE.read_text())
    assert set(tune_tiles.AXES) == set(table)
    for kind, entries in table.items():
        for each in entries:
            free = set(each["tiles"]) - {"warps", "stages", "least", "bytes", "channels"}
            assert not each["tiles"] or free == set(tune_tiles.AXES[kind]), kind


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([10.0, 9.0, 8.0], 2),
        ([10.0, 9.9, 9.85], 0),  # within the noise
        ([10.0, None, 9.0], 2),
        ([None, 12.0, 11.0], 2),  # the present one does not work at all
        ([None, None, None], 0),
        ([10.0, None, None], 0),
        ([10.0, 8.0, 8.0], 1),
    ],
)
def test_choice(times, expected):
    entries = [{"rows": rows} for rows in (16, 32, 64)]
    found = tune_tiles.choose(list(zip(entries, times, strict=True)), entries[0])
    assert found == entries[expected]


def made_up(best, slope=0.1):
    """Milliseconds that grow with every size that is not the best one."""
    return lambda tiles: 1.0 + slope * sum(tiles[name] != best[name] for name in best)


def test_the_search_reaches_an_optimum_several_changes_away():
    best = {"rows": 128, "tokens": 64, "warps": 4, "stages": 3}
    calls = []

    def timer(tiles):
        calls.append(tuple(tiles.items()))
        return made_up(best)(tiles)

    found, before, after = tune_tiles.search("attention", PRESENT, timer, rounds=9)
    assert (found, after) == (best, 1.0) and before == pytest.approx(1.4)
    assert len(calls) == len(set(calls))  # nothing is timed twice
    found, _, _ = tune_tiles.search("attention", PRESENT, timer, rounds=1)
    assert sum(found[name] != PRESENT[name] for name in PRESENT) == 1


def test_tiles_that_fail_are_never_taken():
    def timer(tiles):
        return 1.0 if tiles == PRESENT else None

    assert tune_tiles.search("attention", PRESENT, timer, 4) == (PRESENT, 1.0, 1.0)


def test_a_replaced_entry_leaves_other_chips_and_the_order_alone():
    table = small_table()
    before = copy.deepcopy(table)
    tiles = {**PRESENT, "rows": 128}
    after = tune_tiles.replaced(table, "attention", "sm_90", 16, 128, tiles)
    assert table == before
    assert after["attention"] == [
        entry(["sm_90"], tiles),
        entry(["sm_80"], PRESENT),
        *before["attention"][1:],
    ]
    again = tune_tiles.replaced(after, "attention", "sm_90", 16, 128, tiles)
    assert again == after
    with pytest.raises(LookupError, match="small, 32 bits"):
        tune_tiles.replaced(table, "attention", "small", 32, 128, tiles)


def test_an_entry_that_is_never_reached_is_not_tuned():
    table = small_table()
    table["attention"].append(entry(["sm_80", "sm_90"], {**PRESENT, "rows": 256}))
    found = list(tune_tiles.classes(table, "attention", "sm_90"))
    assert [(bits, widest) for bits, widest, _ in found] == [(16, 128), (16, 100000), (32, 128)]
    after = tune_tiles.replaced(table, "attention", "sm_90", 16, 128, {**PRESENT, "rows": 32})
    own = [e for e in after["attention"] if e["chips"] == ["sm_90"] and e["bits"] == 16]
    assert len(own) == 1
    assert after["attention"][-1]["chips"] == ["sm_80"]


def test_tuning_a_whole_table_and_reading_it_back(tmp_path, monkeypatch, capsys):
    seen = set()

    def timer(kind, bits, widest, tiles):
        seen.add((kind, bits, widest))
        return made_up({"rows": 128, "warps": 4} if widest == 128 else {"stages": 3})(tiles)

    arguments = tune_tiles.Arguments(kinds=("attention",))
    table = tune_tiles.tune(small_table(), "sm_90", timer, arguments)
    assert seen == {("attention", 16, 128), ("attention", 16, 100000), ("attention", 32, 128)}
    path = tmp_path / "tiles.json"
    tune_tiles.write(path, table)
    assert json.loads(path.read_text()) == table
    assert list(tmp_path.iterdir()) == [path]
    assert "attention, 16 bits, width 128" in capsys.readouterr().out

    monkeypatch.setattr(launch, "TABLE", path)
    launch._table.cache_clear()
    try:
        for family, width, expected in (
            ("sm_90", 128, {**PRESENT, "rows": 128, "warps": 4}),
            ("sm_90", 200, {**PRESENT, "rows": 32, "stages": 3}),
            ("sm_80", 128, PRESENT),
            ("small", 128, {**PRESENT, "rows": 32}),
        ):
            with launch.recording(family):
                found = launch.tiles("attention", torch.device("cpu"), torch.bfloat16, width)
            assert found == expected
    finally:
        launch._table.cache_clear()

    only = tune_tiles.Arguments(kinds=("attention",), bits=(32,))
    seen.clear()
    tune_tiles.tune(small_table(), "sm_90", timer, only)
    assert seen == {("attention", 32, 128)}
    with pytest.raises(ValueError, match="kinds: .*span"):
        tune_tiles.tune(small_table(), "sm_90", timer, tune_tiles.Arguments(kinds=("span",)))


def test_the_library_s_table_survives_being_written():
    table = json.loads(launch.TABLE.read_text())
    assert json.loads(tune_tiles.dumps(table)) == table
    for chip in ("sm_80", "sm_90", "sm_100", "small"):
        for kind in table:
            for bits, widest, tiles in tune_tiles.classes(table, kind, chip):
                assert tune_tiles.replaced(table, kind, chip, bits, widest, tiles) == table


def test_problems_fall_into_the_width_class_they_tune():
    for kind in tune_tiles.AXES:
        for widest in (64, 128, 256, 100000):
            sizes = tune_tiles.sizes(kind, widest)
            width = sizes["head_dim" if kind in tune_tiles.HEAD_KINDS else "hidden_dim"]
            assert width <= widest
            assert width == min(widest, 512 if kind in tune_tiles.HEAD_KINDS else 256)


def test_results_that_differ_are_refused():
    x = torch.randn(100)
    assert tune_tiles.agree([x, x], [x, x * 1.0001], 1e-3)
    assert not tune_tiles.agree([x, x], [x, x * 1.01], 1e-3)
    assert not tune_tiles.agree([x * float("nan")], [x], 1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing():
    before = launch.TABLE.read_text()
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "benchmarks/tune_tiles.py"],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.strip() == "tuning times kernels on a GPU, and PyTorch finds none here"
    assert launch.TABLE.read_text() == before


@pytest.mark.gpu
def test_a_timer_on_a_gpu_measures_and_refuses():
    timer = tune_tiles.DeviceTimer(batch=2, side=40)
    present = launch.tiles("attention", torch.device("cuda"), torch.bfloat16, 128)
    time = timer("attention", 16, 128, present)
    assert time is not None and 0 < time < 1000
    assert timer("attention", 16, 128, {**present, "rows": 4096, "stages": 4}) is None
