"""A few steps of every system, as they are trained by one process or by several.

``python -m torch.distributed.run --nproc-per-node=2 parallel_training.py DATA OUT`` trains them all
in two processes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from small_latents import TOKENS, VECTORS, latents_file
from small_training import MNIF, QUIET, RECIPE
from test_audio import RECIPE as AUDIO
from test_inrct import RECIPE as INRCT
from test_inrct_scenes import RECIPE as INRCT_SCENES
from test_learned_init_training import SMALL as LEARNED_INIT
from test_views_training import RECIPES as VIEWS

from ginr_fast.systems.ipc import IpcConfig
from ginr_fast.systems.trans_inr import TransInrConfig
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import IpcRecipe, Recipe, TransInrRecipe
from ginr_fast.training.tasks import SYSTEMS, DataOptions, open_data
from ginr_fast.training.tasks.base import Task

STEPS = 3
_FIELD: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "encoder_dim": 32,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_head_dim": 16,
    "encoder_mlp_dim": 48,
    "hidden_dim": 32,
    "hidden_layers": 1,
    "frequencies": 8,
    "bandwidth": 16.0,
}
_IMAGES: dict[str, Any] = {"views": RECIPE.views, "steps": STEPS, "batch_size": 4}
CASES: dict[str, Recipe] = {
    "la-ginr": RECIPE,
    "trans-inr": TransInrRecipe(model=TransInrConfig(**_FIELD, groups=4), **_IMAGES),
    "ipc": IpcRecipe(model=IpcConfig(**_FIELD, latents=9), **_IMAGES),
    "ipc of audio": AUDIO,
    "mnif images": MNIF["images"],
    "mnif voxels": replace(MNIF["voxels"], adaptation="auto-decoding"),
    "mnif scenes": MNIF["scenes"],
    "trans-inr views": VIEWS["trans-inr"],
    "ipc views": VIEWS["ipc"],
    "la-ginr light field": VIEWS["la-ginr light field"],
    "ipc light field": VIEWS["ipc light field"],
    "learned init images": LEARNED_INIT["images"],
    "learned init scenes": LEARNED_INIT["scenes"],
    # The first step trains reconstructions alone, the others everything.
    "inrct": replace(INRCT, reconstruction_steps=1),
    "inrct scenes": replace(INRCT_SCENES, made_scenes=4, made_views=5, made_held_out=2),
    "mnif diffusion": VECTORS,
    "token diffusion": TOKENS,
}
"""Every system but FFNet, which fits one image and has a batch of one."""

CASES = {
    name: replace(chosen, steps=STEPS, learning_rate=0.05, warmup_steps=0, schedule="constant")
    for name, chosen in CASES.items()
}


def data_of(name: str, folder: Path) -> Any:
    """What a case is trained on; made in ``folder`` where it is a file that must be named."""
    file = None
    if "diffusion" in name:
        file = folder / f"{name}.safetensors"
        if not file.exists():
            latents_file(file, tokens=name.startswith("token"))
    return open_data(CASES[name], DataOptions(file))


@contextlib.contextmanager
def comparable() -> Iterator[None]:
    """What makes weights comparable: plain gradient steps, which do not turn the rounding of a
    gradient that is almost zero into a step of the learning rate as Adam does."""

    def descent(task: Task, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=task.recipe.learning_rate)

    with contextlib.ExitStack() as stack:
        for _, task in SYSTEMS.values():
            stack.enter_context(mock.patch.object(task, "optimizer", descent))
        yield


def train_all(data: Path, out: Path) -> dict[str, dict[str, float]]:
    """Train every case in a folder of its name; the scores that each ends with."""
    found = {}
    with comparable():
        for name in CASES:
            result = train(CASES[name], data_of(name, data), out / name, QUIET)
            found[name] = result.scores.values()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, made = map(Path, sys.argv[1:])
    scores = train_all(given, made)
    (made / f"scores-{torch.distributed.get_rank()}.json").write_text(json.dumps(scores))
