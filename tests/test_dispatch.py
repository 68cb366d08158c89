"""Choosing a backend, forcing one, and explaining the choice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from locality_cases import SMALL, make_coords, make_decoder, make_tokens

import ginr_fast
from ginr_fast import BackendError
from ginr_fast.ops import dispatch

DECODER = make_decoder(**SMALL)
COORDS, TOKENS = make_coords("grid", 2, 9, 2), make_tokens(2, 7, 11)


def used() -> str:
    (plan,) = ginr_fast.explain(DECODER, COORDS, TOKENS).plans
    return plan.backend


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("GINR_FAST_BACKEND", raising=False)


def test_contexts_nest_and_restore():
    assert (dispatch.forced_backend(), used()) == (None, "blocked")
    with ginr_fast.backend("reference"):
        assert used() == "reference"
        with ginr_fast.backend("blocked"):
            assert used() == "blocked"
        assert used() == "reference"
    assert (dispatch.forced_backend(), used()) == (None, "blocked")


def test_an_exception_restores():
    with pytest.raises(KeyError), ginr_fast.backend("reference"):
        raise KeyError
    assert dispatch.forced_backend() is None


@pytest.mark.parametrize("name", ["cuda", "", "Reference", None])
def test_unknown_names(name, monkeypatch):
    with (
        pytest.raises(ValueError, match="^backend: expected one of reference, blocked"),
        ginr_fast.backend(name),
    ):
        pass
    assert dispatch.forced_backend() is None
    if name:
        monkeypatch.setenv("GINR_FAST_BACKEND", name)
        with pytest.raises(ValueError, match="^GINR_FAST_BACKEND: expected one of.*" + name):
            DECODER(COORDS, TOKENS)


def test_the_environment_forces_and_the_context_wins(monkeypatch):
    monkeypatch.setenv("GINR_FAST_BACKEND", "reference")
    assert used() == "reference"
    with ginr_fast.backend("blocked"):
        assert used() == "blocked"
    monkeypatch.setenv("GINR_FAST_BACKEND", "")
    assert used() == "blocked"


def test_choose():
    candidates = {"native": "no compiler", "blocked": None, "reference": None}
    assert dispatch.choose("thing", candidates) == "blocked"
    with ginr_fast.backend("reference"):
        assert dispatch.choose("thing", candidates) == "reference"
    with (
        ginr_fast.backend("native"),
        pytest.raises(BackendError, match="thing: backend 'native' was forced, but no compiler"),
    ):
        dispatch.choose("thing", candidates)
    with ginr_fast.backend("triton"), pytest.raises(BackendError, match="no such backend"):
        dispatch.choose("thing", candidates)
    with pytest.raises(BackendError, match="thing: no backend can serve.*no compiler"):
        dispatch.choose("thing", {"native": "no compiler"})


# --- explain ---


def paper_plan(coords, batch=8, **arguments):
    decoder = make_decoder(**arguments).to("meta")
    tokens = torch.empty(batch, 256, 256, device="meta")
    (plan,) = ginr_fast.explain(decoder, coords, tokens).plans
    return plan


def test_flops_of_a_grid_at_paper_size():
    plan = paper_plan(ginr_fast.grid(178, 178, device="meta"))
    points = 2 * 8 * 178 * 178
    assert plan.naive_flops / points == 8 * 256**2 + 2 * 256**2 + 2 * 256 * 3
    assert plan.flops / points == pytest.approx(329e3, rel=0.03)
    assert 1.9 <= plan.naive_flops / plan.flops <= 2.1
    assert "shared coordinates: queries and features once, not 8 times" in plan.foldings
    assert "separable grid: 356 feature rows instead of 31684" in plan.foldings
    assert "attention output projection folded into the modulation weights" in plan.foldings


def test_flops_of_shared_and_of_separate_points_at_paper_size():
    shared = paper_plan(torch.empty(1, 1024, 2, device="meta"))
    # Four of the eight maps once for the batch (W_q, its projection, two W_F), W_o folded away.
    once, each = 4 * 256**2, 3 * 256**2 + 2 * 256**2 + 2 * 256 * 3
    assert shared.flops == 2 * 1024 * (once + 8 * each)
    separate = paper_plan(torch.empty(8, 1024, 2, device="meta"))
    assert separate.flops == 2 * 1024 * 8 * (once + each)
    assert separate.naive_flops == shared.naive_flops
    assert shared.flops < separate.flops < separate.naive_flops


def test_the_reference_costs_what_is_published():
    with ginr_fast.backend("reference"):
        plan = paper_plan(torch.empty(1, 64, 2, device="meta"))
    assert (plan.backend, plan.foldings) == ("reference", ())
    assert plan.flops == plan.naive_flops == 2 * 8 * 64 * (10 * 256**2 + 2 * 256 * 3)


def test_it_reads_well():
    text = str(ginr_fast.explain(DECODER, COORDS, TOKENS))
    assert text.startswith("locality_decode: backend blocked\n  folding: ")
    assert "x fewer" in text and "of the naive formula" in text
    plan = dispatch.Plan("thing", "blocked", (), 0, 0, {"native": "no compiler"})
    assert "folding: none" in str(plan) and "not native: no compiler" in str(plan)
    assert str(ginr_fast.explain(lambda: None)) == "no ginr_fast operator was called"


def test_every_call_is_explained_and_only_while_listening():
    assert not dispatch.recording()

    def twice():
        assert dispatch.recording()
        inner = ginr_fast.explain(DECODER, COORDS, TOKENS)
        assert len(inner.plans) == 1
        DECODER(COORDS, TOKENS)
        with ginr_fast.backend("reference"):
            DECODER(COORDS, TOKENS)

    plans = ginr_fast.explain(twice).plans
    assert [plan.backend for plan in plans] == ["blocked", "reference"]

    def fails():
        raise KeyError

    with pytest.raises(KeyError):
        ginr_fast.explain(fails)
    assert not dispatch.recording()


# --- profiling ---


@pytest.mark.parametrize("enabled", ["0", "1"])
def test_profiling_changes_no_result(enabled):
    if enabled == "1":
        pytest.importorskip("nvtx")
    program = """
from ginr_fast import profiling
@profiling.annotate("double")
def double(x):
    "Twice."
    return 2 * x
with profiling.phase("training"):
    print(profiling.ENABLED, double(21), double.__name__, double.__doc__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "GINR_FAST_NVTX": enabled},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(enabled == "1"), "42", "double", "Twice."]
