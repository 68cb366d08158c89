"""Benchmarks run on the GPU where there is one, on two CPU threads' worth of sizes elsewhere."""

from __future__ import annotations

import pytest
import torch
from measure import commit, release_memory


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def released_memory() -> None:
    """Every benchmark starts as in a process of its own: eager's temporaries cost page faults that
    they are spared where memory was kept from the benchmarks before."""
    release_memory()


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["commit"] = commit()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()
