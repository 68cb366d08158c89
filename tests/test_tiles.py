"""The table of tile sizes: an entry for every call that the Triton backend accepts."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from ginr_fast.ops import triton_backend

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
FAMILIES = ("sm_80", "sm_90", "sm_100", "small")
HEAD_KINDS = ("attention", "resident_attention", "query_gradient", "token_gradient")
LAYER_KINDS = (
    *("fourier", "fourier_linear", "expand_grid", "layer", "layer_backward"),
    *("resident_layer", "resident_layer_backward", "span"),
)


@pytest.mark.parametrize("dtype", triton_backend.WIDEST_HEAD, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_size_has_an_entry(family, dtype):
    from ginr_fast.ops.kernels import launch

    with launch.recording(family):
        for kind in HEAD_KINDS:
            for width in (16, 64, 128, 256, triton_backend.WIDEST_HEAD[dtype]):
                assert isinstance(launch.tiles(kind, torch.device("cpu"), dtype, width), dict)
        for kind in LAYER_KINDS:
            for width in (64, 256, 512, 8192):
                assert isinstance(launch.tiles(kind, torch.device("cpu"), dtype, width), dict)


def test_a_size_without_an_entry_is_named():
    from ginr_fast.ops.kernels import launch

    with launch.recording("sm_90"), pytest.raises(LookupError, match="attention.*sm_90.*1024"):
        launch.tiles("attention", torch.device("cpu"), torch.bfloat16, 1024)


def test_overrides_end_with_their_block():
    from ginr_fast.ops.kernels import launch

    device = torch.device("cpu")
    before = launch.tiles("layer", device, torch.bfloat16, 64)
    with launch.overridden(layer={"rows": 7}):
        assert launch.tiles("layer", device, torch.bfloat16, 64) == {"rows": 7}
    assert launch.tiles("layer", device, torch.bfloat16, 64) == before
