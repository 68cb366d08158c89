"""Scores of samples beside real images, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ginr_fast.generation.distances import (
    FeatureStatistics,
    Nearest,
    PrecisionRecall,
    frechet_distance,
    inception_score,
    nearest,
    precision_recall,
)
from ginr_fast.generation.features import FeatureNetwork

_SPLITS = 10
_NEIGHBOURS = 3
FEWEST = _NEIGHBOURS + 1
"""Instances of a kind, at least, whose precision and recall can be taken."""


class Described(NamedTuple):
    """What a feature network makes of a set of images; the images themselves are not kept.

    Args:
        network: its name.
        statistics: mean and covariance of the features.
        features: ``(N, F)``, float32, on the CPU.
        logits: ``(N, classes)``, float32, on the CPU; None without classes.
    """

    network: str
    statistics: FeatureStatistics
    features: torch.Tensor
    logits: torch.Tensor | None


def describe(
    images: Iterable[torch.Tensor], network: FeatureNetwork, classes: bool = True
) -> Described:
    """Features of images that come in batches.

    Args:
        images: ``(B, 3, H, W)``, floating point in [0, 1] or uint8, on the network's device.
        network: they are compared in.
        classes: whether logits are wanted, for the Inception Score; real images need none.

    Raises:
        ValueError: no image came, or one has features that are not finite.
    """
    statistics = FeatureStatistics(network.num_features, network.device)
    features, logits = [], []
    with torch.no_grad():
        for batch in images:
            found = network.describe(batch, classes)
            statistics.update(found.features)
            features.append(found.features.float().cpu())
            if found.logits is not None:
                logits.append(found.logits.float().cpu())
    if not statistics.count:
        raise ValueError("images: expected at least one, got none")
    joined = torch.cat(logits) if logits else None
    return Described(network.name, statistics, torch.cat(features), joined)


@dataclass(frozen=True)
class GenerationScores:
    """How a set of samples compares with real images.

    Args:
        network: whose features were compared.
        samples: how many.
        references: real images, how many.
        frechet: Fréchet distance of the features; the FID where they are Inception's.
        covered: precision and recall.
        inception: mean and standard deviation of the Inception Score; None without classes.
    """

    network: str
    samples: int
    references: int
    frechet: float
    covered: PrecisionRecall
    inception: tuple[float, float] | None = None


def evaluate_samples(
    samples: Iterable[torch.Tensor] | Described,
    real: Iterable[torch.Tensor] | Described,
    network: FeatureNetwork,
    neighbours: int = _NEIGHBOURS,
) -> GenerationScores:
    """Fréchet distance, precision, recall and Inception Score of samples.

    Only features are kept: 50,000 samples with Inception's 2,048 take 0.4 GB. Scores of different
    numbers of samples or references do not compare.

    Args:
        samples: batches ``(B, 3, H, W)`` in [0, 1] or uint8, or what :func:`describe` made of them.
        real: the same of real images.
        network: they are compared in.
        neighbours: k of precision and recall.

    Raises:
        ValueError: fewer than two images of a kind, or not more than ``neighbours``.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.evaluation import evaluate_samples
        >>> from ginr_fast.generation.features import SmallFeatures
        >>> real = torch.rand(8, 3, 16, 16)
        >>> evaluate_samples([real], real.split(4), SmallFeatures()).covered.recall
        1.0
    """
    found = samples if isinstance(samples, Described) else describe(samples, network)
    expected = real if isinstance(real, Described) else describe(real, network, classes=False)
    score = None
    if found.logits is not None:
        score = inception_score(found.logits, min(_SPLITS, len(found.logits)))
    of_real, of_found = (side.features.to(network.device) for side in (expected, found))
    return GenerationScores(
        network=network.name,
        samples=found.statistics.count,
        references=expected.statistics.count,
        frechet=frechet_distance(found.statistics, expected.statistics),
        covered=precision_recall(of_real, of_found, neighbours),
        inception=score,
    )


class Memorisation(NamedTuple):
    """How near samples come to training instances, beside instances that training never saw.

    Args:
        samples: the nearest training instance of each sample.
        held_out: that of each held-out instance.
    """

    samples: Nearest
    held_out: Nearest

    @property
    def ratio(self) -> float:
        """Median distance of samples over that of held-out instances.

        About 1 for samples as new as unseen instances, near 0 for copies. Samples that are smoother
        than the data come nearer, too: look at the pictures.
        """
        return float(self.samples.distances.median() / self.held_out.distances.median())


def memorisation(
    samples: Sequence[torch.Tensor],
    held_out: torch.Tensor,
    training: torch.Tensor | Iterable[torch.Tensor],
) -> list[Memorisation]:
    """Whether samples are copies of training instances, which are looked at once for all.

    Args:
        samples: pictures or features of each set of samples, ``(S, ...)``; S may differ.
        held_out: the same of instances that training never saw, ``(H, ...)``.
        training: ``(N, ...)``, or batches of it.

    Returns:
        One a set.

    Raises:
        ValueError: none of a kind, or another shape.
    """
    for name, part in (*(("samples", each) for each in samples), ("held_out", held_out)):
        if not len(part):
            raise ValueError(f"{name}: expected at least one instance, got none")
    counts = [*map(len, samples), len(held_out)]
    found = nearest(torch.cat([*samples, held_out]), training)
    *drawn, unseen = (
        Nearest(*each) for each in zip(*(side.split(counts) for side in found), strict=True)
    )
    return [Memorisation(each, unseen) for each in drawn]
