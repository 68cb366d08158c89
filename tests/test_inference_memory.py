"""Decoding without gradients takes memory for its results, not for activations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import torch
from deployed_decoders import DECODERS
torch.set_num_threads(1)
rays, count = 20_000, 400_000
for name, case in DECODERS.items():
    module, points = case.module(), count if case.coordinates else rays
    with torch.inference_mode():
        module(*case.inputs(1, 40_000 if case.coordinates else 2_000))
        inputs = case.inputs(1, points)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out = module(*inputs)
        # Above all before, which the decoders before this one may have raised a little.
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert not out.requires_grad and out.isfinite().all()
    width = 64 * (1 if case.coordinates else 32)  # activations of one layer, a point or a ray
    print(name, grown * 1024 - out.nbytes, points * width * 4, sep=",")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks in Linux's units")
def test_peaks_do_not_grow_with_activations() -> None:
    command = [sys.executable, "-c", CODE, str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    rows = [line.split(",") for line in result.stdout.splitlines()]
    assert len(rows) == 6
    for name, grown, activations in rows:
        assert int(grown) < int(activations) / 4, name
