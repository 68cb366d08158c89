"""``ginr-fast reconstruct IMAGE``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ginr_fast.commands import common


@dataclass(frozen=True)
class ReconstructArguments:
    """Encode an image of any size into tokens and decode them at any scale.

    Args:
        image: PNG, JPEG, WebP, BMP, TIFF, …
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        scale: output pixels per input pixel along each axis; any positive number.
        out: where the PNG goes; IMAGE-reconstructed.png beside the image if not given.
        fit: "tiles" covers the image with overlapping squares of the model's size, each with
            tokens of its own, and blends them: all detail is kept. "whole" reduces the image to
            the model's square and represents it by one set of tokens; the output still has the
            image's size times the scale.
    """

    image: Positional[Path]
    checkpoint: Path
    scale: float = 1.0
    out: Path | None = None
    fit: Literal["tiles", "whole"] = "tiles"


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(ReconstructArguments, arguments, "reconstruct")
    import numpy as np
    import torch
    from PIL import Image

    from ginr_fast.coords import grid
    from ginr_fast.data.images import load_image, resize
    from ginr_fast.pictures import save_png
    from ginr_fast.systems.image_rendering import output_size
    from ginr_fast.systems.tiling import reconstruct_photograph
    from ginr_fast.training.checkpoints import load_model
    from ginr_fast.training.images import to_pixels

    model = load_model(given.checkpoint).to(common.best_device())
    pixels = load_image(given.image)
    height, width = (output_size(size, given.scale) for size in pixels.shape[:2])

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255

    if given.fit == "whole":
        size = model.config.image_size
        device = common.best_device()
        square = tensor(resize(pixels, size, size)).to(device)
        with torch.no_grad():
            tokens = model.encode(square[None])
        found = model.render(tokens, grid(height, width, device=device))[0]
    else:
        found = reconstruct_photograph(model, tensor(pixels), given.scale)
    out = given.out or given.image.with_name(f"{given.image.stem}-reconstructed.png")
    save_png(Image.fromarray(to_pixels(found)), out)
    print(f"{given.image}: {pixels.shape[1]}x{pixels.shape[0]} -> {out}: {width}x{height}")
