"""``ginr-fast judge CHECKPOINT``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ginr_fast.commands import common
from ginr_fast.generation.evaluation import FEWEST
from ginr_fast.generation.sampling import SamplingOptions
from ginr_fast.ops.checks import check_count
from ginr_fast.training.tasks.base import DataOptions

if TYPE_CHECKING:
    from ginr_fast.generation.features import FeatureNetwork
    from ginr_fast.training.generative import Generator

SMALL = "small"
_NEIGHBOURS = 256


@dataclass(frozen=True)
class JudgeArguments:
    """How good the samples of a generative model are, beside real instances, and what they cost.

    Images: Frechet distance of features (the FID with Inception's), precision, recall and F1 beside
    training images; how near samples come to training images, over how near held-out images do.
    Scenes: the same of views from where held-out scenes are seen. Shapes: coverage and minimum
    matching distance of points on their surfaces, beside held-out shapes. Scores of different
    numbers of samples do not compare.

    Args:
        checkpoint: the folder of a run, a .pt checkpoint, or exported .safetensors.
        source: real data; of a latent diffusion that of its first stage, not the latents.
        samples: drawn with each number of steps.
        steps: that samples are drawn in, one column each; the model's own number if none.
        guidance: scale of classifier-free guidance; the model's own if not given.
        label: the class to draw from.
        seed: of the noise.
        features: (images, scenes) small, or a file with weights of Inception or any TorchScript
            module of features.
        references: real instances compared with, at most; all if not given (of scenes as many as
            samples), 4,096 crops where a recipe cuts crops.
        neighbours: (images, shapes) samples whose nearest training instances are looked for, 256 if
            not given.
        latents: (latent diffusion) exported latents of training; what they are decoded to is judged
            too, and samples of one Gaussian fitted to them.
        views: (scenes) of each sample.
        batch: samples drawn at a time.
        out: the folder for scores.json and (images, shapes) neighbours.png; judged in the run's
            folder if not given.
    """

    checkpoint: Positional[Path]
    source: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    samples: int = 1000
    steps: tuple[int, ...] = ()
    guidance: float | None = None
    label: int | None = None
    seed: int = 0
    features: str = SMALL
    references: int | None = None
    neighbours: int | None = None
    latents: Path | None = None
    views: int = 8
    batch: int = 64
    out: Path | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "references", "neighbours", "views", "batch"):
            check_count(name, getattr(self, name), optional=True)
        if self.samples < FEWEST:
            raise ValueError(f"samples: expected at least {FEWEST} to compare, got {self.samples}")

    def sampling(self) -> list[SamplingOptions]:
        """One a number of steps."""
        return [
            SamplingOptions(steps, self.guidance, self.label, self.seed)
            for steps in self.steps or (None,)
        ]


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(JudgeArguments, arguments, "judge")
    from rich.console import Console
    from rich.table import Table

    from ginr_fast.analysis.decoded import shown_by
    from ginr_fast.analysis.instances import run_folder
    from ginr_fast.analysis.judging import tabulated
    from ginr_fast.files import replace_text
    from ginr_fast.training.generative import load_generative
    from ginr_fast.training.references import source_of

    device = common.best_device()
    generator = load_generative(given.checkpoint, device)
    _check_kind(shown_by(generator.model), given)
    for options in given.sampling():
        generator.model.evaluations(options)  # names what the model does not have, before any work
    network = _network(given.features).to(device)
    source = source_of(generator, given.source)
    out = given.out or run_folder(given.checkpoint) / "judged"
    found = _judged(generator, source, network, given, out)
    titles, *lines = tabulated(found)
    table = Table(title=f"{given.checkpoint}, beside {source.name}")
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    about = {
        "checkpoint": str(given.checkpoint),
        "data": source.name,
        "features": network.name,
        "seed": given.seed,
        "judged": [one.plain() for one in found],
    }
    replace_text(out / "scores.json", json.dumps(about, indent=2) + "\n")
    print(f"written: {out}")


def _check_kind(shown: str, given: JudgeArguments) -> None:
    """Refuse by name what has no meaning for what a model draws."""
    if shown == "scene" and given.neighbours is not None:
        raise ValueError("neighbours: are looked for among images and shapes, not among scenes")
    if shown == "voxels" and given.features != SMALL:
        raise ValueError("features: shapes are compared by points on their surfaces, by no network")


def _network(features: str) -> FeatureNetwork:
    if features == SMALL:
        from ginr_fast.generation.features import SmallFeatures

        return SmallFeatures().eval()
    from ginr_fast.generation.inception import inception_features

    return inception_features(features)


def _judged(
    generator: Generator, source: Any, network: FeatureNetwork, given: JudgeArguments, out: Path
) -> list[Any]:
    from ginr_fast.analysis.decoded import shown_by
    from ginr_fast.analysis.judged_images import Budget, judge_images, judge_views
    from ginr_fast.analysis.judged_shapes import judge_shapes
    from ginr_fast.training.references import image_references

    models = [("", generator.model, options) for options in given.sampling()]
    if given.latents is not None:
        models += _beside(generator, given.latents, models[0][2])
    budget = Budget(given.samples, given.batch, given.neighbours or _NEIGHBOURS, given.views)
    picture, shown = out / "neighbours.png", shown_by(generator.model)
    if shown == "image":
        references = image_references(source, given.references)
        return judge_images(models, references, network, budget, picture)
    if shown == "scene":
        data = source.data
        train, held_out = data.train, data.held_out
        return judge_views(models, train, held_out, network, budget, given.references)
    return judge_shapes(models, source.data, budget, picture, given.references)


def _beside(generator: Generator, path: Path, options: SamplingOptions) -> list[Any]:
    """What a diffusion of latents is to be compared with: the latents, and one Gaussian of them."""
    from ginr_fast.analysis.judging import KnownLatents
    from ginr_fast.generation.latents import Latents
    from ginr_fast.systems.latent_diffusion import GaussianLatents, LatentDiffusion

    model = generator.model
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"latents: {generator.saved.system} has no latents of a first stage")
    latents = Latents(path)
    if latents.shape != tuple(model.mean.shape):
        raise ValueError(
            f"latents: expected shape {tuple(model.mean.shape)} each as the model draws them, "
            f"{path} holds {latents.shape}"
        )
    gaussian = GaussianLatents.fitted(model, latents)
    known = KnownLatents(latents, model.mean.device)
    return [("one Gaussian of latents", gaussian, options), ("latents, decoded", known, options)]
