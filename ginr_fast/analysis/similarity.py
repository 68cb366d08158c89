"""How alike the basis networks of a mixture are (mNIF, section 5.3.3 and Figure 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ginr_fast.systems.mnif import Mnif

_COLUMNS = 4


class LayerSimilarity(NamedTuple):
    """Similarity of the bases in one layer.

    Args:
        layer: from 0.
        matrix: ``(M, M)``, |cosine| of each pair, the diagonal zero.
        mean: over all pairs.
        highest: of all pairs.
    """

    layer: int
    matrix: torch.Tensor
    mean: float
    highest: float


@torch.no_grad()
def basis_similarity(model: Mnif) -> list[LayerSimilarity]:
    """|cosine similarity| between the weight matrices of every pair of bases, layer by layer.

    Small values mean that bases are nearly orthogonal. With one basis there is no pair: 0.

    Args:
        model: the model.

    Returns:
        One a layer, in order.
    """
    found = []
    for slot, base in zip(model.config.spec.slots, model.bases, strict=True):
        if slot.kind == "bias":
            continue
        rows = torch.nn.functional.normalize(base.detach().double().flatten(1), dim=1)
        matrix = (rows @ rows.T).abs().clamp(max=1.0).fill_diagonal_(0.0)
        pairs = len(matrix) * (len(matrix) - 1)
        mean, highest = float(matrix.sum()) / max(pairs, 1), float(matrix.max())
        found.append(LayerSimilarity(slot.layer, matrix.float().cpu(), mean, highest))
    return found


def draw_similarity(layers: Sequence[LayerSimilarity], path: Path) -> None:
    """Heat maps of all layers on one scale, as PNG.

    Args:
        layers: of :func:`basis_similarity`.
        path: the file; its folder is made if need be.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(_COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.2 * columns + 0.8, 3.4 * rows),
        squeeze=False,
        layout="constrained",
    )
    top = max(max(layer.highest for layer in layers), 1e-12)
    for place, axis in enumerate(axes.flat):
        if place >= len(layers):
            axis.axis("off")
            continue
        layer = layers[place]
        image = axis.imshow(
            layer.matrix.numpy(), vmin=0, vmax=top, cmap="viridis", interpolation="nearest"
        )
        axis.set_title(f"layer {layer.layer}, mean {layer.mean:.3f}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=axes, label="|cosine similarity| of bases", shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
