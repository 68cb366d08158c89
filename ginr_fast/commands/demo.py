"""``ginr-fast demo``: the whole library in a few minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

import ginr_fast
from ginr_fast.commands import common
from ginr_fast.data.images import load_image, resize
from ginr_fast.data.photos import photos
from ginr_fast.ops.checks import check_count
from ginr_fast.pictures import save_png
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.tiling import reconstruct_photograph
from ginr_fast.training.images import enlarged, sheet, to_pixels
from ginr_fast.training.loop import RunOptions, train
from ginr_fast.training.recipes import LaGinrRecipe, recipe


@dataclass(frozen=True)
class DemoArguments:
    """Train a tiny LA-GINR on photographs, show what it does with others, time the decoder.

    Args:
        out: the folder everything is written to.
        steps: training steps, if not the recipe's.
        rounds: how often the decoders are timed, in turns.
    """

    out: Path = Path("demo")
    steps: int | None = None
    rounds: int = 5


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(DemoArguments, arguments, "demo")
    check_count("rounds", given.rounds)
    chosen = demo_recipe(given.steps)
    print(f"training la-ginr-tiny on photographs for {chosen.steps} steps ({chosen.precision})")
    result = train(chosen, photos(), given.out / "run", RunOptions())
    picture = given.out / "before-after.png"
    before_after(result.model, picture)
    print(f"photographs never trained on, before and after, at 1x and 4x: {picture}")
    print("timing the decoder at paper size: 178x178, batch 2, forward, against the reference")
    fast, reference = decoder_seconds(given.rounds)
    print(f"fast {fast * 1e3:.0f} ms, reference {reference * 1e3:.0f} ms (medians)")
    print(f"held-out PSNR: {result.scores.psnr:.2f} dB")
    print(f"speed-up over the reference decoder: {reference / fast:.2f}x", flush=True)


def demo_recipe(steps: int | None = None) -> LaGinrRecipe:
    """``la-ginr-tiny``, in bfloat16 where the processor multiplies it natively."""
    chosen = recipe("la-ginr-tiny")
    assert isinstance(chosen, LaGinrRecipe)
    chosen = replace(chosen, precision=common.native_precision())
    return chosen if steps is None else replace(chosen, steps=steps)


def before_after(model: LaGinr, path: Path, side: int = 128) -> None:
    """Write a sheet: a part of each held-out photograph, and what the model makes of it.

    Args:
        model: trained.
        path: the PNG.
        side: height and width of the parts, in pixels.
    """
    rows = []
    for photo in photos().held_out:
        pixels = load_image(photo)
        height, width = (size // 2 for size in pixels.shape[:2])
        top, left = (height - side) // 2, (width - side) // 2
        before = resize(pixels, height, width)[top : top + side, left : left + side]
        image = torch.from_numpy(before.copy()).permute(2, 0, 1).float() / 255
        after = [to_pixels(reconstruct_photograph(model, image, scale)) for scale in (1, 4)]
        rows.append([before, after[0], enlarged(before, 4 * side, 4 * side), after[1]])
    titles = ["before, after; 4x: before (pixels repeated), after"] * len(rows)
    save_png(sheet(rows, titles), path)


def decoder_seconds(rounds: int, size: int = 178, batch: int = 2) -> tuple[float, float]:
    """Median seconds of a forward of the decoder at paper size: ours, and the reference.

    Both decode the same tokens on the same grid, in turns, so that whatever else the machine does
    weighs on both.
    """
    device = common.best_device()
    decoder = ginr_fast.LocalityAwareDecoder().to(device).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, 256, 256, generator=generator).to(device)
    where = ginr_fast.grid(size, size, device=device)

    @torch.no_grad()
    def seconds(decode: Callable[[], torch.Tensor]) -> float:
        start = time.perf_counter()
        decode()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def reference() -> torch.Tensor:
        with ginr_fast.backend("reference"):
            return decoder(where, tokens)

    fast_times, reference_times = [], []
    for _ in range(rounds + 1):
        fast_times.append(seconds(lambda: decoder(where, tokens)))
        reference_times.append(seconds(reference))
    return median(fast_times[1:]), median(reference_times[1:])  # the first round warms up
