"""Which instances a training step sees."""

from __future__ import annotations

import numpy as np


def instance_order(seed: int, step: int, count: int, batch: int) -> np.ndarray:
    """The instances of a step: every epoch is a new permutation of all of them.

    Args:
        seed: of the permutations.
        step: from 0.
        count: instances of the data set.
        batch: instances a step; may exceed ``count``.

    Returns:
        ``(batch,)``, int64.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    orders = {
        int(epoch): np.random.default_rng((seed, int(epoch))).permutation(count)
        for epoch in set(epochs.tolist())
    }
    return np.array([orders[at // count][at % count] for at in positions.tolist()], dtype=np.int64)


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` views or scenes, evenly spread; all of them at most."""
    wanted = min(count, wanted)
    return sorted({(2 * index + 1) * count // (2 * wanted) for index in range(wanted)})
