"""What an mNIF costs: parameters and multiply-adds, counted; time and memory, measured."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

import ginr_fast
from ginr_fast.analysis.pictures import image_decoder
from ginr_fast.coords import grid
from ginr_fast.data.cars import FOCAL
from ginr_fast.decoders.field import FieldDecoder
from ginr_fast.decoders.streaming import stream
from ginr_fast.rays import orbit_poses
from ginr_fast.systems.mnif import Mnif, MnifConfig, Modality

UNITS: Mapping[Modality, str] = {"image": "image", "voxels": "voxel grid", "scene": "view"}
SIZES: Mapping[Modality, int] = {"image": 64, "voxels": 64, "scene": 128}
"""Pixels or voxels along an axis in the published tables."""

_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Counts:
    """What follows from the sizes of a model.

    Args:
        learnable: parameters of all bases and of the projection; latents are not counted.
        inference: parameters of one instance's network, P.
        multiply_adds: of one output: the network at every sample, and the projection of its latent.
            This is what the paper calls FLOPS: fvcore counts a multiply-add as one, and does not
            count the weighted average of the bases.
        averaging: multiply-adds of that average, once an instance.
    """

    learnable: int
    inference: int
    multiply_adds: int
    averaging: int


def count(config: MnifConfig, size: int | None = None) -> Counts:
    """Parameters and multiply-adds.

    Args:
        config: the sizes of the model.
        size: pixels or voxels along an axis of the output; the published one if None.

    Raises:
        ValueError: a size that is not positive.
    """
    size = SIZES[config.modality] if size is None else size
    if size < 1:
        raise ValueError(f"size: expected a positive integer, got {size}")
    spec = config.spec
    samples = {"image": size**2, "voxels": size**3, "scene": size**2 * config.samples}
    projected = config.latent_dim * config.mixtures * spec.layers
    biases = config.mixtures * spec.layers
    if config.coefficients != "latent":
        projected = biases = 0
    per_sample = sum(rows * columns for rows, columns in spec.layer_shapes)
    averaging = config.mixtures * spec.parameter_count
    return Counts(
        learnable=averaging + projected + biases,
        inference=spec.parameter_count,
        multiply_adds=samples[config.modality] * per_sample + projected,
        averaging=averaging,
    )


class Published(NamedTuple):
    """A row of the paper's Tables 1 to 3: as printed there, measured on a Quadro RTX 8000."""

    learnable: str
    inference: str
    multiply_adds: str
    per_second: str
    memory: str


PUBLISHED: Mapping[tuple[Modality, int, int, int], Published] = {
    ("image", 4, 64, 256): Published("4.6 M", "17.2 K", "0.069 G", "2958.6", "10.2 MB"),
    ("image", 5, 128, 384): Published("33.4 M", "83.3 K", "0.340 G", "891.3", "24.4 MB"),
    ("voxels", 4, 64, 256): Published("4.6 M", "17.2 K", "4.4 G", "191.5", "642.1 MB"),
    ("voxels", 5, 128, 512): Published("46.3 M", "83.3 K", "21.6 G", "69.6", "1513.3 MB"),
    ("scene", 4, 64, 256): Published("4.6 M", "17.2 K", "0.009 T", "97.7", "1.3 GB"),
}
"""By modality, L, W and M.

:func:`count` gives these figures with three provisos. The parameters of mNIF (S) are those of its
model of scenes in all three tables, and its multiply-adds for images are those with H = 128, as
scenes have (Appendix A.2 says H = 1024 for images). The inference parameters of mNIF (L) are those
for images in both tables. And a view's figure says too little to tell 31 samples a ray from 32.
"""


def published(config: MnifConfig) -> Published | None:
    """The paper's row for a model of these sizes, if it has one."""
    key = config.modality, config.hidden_layers, config.hidden_dim, config.mixtures
    return PUBLISHED.get(key)


class Measured(NamedTuple):
    """Of one output, from its latent on.

    Args:
        seconds: median.
        peak_bytes: above what was held before; None where that cannot be read.
    """

    seconds: float
    peak_bytes: int | None


@torch.no_grad()
def measure(
    model: Mnif,
    latent: torch.Tensor,
    size: int | None = None,
    rounds: int = 5,
    occupancy: bool = False,
) -> Measured:
    """Time and memory of decoding one instance: coefficients, averaging, field or rendering.

    Args:
        model: the model.
        latent: ``(1, context_dim)``, on the model's device.
        size: pixels or voxels along an axis of the output; the published one if None.
        rounds: outputs timed, after one that is not.
        occupancy: (scenes) skip what a grid made before says is empty; weights are then averaged
            before, too: what a further view of a scene takes.

    Raises:
        ValueError: rounds or a size that is not positive, or an occupancy grid of no scene.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected a positive integer, got {rounds}")
    size = SIZES[model.config.modality] if size is None else size
    once = _task(model, latent, size, occupancy)
    once()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        once()
        _wait(latent.device)
        seconds.append(time.perf_counter() - start)
    return Measured(median(seconds), peak_memory(once, latent.device))


def _task(
    model: Mnif, latent: torch.Tensor, size: int, occupancy: bool
) -> Callable[[], torch.Tensor]:
    config = model.config
    if config.modality == "scene":
        pose = orbit_poses(1, (config.near + config.far) / 2)[0].to(latent.device)
        decoder = FieldDecoder(config.spec)
        made = model.weights(latent) if occupancy else None
        cells = ginr_fast.OccupancyGrid.build(made, config.spec) if made is not None else None

        def view() -> torch.Tensor:
            seen = decoder.render_view(
                model.weights(latent) if made is None else made,
                pose,
                size,
                size,
                FOCAL * size,
                near=config.near,
                far=config.far,
                samples=config.samples,
                occupancy=cells,
            )
            return seen.color

        return view
    if occupancy:
        raise ValueError(f"occupancy: expected a model of scenes, this is of {config.modality}")
    axes = 2 if config.modality == "image" else 3
    where = grid(*[size] * axes, device=latent.device)
    decoder = image_decoder(model) if axes == 2 else FieldDecoder(config.spec)

    def values() -> torch.Tensor:
        blocks = [block for _, block in stream(decoder, where, model.weights(latent))]
        return torch.cat(blocks, dim=1)

    return values


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(function: Callable[[], object], device: torch.device) -> int | None:
    """Bytes above the present that a call needs at its peak; None where that cannot be read.

    Args:
        function: what is called, once.
        device: CUDA: of the caching allocator. CPU: of the process, on Linux.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _CLEAR.exists():
        return None
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)  # memory kept from earlier calls would hide what this one needs
    before = _status("VmRSS")
    try:
        _CLEAR.write_text("5")  # resets the high-water mark
    except OSError:
        return None
    function()
    return max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
