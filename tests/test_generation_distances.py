"""Distances between sets, each against a formula in float64 or a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ginr_fast.generation import distances, point_clouds
from ginr_fast.generation.distances import (
    FeatureStatistics,
    PrecisionRecall,
    frechet_distance,
    inception_score,
    nearest,
    precision_recall,
)
from ginr_fast.generation.point_clouds import chamfer, coverage_and_mmd, surface_points
from ginr_fast.meshes import Mesh


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    left, right = a.double().numpy(), b.double().numpy()
    first, second = np.cov(left, rowvar=False), np.cov(right, rowvar=False)
    means = ((left.mean(0) - right.mean(0)) ** 2).sum()
    return float(means + np.trace(first + second - 2 * sqrtm(first @ second).real))


def test_frechet_distance() -> None:
    a, b = _random(50, 6), 1.5 * _random(70, 6, seed=1) @ _random(6, 6, seed=2) + 0.3
    assert frechet_distance(a, b) == pytest.approx(_frechet(a, b), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 6, rel=1e-6)


def test_frechet_distance_of_fewer_instances_than_features() -> None:
    """Of singular covariances: those of points on a line are the squares of two lengths."""
    line = torch.zeros(1, 40)
    line[0, 3] = 1.0
    spread = torch.tensor([-1.0, 0.0, 1.0]).double()[:, None]
    found = frechet_distance(spread * line, 3 * spread * line)
    assert found == pytest.approx((3 - 1) ** 2, rel=1e-9)


def test_statistics_by_batches_are_those_of_all() -> None:
    features = 1e4 + _random(101, 5).double()  # far from 0, as sums in float32 would not bear
    seen = FeatureStatistics(5)
    for part in (features[:1], features[:0], features[1:40], features[40:]):
        seen.update(part)
    assert seen.count == 101
    torch.testing.assert_close(seen.mean, features.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(seen.covariance, features.T.cov(), rtol=1e-10, atol=1e-12)
    assert frechet_distance(seen, features) == pytest.approx(0, abs=1e-9)


def test_inception_score() -> None:
    logits = 2 * _random(60, 7)
    scores = []
    for part in np.array_split(logits.double().numpy(), 4):
        chance = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        divergence = (chance * np.log(chance / chance.mean(0))).sum(1)
        scores.append(np.exp(divergence.mean()))
    mean, spread = inception_score(logits, splits=4)
    assert mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert spread == pytest.approx(np.std(scores), rel=1e-6)
    assert inception_score(torch.zeros(10, 5), 2) == pytest.approx((1.0, 0.0))
    # Classes of no probability at all, whose logarithm is -inf.
    certain = torch.eye(4).log()
    assert inception_score(certain, 1) == pytest.approx((4.0, 0.0))


def _covered(points: torch.Tensor, centres: torch.Tensor, k: int) -> float:
    points, centres = points.double(), centres.double()
    inside = 0
    for point in points:
        for index, centre in enumerate(centres):
            others = (centres - centre).norm(dim=1)
            others = torch.cat([others[:index], others[index + 1 :]])
            if (point - centre).norm() <= others.sort().values[k - 1]:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, samples = _random(40, 4), 0.6 * _random(33, 4, seed=1) + 0.5
    expected = PrecisionRecall(_covered(samples, real, k), _covered(real, samples, k))
    assert 0 < expected.recall < expected.precision < 1
    assert precision_recall(real, samples, k) == pytest.approx(expected)
    monkeypatch.setattr(distances, "_BLOCK", 7)
    assert precision_recall(real, samples, k) == pytest.approx(expected)
    f1 = 2 / (1 / expected.precision + 1 / expected.recall)
    assert expected.f1 == pytest.approx(f1)


def test_precision_and_recall_at_the_ends() -> None:
    real = _random(30, 3)
    assert precision_recall(real, real) == (1.0, 1.0)
    far = precision_recall(real, real + 100)
    assert far == (0.0, 0.0)
    assert far.f1 == 0.0
    # A single mode: precise, and most of the real is missed.
    narrow = precision_recall(real, real.mean(0) + 0.01 * _random(30, 3, seed=1))
    assert narrow.precision == 1.0
    assert narrow.recall < 0.1


@pytest.mark.parametrize("batched", [False, True])
def test_nearest(batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_BLOCK", 5)
    samples, training = _random(9, 3, 4, 4), _random(23, 3, 4, 4, seed=1)
    samples[2] = training[17]
    pairs = (samples[:, None] - training).double().square().mean((2, 3, 4)).sqrt()
    found = nearest(samples, iter(training.split(7)) if batched else training)
    assert found.indices.tolist() == pairs.argmin(1).tolist()
    assert found.indices[2] == 17
    expected = pairs.amin(1).float()
    torch.testing.assert_close(found.distances, expected, rtol=1e-6, atol=1e-6)


def test_coverage_and_mmd() -> None:
    pairs = torch.tensor([[1.0, 5.0, 2.0, 9.0], [3.0, 4.0, 1.0, 8.0], [0.5, 6.0, 7.0, 7.0]])
    found = coverage_and_mmd(pairs)
    assert found.coverage == 2 / 4  # references 0, 2 and 0 are nearest
    assert found.mmd == pytest.approx((0.5 + 4 + 1 + 7) / 4)


@pytest.mark.parametrize("way", [point_clouds._by_trees, point_clouds._by_pairs])
def test_chamfer(way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_clouds, "_PAIRS", 20 * 15 * 2)
    a, b = _random(3, 20, 3), _random(5, 15, 3, seed=1)
    squared = (a[:, None, :, None] - b[None, :, None]).double().square().sum(-1)
    expected = squared.amin(3).mean(2) + squared.amin(2).mean(2)
    torch.testing.assert_close(way(a, b), expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chamfer(a, b), expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chamfer(a, a).diagonal(), torch.zeros(3))


def test_surface_points_lie_evenly_on_the_mesh() -> None:
    """Two triangles, of a quarter and three quarters of the area."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3]], np.float32)
    faces = np.array([[0, 1, 2], [0, 3, 1]])
    points = surface_points(Mesh(vertices, faces, np.zeros_like(vertices)), 4000)
    assert points.shape == (4000, 3)
    flat = points[:, 2] == 0
    assert 0.22 < flat.float().mean() < 0.28
    on_first, on_second = points[flat], points[~flat]
    assert (on_first[:, 0] + on_first[:, 1]).max() <= 1 + 1e-6
    assert on_second[:, 1].abs().max() == 0
    centre = on_second.mean(0)
    torch.testing.assert_close(centre, torch.tensor([1 / 3, 0, 1]), atol=0.03, rtol=0)
    again = surface_points(Mesh(vertices, faces, np.zeros_like(vertices)), 4000)
    assert torch.equal(points, again)


NAN = torch.ones(5, 3).index_fill(0, torch.tensor(2), torch.nan)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3)), "a: expected at least 2"),
        (lambda: frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4)), "b: expected 3 features"),
        (lambda: frechet_distance(torch.zeros(5), torch.zeros(5, 4)), "a: expected shape"),
        (lambda: FeatureStatistics(3).mean, "features: expected at least 1, got 0"),
        (lambda: FeatureStatistics(3).update(torch.zeros(2, 4)), "features: expected shape"),
        (lambda: frechet_distance(NAN, torch.zeros(4, 3)), "features: expected finite"),
        (lambda: inception_score(torch.zeros(5, 4), 6), "splits: expected 1 to 5, got 6"),
        (lambda: precision_recall(torch.zeros(3, 4), torch.zeros(9, 4)), "k: expected at least 1"),
        (lambda: precision_recall(torch.zeros(9, 4), torch.zeros(9, 5)), "samples: expected shape"),
        (lambda: nearest(torch.zeros(3, 4), torch.zeros(0, 4)), "training: expected at least one"),
        (lambda: nearest(torch.zeros(3, 4), [torch.zeros(2, 5)]), "training: expected shape"),
        (lambda: coverage_and_mmd(torch.zeros(0, 4)), "distances: expected some"),
        (lambda: coverage_and_mmd(torch.eye(3) * torch.nan), "distances: expected finite"),
        (lambda: nearest(NAN, torch.ones(4, 3)), "samples: expected finite values, 1 of 5 have"),
        (lambda: nearest(torch.ones(4, 3), NAN), "training: expected finite"),
        (lambda: precision_recall(NAN, torch.ones(5, 3)), "real: expected finite"),
        (lambda: precision_recall(torch.ones(5, 3), NAN), "samples: expected finite"),
        (lambda: inception_score(NAN, 1), "logits: expected those of probabilities, 1 of 5"),
        (lambda: inception_score(-NAN.nan_to_num(torch.inf), 1), "1 of 5 rows give NaN"),
        (lambda: chamfer(torch.zeros(2, 0, 3), torch.zeros(2, 4, 3)), "a, b: expected points"),
        (lambda: chamfer(torch.zeros(2, 5, 2), torch.zeros(2, 4, 3)), "a: expected shape"),
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
