"""Streaming evaluation: the same values, in memory that does not grow with the output."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ginr_fast


@pytest.fixture
def decoder() -> ginr_fast.LocalityAwareDecoder:
    torch.manual_seed(0)
    return ginr_fast.LocalityAwareDecoder(token_dim=8, hidden_dim=16, feature_dim=16)


def test_stream_equals_one_call(decoder):
    tokens, grid = torch.randn(2, 5, 8), ginr_fast.grid(23, 17)
    found = torch.zeros(2, 23, 17, 3)
    for rows, values in ginr_fast.stream(decoder, grid, tokens, max_points=60):
        assert not values.requires_grad
        found[:, rows] = values
    torch.testing.assert_close(found, decoder(grid, tokens), rtol=1e-5, atol=1e-6)


def test_files_hold_the_values(decoder, tmp_path):
    tokens, grid = torch.randn(1, 5, 8), ginr_fast.grid(40, 30)
    expected = decoder(grid, tokens)[0].detach()
    npy = ginr_fast.decode_to_file(decoder, grid, tokens, tmp_path / "v.npy", max_points=100)
    np.testing.assert_allclose(np.load(npy), expected.numpy(), rtol=1e-5, atol=1e-6)
    png = ginr_fast.decode_to_file(decoder, grid, tokens, tmp_path / "v.png", max_points=100)
    pixels = np.asarray(Image.open(png)).astype(float)
    assert pixels.shape == (40, 30, 3)
    assert np.abs(pixels - 255 * expected.clamp(0, 1).numpy()).max() <= 0.51
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.npy", "v.png"]


def test_a_failure_leaves_no_file(decoder, tmp_path):
    def broken(coords, tokens):
        if coords.axes[0][0] > 0:
            raise RuntimeError("stopped")
        return decoder(coords, tokens)

    with pytest.raises(RuntimeError, match="stopped"):
        ginr_fast.decode_to_file(
            broken, ginr_fast.grid(40, 30), torch.randn(1, 5, 8), tmp_path / "v.npy", 100
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"tokens": torch.randn(2, 5, 8)}, "tokens"),
        ({"path": "v.jpg"}, "path"),
        ({"coords": ginr_fast.grid(4)}, "coords"),
        ({"coords": ginr_fast.grid(0, 4)}, "coords"),
        ({"coords": torch.rand(4, 4, 2)}, "coords"),
        ({"max_points": 0}, "max_points"),
    ],
)
def test_bad_input_is_named(decoder, tmp_path, change, argument):
    call = {
        "coords": ginr_fast.grid(4, 4),
        "tokens": torch.randn(1, 5, 8),
        "path": "v.png",
    } | change
    call["path"] = tmp_path / call["path"]
    with pytest.raises((ValueError, TypeError), match=argument):
        ginr_fast.decode_to_file(decoder, **call)


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_memory_does_not_grow_with_the_output(tmp_path):
    script = """
import sys, torch, ginr_fast
torch.manual_seed(0)
decoder = ginr_fast.LocalityAwareDecoder(token_dim=8, hidden_dim=8, feature_dim=8, heads=1)
side, path = int(sys.argv[1]), sys.argv[2]
ginr_fast.decode_to_file(decoder, ginr_fast.grid(side, side), torch.randn(1, 2, 8), path, 1 << 16)
status = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", script, str(side), str(tmp_path / f"{side}.npy")],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for side in (256, 2048)
    ]
    # 2048² values are 50 MB; the peak (in KiB) must not carry them.
    assert peaks[1] - peaks[0] < 25_000
