"""Images, and views of scenes, that a generative model draws, judged beside real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ginr_fast.analysis.decoded import decoder_of
from ginr_fast.analysis.judging import Drawing, Judged, described_steps, neighbours_sheet
from ginr_fast.coords import grid
from ginr_fast.data.order import spread
from ginr_fast.data.scenes import Scene, Scenes
from ginr_fast.generation.evaluation import (
    FEWEST,
    Described,
    GenerationScores,
    describe,
    evaluate_samples,
    memorisation,
)
from ginr_fast.generation.features import FeatureNetwork, as_floats
from ginr_fast.generation.sampling import Generative, SamplingOptions
from ginr_fast.pictures import save_png
from ginr_fast.rays import camera_rays
from ginr_fast.systems.mnif import Mnif
from ginr_fast.training.metrics import score_views
from ginr_fast.training.references import ImageReferences, image_batches


class Budget(NamedTuple):
    """How much is drawn and compared.

    Args:
        samples: drawn with each setting.
        batch: samples at a time.
        neighbours: samples, the first ones, whose nearest training instances are looked for.
        views: (scenes) of each sample.
    """

    samples: int
    batch: int
    neighbours: int
    views: int


def judge_images(
    models: Sequence[tuple[str, Generative, SamplingOptions]],
    references: ImageReferences,
    network: FeatureNetwork,
    budget: Budget,
    picture: Path,
) -> list[Judged]:
    """Samples of images beside training images, and held-out images beside them.

    Args:
        models: what is judged: a name, what is drawn from, and how; the first decodes for all.
        references: real images.
        network: they are compared in, on the models' device.
        budget: how much is drawn.
        picture: samples of the first of these beside their nearest training images.

    Returns:
        A column for each, and one for held-out images: what samples as good as they would score.

    Raises:
        ValueError: options that a model does not have, by name; too few images to compare.
    """
    device, size = network.device, references.size
    where = grid(size, size, device=device)

    def batches(views: Any, count: int) -> Iterator[torch.Tensor]:
        return image_batches(views, range(count), budget.batch, device)

    training, held_out = references.training, references.held_out
    _check_enough("references", len(training), "training images")
    _check_enough("data", len(held_out), "held-out images")
    real = describe(batches(training, len(training)), network, classes=False)
    unseen = describe(batches(held_out, len(held_out)), network)
    few = min(budget.neighbours, len(held_out))
    unseen_pixels = torch.cat([as_floats(part) for part in batches(held_out, few)])
    drawn: list[tuple[str, Drawing, dict[str, float]]] = []
    pixels, features = [], []  # of the first samples of each model
    render = _renderer(models[0][1], where)
    for name, model, options in models:
        drawing = Drawing(model, options, render, budget.batch)
        kept: list[torch.Tensor] = []
        found = describe(_keeping(drawing(budget.samples), kept, budget.neighbours), network)
        pixels.append(torch.cat(kept)[: budget.neighbours])
        features.append(found.features[: budget.neighbours])
        drawn.append((name, drawing, _scores(evaluate_samples(found, real, network))))
    known = map(as_floats, batches(training, len(training)))
    by_pixels = memorisation(pixels, unseen_pixels, known)
    by_features = memorisation(features, unseen.features[:few], real.features)
    nearest = by_pixels[0].samples
    shown = torch.stack([training[int(index)] for index in nearest.indices])
    save_png(neighbours_sheet(pixels[0], as_floats(shown), nearest), picture)
    judged: list[Judged] = []
    for (name, drawing, scores), near, alike in zip(drawn, by_pixels, by_features, strict=True):
        scores |= {"nearest (pixels)": near.ratio, "nearest (features)": alike.ratio}
        judged.append(_row(name, drawing, budget.samples, scores))
    model = models[0][1]
    judged.append(_held_out(unseen, real, network, model, references, budget.batch, device))
    return judged


def judge_views(
    models: Sequence[tuple[str, Generative, SamplingOptions]],
    training: Scenes,
    held_out: Scenes,
    network: FeatureNetwork,
    budget: Budget,
    references: int | None = None,
) -> list[Judged]:
    """Views of sampled scenes beside those of held-out scenes, from the same places.

    Sample i is seen from the places of held-out scene i, or of scene i modulo their number.

    Args:
        models: see :func:`judge_images`.
        training: scenes seen in training.
        held_out: scenes never seen.
        network: views are compared in, on the models' device.
        budget: how much is drawn.
        references: held-out scenes compared with, and training scenes, at most; as many as samples
            if None.

    Returns:
        A column for each, and one for views of training scenes in their place.

    Raises:
        ValueError: options that a model does not have, by name; too few views to compare.
    """
    device = network.device
    most = min(len(held_out), budget.samples, references or budget.samples)
    chosen = [held_out.scene(index) for index in range(most)]
    known = spread(len(training), len(chosen))

    def truth(kind: str, scenes: Iterable[Scene], classes: bool) -> Described:
        def batches() -> Iterator[torch.Tensor]:
            for scene in scenes:
                views = scene.images[spread(len(scene.images), budget.views)]
                yield views.permute(0, 3, 1, 2).to(device)

        found = describe(batches(), network, classes)
        _check_enough("views", found.statistics.count, f"views of {kind} scenes")
        return found

    real = truth("held-out", chosen, classes=False)
    seen = truth("training", (training.scene(index) for index in known), classes=True)

    first: Any = models[0][1]
    decoder = decoder_of(first)

    def decode(latents: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        views = []
        for latent, number in zip(latents.split(1), numbers, strict=True):
            scene = chosen[number % len(chosen)]
            for place in spread(len(scene.images), budget.views):
                views.append(_view(decoder, latent, scene, place))
        return torch.stack(views)

    judged: list[Judged] = []
    for name, model, options in models:
        drawing = Drawing(model, options, decode, budget.batch)
        found = describe(drawing(budget.samples), network)
        scores = _scores(evaluate_samples(found, real, network))
        judged.append(_row(name, drawing, budget.samples, scores))
    scores = _scores(evaluate_samples(seen, real, network))
    judged.append(Judged("training scenes", len(known), scores))
    return judged


def _check_enough(name: str, count: int, what: str) -> None:
    if count < FEWEST:
        raise ValueError(f"{name}: expected at least {FEWEST} {what} to compare with, got {count}")


def _renderer(model: Any, where: Any) -> Callable[[torch.Tensor, Sequence[int]], torch.Tensor]:
    def render(latents: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        return model.render(latents, where).expand(-1, 3, -1, -1)  # grey in three channels, too

    return render


def _view(decoder: Any, latent: torch.Tensor, scene: Scene, place: int) -> torch.Tensor:
    """A view ``(3, H, W)`` in [0, 1]."""
    height, width = scene.images.shape[1:3]
    pose = scene.poses[place][None]
    found = camera_rays(pose, height, width, scene.focal, scene.center)
    origins, directions = (part.to(latent.device) for part in found)
    if isinstance(decoder, Mnif):
        color = decoder.render(origins, directions, latent).color
    else:
        color = decoder.color(origins, directions, latent)
    return color.reshape(height, width, 3).permute(2, 0, 1).clamp(0, 1)


def _keeping(
    batches: Iterable[torch.Tensor], kept: list[torch.Tensor], count: int
) -> Iterator[torch.Tensor]:
    """Batches as they come; those with the first ``count`` images are kept."""
    seen = 0
    for batch in batches:
        if seen < count:
            kept.append(batch.float())
        seen += len(batch)
        yield batch


def _scores(found: GenerationScores) -> dict[str, float]:
    """By the names of the table's columns."""
    kind = "FID" if found.network == "inception" else f"Frechet ({found.network})"
    covered = found.covered
    scores = {
        kind: found.frechet,
        "precision": covered.precision,
        "recall": covered.recall,
        "F1": covered.f1,
    }
    if found.inception is not None:
        scores["IS"] = found.inception[0]
    return scores


def _row(name: str, drawing: Drawing, count: int, scores: dict[str, float]) -> Judged:
    return Judged(
        name or described_steps(drawing.options.steps),
        count,
        scores,
        drawing.evaluations,
        drawing.seconds,
        drawing.decoding,
    )


def _held_out(
    unseen: Described,
    real: Described,
    network: FeatureNetwork,
    model: Any,
    references: ImageReferences,
    batch: int,
    device: torch.device,
) -> Judged:
    """Held-out images in the place of samples, and how a model that encodes gives them back."""
    scores = _scores(evaluate_samples(unseen, real, network))
    if hasattr(model, "reconstruct"):
        views = references.held_out
        found = score_views(model, views, range(len(views)), batch, device).scores()
        scores["reconstruction PSNR (dB)"] = found.psnr
    return Judged("held-out images", unseen.statistics.count, scores)
