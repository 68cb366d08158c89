"""Distances between sets of samples and sets of real instances, by their features or points.

Everything is computed in float64 from the sums on, and in blocks where a matrix of all pairs would
not fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from ginr_fast.ops.checks import check_tensor

_BLOCK = 1024


def check_finite(argument: str, value: torch.Tensor) -> torch.Tensor:
    """``value``, unless it holds NaN or infinities: scores of such would look like any other.

    Args:
        argument: the name the caller knows it by.
        value: ``(N, ...)``.

    Raises:
        ValueError: names the argument and how many of the N it is.
    """
    broken = (~value.isfinite()).flatten(1).any(1)
    if broken.any():
        raise ValueError(
            f"{argument}: expected finite values, {int(broken.sum())} of {len(value)} have others"
        )
    return value


class FeatureStatistics:
    """Mean and covariance of features, gathered batch by batch: images need not be kept.

    Args:
        num_features: F.
        device: where the sums live.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.distances import FeatureStatistics
        >>> seen = FeatureStatistics(2)
        >>> seen.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> seen.mean.tolist(), seen.covariance.tolist()
        ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """

    def __init__(self, num_features: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        # About the first batch's mean: a covariance far smaller than the mean keeps its digits.
        self._origin: torch.Tensor | None = None
        self._sum = torch.zeros(num_features, dtype=torch.float64, device=device)
        self._products = self._sum.new_zeros(num_features, num_features)

    def update(self, features: torch.Tensor) -> None:
        """Add a batch ``(B, F)``.

        Raises:
            ValueError: another width, or values that are not finite.
        """
        check_tensor("features", features, ("B", len(self._sum)))
        features = check_finite("features", features).to(self._sum)
        if not len(features):
            return
        if self._origin is None:
            self._origin = features.mean(0)
        centred = features - self._origin
        self._sum += centred.sum(0)
        self._products += centred.T @ centred
        self.count += len(features)

    @property
    def mean(self) -> torch.Tensor:
        """``(F,)``, float64.

        Raises:
            ValueError: nothing was added.
        """
        self._check(1)
        assert self._origin is not None
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """``(F, F)``, float64, without bias.

        Raises:
            ValueError: fewer than two were added.
        """
        self._check(2)
        centred = self._products - torch.outer(self._sum, self._sum) / self.count
        return centred / (self.count - 1)

    def _check(self, least: int) -> None:
        if self.count < least:
            raise ValueError(f"features: expected at least {least}, got {self.count}")


def frechet_distance(
    a: torch.Tensor | FeatureStatistics, b: torch.Tensor | FeatureStatistics
) -> float:
    """Fréchet distance of two sets of features, as of Gaussians: the FID if they are Inception's.

    ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½) (Heusel et al., 2017). The root is of a
    symmetric matrix, by its eigenvalues, those below zero by rounding counting as zero, so that it
    exists for fewer instances than features too.

    Args:
        a: ``(N, F)``, or their statistics.
        b: ``(M, F)``, or their statistics.

    Raises:
        ValueError: fewer than two instances, or features of different width.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.distances import frechet_distance
        >>> round(frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])), 4)
        9.0
    """
    left, right = _statistics("a", a), _statistics("b", b)
    if left.mean.shape != right.mean.shape:
        raise ValueError(f"b: expected {len(left.mean)} features as a has, got {len(right.mean)}")
    covariance, other = left.covariance, right.covariance.to(left.covariance.device)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ other @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    cross = eigenvalues.clamp(min=0).sqrt().sum()
    means = (left.mean - right.mean.to(left.mean.device)).square().sum()
    distance = means + covariance.trace() + other.trace() - 2 * cross
    return max(0.0, float(distance))


def _statistics(name: str, given: torch.Tensor | FeatureStatistics) -> FeatureStatistics:
    if isinstance(given, FeatureStatistics):
        return given
    check_tensor(name, given, ("N", "F"))
    if len(given) < 2:
        raise ValueError(f"{name}: expected at least 2 instances, got {len(given)}")
    found = FeatureStatistics(given.shape[1], given.device)
    found.update(given)
    return found


def inception_score(logits: torch.Tensor, splits: int = 10) -> tuple[float, float]:
    """Inception Score (Salimans et al., 2016): exp of the mean KL(p(y|x) ‖ p(y)).

    Args:
        logits: ``(N, classes)``, unnormalised logarithms of class probabilities, in random order.
        splits: parts it is computed on, one after the other.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        ValueError: no part at all, more parts than instances, or logits that stand for no
            probabilities. (−∞ is one of 0.)

    Example:
        >>> import torch
        >>> from ginr_fast.generation.distances import inception_score
        >>> certain = 100 * torch.eye(4)
        >>> [round(value, 4) for value in inception_score(certain, splits=1)]
        [4.0, 0.0]
    """
    check_tensor("logits", logits, ("N", "classes"))
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits: expected 1 to {len(logits)}, got {splits}")
    logs = logits.double().log_softmax(dim=1)
    broken = logs.isnan().any(1)
    if broken.any():
        raise ValueError(
            f"logits: expected those of probabilities, {int(broken.sum())} of {len(logits)} rows "
            f"give NaN"
        )
    scores = []
    for log in logs.tensor_split(splits):
        probabilities = log.exp()
        divergence = probabilities * (log - probabilities.mean(0).log())
        scores.append(divergence.nan_to_num(0.0).sum(1).mean().exp())
    each = torch.stack(scores)
    return float(each.mean()), float(each.std(correction=0))


class PrecisionRecall(NamedTuple):
    """How much of the samples is real, and how much of the real is sampled, each in [0, 1].

    Args:
        precision: fraction of samples that lie where real instances do.
        recall: fraction of real instances that lie where samples do.
    """

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Their harmonic mean; 0 if both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def precision_recall(real: torch.Tensor, samples: torch.Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., 2019).

    A set covers the balls around its instances that reach to their k-th nearest other instance.

    Args:
        real: features, ``(N, F)``; N > k.
        samples: features, ``(M, F)``; M > k. Precision falls with fewer real instances and recall
            with fewer samples: compare scores of equal numbers only.
        k: neighbours.

    Raises:
        ValueError: too few instances for k, features of different width, or not finite.
    """
    check_tensor("real", real, ("N", "F"))
    check_tensor("samples", samples, ("M", real.shape[1]), device=real.device)
    fewest = min(len(real), len(samples))
    if not 1 <= k < fewest:
        raise ValueError(f"k: expected at least 1 and below the {fewest} instances, got {k}")
    # To float64 once, not block by block.
    real, samples = check_finite("real", real).double(), check_finite("samples", samples).double()
    precision = _covered(samples, real, _radii(real, k))
    recall = _covered(real, samples, _radii(samples, k))
    return PrecisionRecall(precision, recall)


def _radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """Of each point, the distance of its k-th nearest other one."""
    # Of k + 1 nearest ones one is the point itself, at no distance.
    parts = points.split(_BLOCK)
    return torch.cat([_distances(part, points).kthvalue(k + 1, dim=1).values for part in parts])


def _covered(points: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor) -> float:
    """Fraction of points in any ball."""
    inside = [
        (_distances(part, centres) <= radii).any(dim=1).double() for part in points.split(_BLOCK)
    ]
    return float(torch.cat(inside).mean())


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances ``(N, M)``, float64."""
    # By matrix products, which are far faster than differences; in float64 what cancels in them is
    # below the rounding of the features themselves.
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


class Nearest(NamedTuple):
    """The nearest training instance of each sample.

    Args:
        indices: ``(S,)``, int64, in the order that training instances came.
        distances: ``(S,)``, float32: root of the mean squared difference of their values.
    """

    indices: torch.Tensor
    distances: torch.Tensor


def nearest(samples: torch.Tensor, training: torch.Tensor | Iterable[torch.Tensor]) -> Nearest:
    """The nearest training instance of each sample, of pictures or of features.

    Args:
        samples: ``(S, ...)``.
        training: ``(N, ...)``, or batches of it, which need not be in memory together.

    Raises:
        ValueError: no training instance, another shape, or values that are not finite.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.distances import nearest
        >>> found = nearest(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0], [9.0]]))
        >>> found.indices.tolist(), found.distances.tolist()
        ([1, 0], [1.0, 1.0])
    """
    flat = check_finite("samples", samples).flatten(1).double()
    best = flat.new_full((len(flat),), float("inf"))
    indices = torch.full((len(flat),), -1, device=flat.device)
    seen = 0
    for given in [training] if isinstance(training, torch.Tensor) else training:
        check_finite("training", check_tensor("training", given, ("N", *samples.shape[1:])))
        for batch in given.split(_BLOCK) if len(given) else ():
            found, where = _distances(flat, batch.to(flat).flatten(1)).min(dim=1)
            closer = found < best
            best = torch.where(closer, found, best)
            indices = torch.where(closer, where + seen, indices)
            seen += len(batch)
    if not seen:
        raise ValueError("training: expected at least one instance, got none")
    return Nearest(indices, (best / flat.shape[1] ** 0.5).float())
