"""Generating with INRCT and mNIF, and INRCT's training step, against the published decoder.

The rival is the same model on the reference backend in float32: coordinates of every instance, the
formula line by line. The hyper-network (145 million parameters, 15 times the decoder's work for a
32² image) is the same in both, so that ratios in one precision say how much of the time decoding
takes; ``bfloat16`` is what a user of this library runs on a processor or GPU that multiplies it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from measure import contest
from torch.utils.flop_counter import FlopCounterMode

import ginr_fast
from ginr_fast.analysis.generation_speed import training_step
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.systems.inrct import Inrct, InrctConfig

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# On two cores a forward of the hyper-network takes a third of a second an image.
CPU_SAMPLES = 16
CPU_BATCH = 2


def published(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with ginr_fast.backend("reference"):
            function()

    return run


def in_precision(
    function: Callable[[], object], dtype: torch.dtype, device: str
) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            function()

    return run


def image_flops(model: Inrct, samples: int) -> int:
    """Of drawing and decoding images: the hyper-network's and the decoder's, as it is executed."""
    size, device = model.config.image_size, next(model.parameters()).device
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        tokens = model.draw(range(1)).expand(samples, -1, -1)
    model.requires_grad_(True)
    where = ginr_fast.grid(size, size, device=device)
    (decoding,) = ginr_fast.explain(model.decoder, where, tokens).plans
    return samples * counter.get_total_flops() + decoding.flops


def rivals_of(run: Callable[[], object], dtype: torch.dtype, device: str) -> dict:
    """The reference decoder in float32 and, if that is another one, in the same precision."""
    rivals = {"eager": published(run)}
    if dtype != torch.float32:
        rivals["same_precision"] = in_precision(published(run), dtype, device)
    return rivals


@DTYPES
def test_one_step_generation(benchmark, dtype: torch.dtype, device: str) -> None:
    """Noise to images at the published sizes: 64 images on a GPU, 16 on a CPU."""
    torch.manual_seed(0)
    samples = 64 if device == "cuda" else CPU_SAMPLES
    model = Inrct(InrctConfig()).to(device).eval()
    where = ginr_fast.grid(32, 32, device=device)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return model.render(model.draw(range(samples)), where)

    benchmark.group = f"inrct generation, one step, {samples} images 32²"
    contest(
        benchmark,
        in_precision(run, dtype, device),
        rivals_of(run, dtype, device),
        rounds=20 if device == "cuda" else 3,
        flops=image_flops(model, samples),
        traffic=4 * sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype,
        device=device,
    )


@DTYPES
def test_training_step(benchmark, dtype: torch.dtype, device: str) -> None:
    """Student, teacher, three losses and gradients, batch 32 (a GPU's share in the paper) or 2."""
    torch.manual_seed(0)
    batch = 32 if device == "cuda" else CPU_BATCH
    model = Inrct(InrctConfig()).to(device)
    flops = image_flops(model, batch)
    run = training_step(model, batch)
    benchmark.group = f"inrct training step, batch {batch}"
    contest(
        benchmark,
        in_precision(run, dtype, device),
        rivals_of(run, dtype, device),
        rounds=10 if device == "cuda" else 3,
        flops=4 * flops,  # the teacher's forward beside a step's three
        traffic=4 * 4 * sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype,
        device=device,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="minutes without a GPU")
def test_mnif_sampling(benchmark, device: str) -> None:
    """mNIF (S) of CelebA-HQ: 1000 steps of its residual MLP, then decoding, 256 images of 64²."""
    from ginr_fast.generation.denoisers import ResidualMlpConfig
    from ginr_fast.systems.latent_diffusion import LatentDiffusion
    from ginr_fast.systems.mnif import MNIF_SIZES, Mnif

    torch.manual_seed(0)
    samples, config = 256, MNIF_SIZES["images-s"]
    denoiser = ResidualMlpConfig().build((config.latent_dim,))
    statistics = torch.zeros(config.latent_dim), torch.ones(config.latent_dim)
    model = LatentDiffusion(Mnif(config), denoiser, *statistics).to(device).eval()
    where = ginr_fast.grid(64, 64, device=device)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return model.render(model.draw(range(samples), SamplingOptions(steps=1000)), where)

    benchmark.group = "mnif 1000-step sampling with decoder, 256 images 64²"
    per_sample = sum(parameter.numel() for parameter in denoiser.parameters())
    contest(
        benchmark,
        run,
        {"eager": published(run)},
        rounds=2,
        flops=2 * samples * (1000 * per_sample + 64 * 64 * config.spec.parameter_count),
        traffic=4 * 1000 * per_sample,
        dtype=torch.float32,
        device=device,
    )
    share = benchmark.stats.stats.median / samples
    benchmark.extra_info["seconds_for_50000_samples"] = 50_000 * share


@pytest.mark.skipif(not torch.cuda.is_available(), reason="hours without a GPU")
def test_fifty_thousand_samples(benchmark, device: str) -> None:
    """What FID takes: 50,000 images of 64² in one step, 500 at a time (five minutes in the paper,
    on an A6000)."""
    torch.manual_seed(0)
    model = Inrct(InrctConfig(image_size=64)).to(device).eval()
    where = ginr_fast.grid(64, 64, device=device)

    @torch.inference_mode()
    def run(samples: int = 50_000, batch: int = 500) -> None:
        with torch.autocast(device, torch.bfloat16):
            for first in range(0, samples, batch):
                model.render(model.draw(range(first, first + batch)), where)
        torch.cuda.synchronize()

    run(500)
    benchmark.group = "inrct, 50,000 samples at 64²"
    start = time.perf_counter()
    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["seconds_for_50000_samples"] = time.perf_counter() - start
