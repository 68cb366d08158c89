"""Checkpoints: whole or named as damaged; runs killed at any moment; several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_training import MODEL, QUIET, RECIPE, same, weights_of

from ginr_fast.data import HeldOutViews, photos
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.training import checkpoints
from ginr_fast.training.checkpoints import Checkpoint, CheckpointError, load_model, load_run
from ginr_fast.training.loop import train
from ginr_fast.training.metrics import score_views
from ginr_fast.training.recipes import as_plain

pytestmark = pytest.mark.usefixtures("one_thread")


# Checkpoints


def small_checkpoint(step: int) -> Checkpoint:
    model = {"weight": torch.arange(1000.0)}
    return Checkpoint(step, as_plain(RECIPE), "images", model, {"state": {}, "param_groups": []})


def test_checkpoints_come_back_and_two_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".step-000000001.pt.77.partial").write_bytes(b"half")
    paths = [
        checkpoints.save_checkpoint(small_checkpoint(step), tmp_path) for step in (1, 20, 3000)
    ]
    assert checkpoints.checkpoints_in(tmp_path) == paths[1:]
    assert sorted(tmp_path.iterdir()) == sorted(paths[1:])
    found = checkpoints.load_checkpoint(paths[2])
    assert found.step == 3000 and found.recipe == as_plain(RECIPE)
    assert torch.equal(found.model["weight"], torch.arange(1000.0))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty"])
def test_damaged_checkpoints_are_named_with_the_one_before(tmp_path: Path, damage: str) -> None:
    before = checkpoints.save_checkpoint(small_checkpoint(10), tmp_path)
    path = checkpoints.save_checkpoint(small_checkpoint(20), tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        where = content.index(torch.arange(500.0, 501.0).numpy().tobytes())
        content[where] ^= 1
    path.write_bytes(
        {
            "truncated": bytes(content[: len(content) // 2]),
            "flipped": bytes(content),
            "text": b"hello",
            "empty": b"",
        }[damage]
    )
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: truncated or corrupt checkpoint")
    assert f"the one before it is {before}" in str(caught.value)
    assert checkpoints.load_checkpoint(before).step == 10


def test_training_stops_at_a_damaged_checkpoint(tmp_path: Path) -> None:
    train(RECIPE, photos(), tmp_path / "run", QUIET)
    path = checkpoints.checkpoints_in(tmp_path / "run" / "checkpoints")[-1]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"step-000000006\.pt: truncated or corrupt"):
        train(RECIPE, photos(), tmp_path / "run", QUIET)
    path.unlink()
    seen: list[int] = []
    train(RECIPE, photos(), tmp_path / "run", QUIET, lambda step, loss: seen.append(step))
    assert seen == [5, 6]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save({"format": Evil()}, tmp_path / "step-000000001.pt")
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        checkpoints.load_checkpoint(tmp_path / "step-000000001.pt")
    assert not (tmp_path / "hacked").exists()


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of this version"):
        load_model(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="holds neither"):
        load_model(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="truncated or corrupt weights"):
        load_model(tmp_path / "cut.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="holds no model exported by ginr_fast"):
        load_model(tmp_path / "foreign.safetensors")


def test_exports_hold_weights_and_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LaGinr(MODEL)
    checkpoints.export_weights(model, tmp_path / "m.safetensors", RECIPE.views)
    found, views = load_run(tmp_path / "m.safetensors")
    assert found.config == MODEL and views == RECIPE.views
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(found.reconstruct(images), model.eval().reconstruct(images))
    wrong = tmp_path / "wrong.safetensors"
    wide = {name: torch.zeros(1) for name in model.state_dict()}
    metadata = {"system": "la-ginr", "config": json.dumps(as_plain(MODEL)), "views": "{}"}
    save_file(wide, wrong, metadata)
    with pytest.raises(CheckpointError, match="does not fit this version"):
        load_model(wrong)


# Killed at any moment

SCRIPT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from small_training import QUIET, RECIPE
from ginr_fast.data import photos
from ginr_fast.training.loop import train
from dataclasses import replace
train(
    replace(RECIPE, steps={steps}), photos(), Path({out!r}), QUIET,
    lambda step, loss: print(step, flush=True),
)
"""


def run_until_killed(out: Path, steps: int, after: float | None) -> tuple[int, list[int]]:
    """Train in a process of its own; SIGKILL it ``after`` seconds of training, if at all."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), steps=steps, out=str(out))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    seen = [int(process.stdout.readline() or 0)]
    if after is not None:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    seen += [int(line) for line in process.stdout.read().split()]
    return process.wait(), seen


def test_a_run_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    steps, killed, rng = 240, 0, random.Random(0)
    train(replace(RECIPE, steps=steps), photos(), tmp_path / "whole", QUIET)
    out, reached = tmp_path / "killed", 0
    for _ in range(3):
        code, seen = run_until_killed(out, steps, rng.uniform(0.0, 0.4))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        # It went on from the last checkpoint, at most two steps back; one more step may have been
        # printed than was read.
        assert seen[0] >= reached - 2
        reached = seen[-1]
    assert killed >= 2
    code, seen = run_until_killed(out, steps, None)
    assert code == 0 and seen[0] > 1
    assert same(weights_of(out), weights_of(tmp_path / "whole"))
    assert not list((out / "checkpoints").glob(".*"))


# Several processes


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, steps=6, out=str(tmp_path / "two")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(script)], check=True, env=environment, capture_output=True)
    train(RECIPE, photos(), tmp_path / "one", QUIET)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        # Adam turns rounding into steps of the learning rate where a gradient is almost zero.
        assert (one[name] - two[name]).norm() <= 1e-2 * one[name].norm() + 1e-2, name
    scores = [
        score_views(load_model(tmp_path / name), _held_out(), range(6), 6).scores().psnr
        for name in ("one", "two")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def _held_out():
    return HeldOutViews(photos(), RECIPE.views, 16)
