"""Pictures of what tokens do: LA-GINR's Figure 5, TransINR's Figure 7, attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ginr_fast.training.images import enlarged, sheet, to_pixels

_SMALLEST = 96
_LINE = 8  # tokens named in a title, at most


def _pixels(picture: Tensor) -> np.ndarray:
    """``(3, H, W)`` in [0, 1] as pixels; small pictures are enlarged, pixels repeated."""
    height, width = picture.shape[1:]
    factor = -(-_SMALLEST // min(height, width))
    return enlarged(to_pixels(picture), factor * height, factor * width)


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _LINE else ""
    return ", ".join(names[:_LINE]) + more


def amplification(differences: Sequence[Tensor]) -> float:
    """The factor, of two digits, that shows the largest but 0.1 % of |differences| as white.

    Args:
        differences: of any shapes.
    """
    sizes = torch.cat([part.abs().flatten() for part in differences]).double()
    most = float(sizes.kthvalue(max(1, round(0.999 * len(sizes)))).values) or float(sizes.max())
    return float(f"{1 / most:.2g}") if most > 0 else 1.0


def difference_sheet(
    images: Sequence[Tensor],
    reconstructions: Sequence[Tensor],
    differences: Sequence[Tensor],
    names: Sequence[str],
    tokens: Sequence[Sequence[str]],
    factor: float,
) -> Image.Image:
    """A row an image: it, its reconstruction, and what each zeroed token changes.

    Args:
        images: ``(3, H, W)`` each, in [0, 1].
        reconstructions: ``(3, H, W)`` each, in [0, 1].
        differences: ``(n, H, W, 3)`` each; their absolute values are shown.
        names: of the images.
        tokens: names of the tokens zeroed, ``n`` an image.
        factor: what differences are multiplied by.
    """
    rows, titles = [], []
    for image, found, changes, name, zeroed in zip(
        images, reconstructions, differences, names, tokens, strict=True
    ):
        shown = (changes.abs() * factor).permute(0, 3, 1, 2)
        rows.append([_pixels(part) for part in (image, found, *shown)])
        titles.append(f"{name}; reconstructed; |change| x {factor:g} without {_listed(zeroed)}")
    return sheet(rows, titles)


def mask_sheet(
    images: Sequence[Tensor], masks: Sequence[Tensor], tokens: Sequence[Sequence[str]]
) -> Image.Image:
    """A row an image: it, and it under the mask of each token.

    Args:
        images: ``(3, H, W)`` each, in [0, 1].
        masks: ``(n, H, W)`` each, in [0, 1].
        tokens: names of the tokens, ``n`` an image.
    """
    rows = [
        [_pixels(image), *(_pixels(image * mask) for mask in own)]
        for image, own in zip(images, masks, strict=True)
    ]
    titles = [f"where tokens {_listed(own)} look" for own in tokens]
    return sheet(rows, titles)


def map_sheet(image: Tensor, maps: Tensor, tokens: Sequence[str]) -> Image.Image:
    """An image, and for each head a row of the attention that its pixels give to tokens.

    Args:
        image: ``(3, H, W)`` in [0, 1].
        maps: ``(H, n, H, W)``: heads, tokens, pixels; each is shown relative to its maximum.
        tokens: names of the ``n`` tokens.
    """
    rows, titles = [], []
    for head, own in enumerate(maps):
        tops = own.amax((1, 2))
        shown = own / tops.clamp(min=1e-30)[:, None, None]
        rows.append([_pixels(image), *(_pixels(one.expand(3, -1, -1)) for one in shown)])
        parts = [f"{name} (to {top:.2g})" for name, top in zip(tokens, tops.tolist(), strict=True)]
        titles.append(f"head {head}: attention to tokens {_listed(parts)}")
    return sheet(rows, titles)


def draw_point_attention(
    image: Tensor, points: Sequence[tuple[int, int]], attention: Tensor, path: Path
) -> None:
    """An image with points in it, and their attention over all tokens, head by head, as PNG.

    Args:
        image: ``(3, H, W)`` in [0, 1].
        points: row and column of each pixel.
        attention: ``(heads, len(points), R)``.
        path: the file; its folder is made if need be.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heads, count, tokens = attention.shape
    figure, axes = plt.subplots(
        1 + count,
        1,
        figsize=(9, 3.2 + 1.1 * count),
        height_ratios=[3.2, *[1.0] * count],
        layout="constrained",
    )
    axes[0].imshow(to_pixels(image), interpolation="nearest")
    axes[0].axis("off")
    for number, (row, column) in enumerate(points):
        axes[0].plot(column, row, "o", color="white", markeredgecolor="black", markersize=9)
        axes[0].text(column, row, str(number), ha="center", va="center", fontsize=7)
        axis = axes[1 + number]
        for head in range(heads):
            weights = attention[head, number].cpu().numpy()
            places = np.arange(tokens) + (head + 0.5) / heads - 0.5
            axis.bar(places, weights, width=1 / heads, label=f"head {head}")
        axis.set_xlim(-0.5, tokens - 0.5)
        axis.set_ylabel(f"point {number}", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[1].legend(fontsize=7, ncols=heads, loc="upper right")
    axes[-1].set_xlabel("token")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
