"""What the tests of the Triton backend share: tiles small enough for the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_TILES = {
    "fourier_linear": {"rows": 16, "columns": 64, "inner": 16},
    "fourier": {"rows": 16, "inner": 16},
    "expand_grid": {"rows": 16, "columns": 64},
    "layer": {"rows": 16, "columns": 64, "step": 32},
    "layer_backward": {"rows": 16, "columns": 64, "step": 32},
    "attention": {"rows": 16, "tokens": 16},
    "query_gradient": {"rows": 16, "tokens": 16},
    "token_gradient": {"rows": 16, "tokens": 16, "programs": 9},
    "resident_layer": {},
    "resident_layer_backward": {},
    "resident_attention": {},
    "span": {"forward": 64, "backward": 48, "least": 16},
    "field_input": {"rows": 32, "columns": 64, "step": 16},
    "field_encoded": {"rows": 32, "columns": 128, "step": 16},
    "field_layer": {"rows": 32, "columns": 64, "step": 64},
    "field_backward": {"rows": 32, "columns": 64, "step": 64},
    "field_head_backward": {"rows": 16, "columns": 128},
    "field_coords": {"rows": 16, "step": 32, "inner": 16},
    "resident_field_layer": {},
    "resident_field_backward": {},
    "field_chain": {},
    "field_chain_saved": {},
    "field_chain_backward": {},
    "field_span": {"forward": 24, "backward": 80, "least": 16},
}


_HELD = {"rows": 16, "bytes": 1 << 30, "programs": 3, "stages": 2}
RESIDENT_TILES = {
    "resident_layer": {**_HELD, "columns": 64, "channels": 8},
    "resident_layer_backward": {**_HELD, "columns": 64, "channels": 8},
    "resident_attention": {**_HELD, "tokens": 16, "programs": 12},
    "resident_field_layer": {**_HELD, "columns": 128, "channels": 8},
    "resident_field_backward": {**_HELD, "columns": 64, "channels": 8},
}
CHAIN_TILES = {
    "field_chain": {"rows": 16, "step": 16},
    "field_chain_saved": {"rows": 16, "step": 16},
    "field_chain_backward": {"rows": 16},
}


@contextmanager
def small_tiles(**changed: dict[str, int]) -> Iterator[None]:
    """Several tiles and spans even for a few points; workspaces start out as NaN."""
    from ginr_fast.ops.kernels import launch

    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with launch.overridden(**{**SMALL_TILES, **changed}):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
