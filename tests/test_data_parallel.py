"""Data-parallel training: two processes end with the weights and scores of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import parallel_training
import pytest
import torch
from parallel_training import CASES, comparable, data_of, train_all
from small_training import QUIET

from ginr_fast.training.checkpoints import checkpoints_in, load_checkpoint
from ginr_fast.training.loop import train
from ginr_fast.training.tasks import SYSTEMS, task_for
from ginr_fast.training.tasks.made import CACHE_VARIABLE


def test_every_system_is_here() -> None:
    trained = {chosen.system for chosen in CASES.values()}
    assert trained == set(SYSTEMS) - {"ffnet"}


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All systems in one test: two processes are started once."""
    data, one, two = (tmp_path / name for name in ("data", "one", "two"))
    for folder in (data, one, two):
        folder.mkdir()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_all(data, one)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        script = [parallel_training.__file__, str(data), str(two)]
        result = subprocess.run(
            [*launch, "--nproc-per-node=2", *script], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-4000:]
        scores = [json.loads((two / f"scores-{rank}.json").read_text()) for rank in (0, 1)]
        for name in CASES:
            _check_weights(name, data, one / name, two / name)
            alone = _evaluated_alone(name, data, two / name)
            # SSIM of tiny images is not a number.
            expected = pytest.approx(alone, rel=1e-4, nan_ok=True)
            assert scores[0][name] == expected and scores[1][name] == expected, name
    finally:
        torch.set_num_threads(threads)


def _final(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints_in(folder / "checkpoints")[-1]).model


def _check_weights(name: str, data: Path, one: Path, two: Path) -> None:
    """Gradients are averaged in another order: only rounding may differ, by which the weights are
    apart far less than they moved."""
    torch.manual_seed(CASES[name].seed)
    start = task_for(CASES[name], data_of(name, data)).build().state_dict()
    found, other = _final(one), _final(two)
    assert found.keys() == other.keys() == start.keys(), name
    moved = apart = length = 0.0
    learned = {key: value.double() for key, value in start.items() if value.is_floating_point()}
    for key, value in learned.items():
        moved += float((found[key].double() - value).square().sum())
        apart += float((found[key].double() - other[key]).square().sum())
        length += float(value.square().sum())
    assert moved**0.5 > 1e-4 * length**0.5, name
    assert apart**0.5 <= 2e-5 * moved**0.5, name


def _evaluated_alone(name: str, data: Path, run: Path) -> dict[str, float]:
    """What one process scores that takes up the run of two, of which nothing is left to train."""
    with comparable():
        result = train(
            CASES[name], data_of(name, data), run, QUIET, lambda *_: pytest.fail("trained again")
        )
    return result.scores.values()
