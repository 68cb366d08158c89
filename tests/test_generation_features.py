"""Features of images: pinned values, what they rank, and networks that the user brings."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ginr_fast.data.photos import photos
from ginr_fast.data.views import TrainingViews, ViewConfig
from ginr_fast.generation.distances import frechet_distance
from ginr_fast.generation.evaluation import describe, evaluate_samples
from ginr_fast.generation.features import SmallFeatures, as_bytes, as_floats, small_features
from ginr_fast.generation.inception import inception_features

COUNT = 120
PINNED = [1.09559, -0.08891, 0.14914, 0.24862, 0.21014, 0.31337, 0.37803, 0.8961, 0.38771]


@pytest.fixture(scope="module")
def views() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of the same kind of pictures, in [0, 1]."""
    stream = TrainingViews(photos(), ViewConfig(kind="crops"), 32, COUNT, 0)
    first, second = (torch.stack([stream[step, slot] for slot in range(COUNT)]) for step in (0, 1))
    return first.float() / 255, second.float() / 255


def test_values_are_pinned() -> None:
    """Another value here is another network, and needs another name."""
    row, column = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    waves = [(row / 5).sin(), (column / 3).cos(), (row * column / 90).sin()]
    image = 0.5 + 0.4 * torch.stack(waves)[None]
    found = small_features(image)[0]
    assert found.shape == (144,)
    assert found.dtype == torch.float32
    some = found[[0, 20, 47, 48, 60, 80, 100, 120, 143]]
    expected = torch.tensor(PINNED)
    torch.testing.assert_close(some, expected, rtol=2e-4, atol=2e-5)


def test_a_flat_picture_has_layout_and_no_texture() -> None:
    found = small_features(torch.full((1, 3, 20, 30), 0.25))[0]
    torch.testing.assert_close(found[:16], torch.full((16,), 0.25 * 3**0.5))
    assert found[16:48].abs().max() < 1e-6
    torch.testing.assert_close(found[48:], torch.full((96,), 3 * 255**-0.5), rtol=1e-4, atol=0)


def test_bytes_are_the_same_as_floats() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(small_features(images), small_features(images.float() / 255))
    assert torch.equal(as_bytes(as_floats(images)), images)


def test_each_image_by_itself() -> None:
    images = torch.rand(5, 3, 24, 24)
    alone = torch.cat([small_features(image[None]) for image in images])
    torch.testing.assert_close(small_features(images), alone, rtol=1e-4, atol=1e-5)


def _blurred(images: torch.Tensor, spread: float) -> torch.Tensor:
    away = torch.arange(-7, 8.0)
    kernel = torch.exp(-away.square() / (2 * spread**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 15)
    rows = F.conv2d(F.pad(images, (7,) * 4, mode="reflect"), kernel, groups=3)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=3)


def _noisy(images: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + amount * noise).clamp(0, 1)


def _redder(images: torch.Tensor, amount: float) -> torch.Tensor:
    return (images + amount * torch.tensor([1.0, -0.5, -0.5]).view(3, 1, 1)).clamp(0, 1)


def _shuffled(images: torch.Tensor, share: float) -> torch.Tensor:
    """The 16 patches of a share of the images in another order."""
    count = int(share * len(images))
    patches = images[:count].unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    mixed = patches[:, :, order].unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5)
    return torch.cat([mixed.reshape(count, 3, 32, 32), images[count:]])


def _without_bright_ones(images: torch.Tensor, share: float) -> torch.Tensor:
    order = images.mean((1, 2, 3)).argsort()
    return images[order[: int((1 - share) * len(images))]]


@pytest.mark.parametrize(
    ("worse", "amounts"),
    [
        (_blurred, (0.6, 1.0, 2.0, 4.0)),
        (_noisy, (0.02, 0.05, 0.1, 0.2)),
        (_redder, (0.05, 0.1, 0.2)),
        (_shuffled, (0.5, 0.75, 1.0)),
        (_without_bright_ones, (0.1, 0.25, 0.5, 0.75)),
    ],
)
def test_worse_sets_are_farther(views, worse, amounts) -> None:
    real, fresh = views
    expected = small_features(real)
    found = [frechet_distance(expected, small_features(fresh))]
    found += [frechet_distance(expected, small_features(worse(fresh, each))) for each in amounts]
    assert found == sorted(found)
    assert found[-1] > 2 * found[0]


def test_it_serves_torchmetrics(views) -> None:
    """As its ``feature``; and the formula of the distance agrees with theirs."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fresh = (as_bytes(side) for side in views)
    metric = FrechetInceptionDistance(feature=SmallFeatures())
    metric.update(real, real=True)
    metric.update(fresh, real=False)
    found = frechet_distance(small_features(real), small_features(fresh))
    assert found == pytest.approx(float(metric.compute()), rel=1e-3)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.zeros(2, 1, 8, 8), ValueError, r"images: expected shape \(B, 3, H, W\)"),
        (torch.zeros(3, 8, 8), ValueError, "images: expected shape"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int32), TypeError, "images: expected uint8 or"),
    ],
)
def test_bad_images_are_named(images, error, words) -> None:
    with pytest.raises(error, match=words):
        small_features(images)


class _Bytes(torch.nn.Module):
    """Takes uint8 only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean((2, 3))


class _Floats(torch.nn.Module):
    """Takes floats only, and gives logits too."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert images.is_floating_point()
        return images.mean((2, 3)), 2 * images.amax((2, 3))


class _LikeNvidias(torch.nn.Module):
    """The arguments of NVIDIA's Inception."""

    def forward(
        self, images: torch.Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        features = images.float().mean((2, 3))
        if return_features:
            return features
        bias = torch.tensor([0.0, 0.0, 0.0 if no_output_bias else 9.0])
        return (features / 100 + bias).softmax(1)


class _Pictures(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


def _saved(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))
    return path


def test_scripted_networks(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    rounded = (images * 255).round()
    network = inception_features(_saved(_Bytes(), tmp_path / "mine.pt"))
    assert (network.name, network.num_features, network.num_classes) == ("mine", 3, 0)
    torch.testing.assert_close(network(images), rounded.mean((2, 3)))
    assert network.describe(images).logits is None

    network = inception_features(_saved(_Floats(), tmp_path / "other.pt"))
    assert network.num_classes == 3
    found = network.describe(as_bytes(images))
    torch.testing.assert_close(found.features, rounded.mean((2, 3)) / 255)
    torch.testing.assert_close(found.logits, 2 * rounded.amax((2, 3)) / 255)

    network = inception_features(_saved(_LikeNvidias(), tmp_path / "inception-2015-12-05.pt"))
    assert (network.name, network.num_features, network.num_classes) == ("inception", 3, 3)
    found = network.describe(images)
    torch.testing.assert_close(found.features, rounded.mean((2, 3)))
    probabilities = (rounded.mean((2, 3)) / 100).softmax(1)
    assert found.logits is not None
    torch.testing.assert_close(found.logits.softmax(1), probabilities)


class _Counted(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.runs = module, 0

    def forward(self, *arguments: object, **options: object) -> torch.Tensor:
        self.runs += 1
        return self.module(*arguments, **options)


def test_logits_that_nobody_wants_cost_nothing(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    network = inception_features(_saved(_LikeNvidias(), tmp_path / "inception-2015-12-05.pt"))
    network.module = counted = _Counted(network.module)
    alone = describe([images], network, classes=False)
    assert counted.runs == 1 and alone.logits is None
    both = describe([images], network)
    assert counted.runs == 3 and both.logits is not None
    assert torch.equal(both.features, alone.features)
    network(images)
    assert counted.runs == 4
    evaluate_samples(both, [images], network, neighbours=1)  # real images need none
    assert counted.runs == 5


def test_networks_that_do_not_serve_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="features: no file .*inception-2015-12-05.pt"):
        inception_features(tmp_path / "none.pt")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no module")
    with pytest.raises(ValueError, match="features: .*broken.pt is no TorchScript module"):
        inception_features(broken)
    with pytest.raises(ValueError, match=r"features: .*expected features \(B, F\)"):
        inception_features(_saved(_Pictures(), tmp_path / "pictures.pt"))
    with pytest.raises(ValueError, match="it fails on a picture"):
        inception_features(_saved(torch.nn.Linear(5, 2), tmp_path / "linear.pt"))
