"""``ginr-fast convert CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from ginr_fast.adapters.checkpoints import ANR_SYSTEM, AnrOptions
from ginr_fast.adapters.published_tensors import some
from ginr_fast.commands import common
from ginr_fast.ops.checks import check_count
from ginr_fast.options import refuse_set
from ginr_fast.systems.mnif import Modality

if TYPE_CHECKING:  # needs what comes with [train] only
    from ginr_fast.training.checkpoints import Saved

Code = Literal["trans-inr", "ginr-ipc"]

# Options that checkpoints have a use for, by whose code they are of.
_USES = {
    "mnif": ("modality", "w0", "coefficients", "averaged"),
    "anr": ("anr", "averaged"),
    "trans-inr": ("config", "averaged"),
    "ginr-ipc": ("config", "views", "averaged"),
}


@dataclass(frozen=True)
class ConvertArguments:
    """Turn a checkpoint of published code into one of this library, or back.

    A checkpoint of mNIF (LinearMixtureINR), of trans-inr or of ginr-ipc becomes exported weights
    that eval, render and the other commands take; the decoder in one of ANR, or of INRCT with it,
    becomes the weights of an AnrDecoder. A file of this library that holds one of these becomes a
    checkpoint under the published names. Code in a checkpoint is never run.

    Args:
        checkpoint: the file. Of this library also the folder of a run.
        out: the file to write: .safetensors of this library, .pt of published code.
        modality: (mNIF) what it was trained on.
        w0: (mNIF) of its sines; 50 for mNIF (S) on voxels.
        coefficients: (mNIF without latents) whether layers have coefficients of their own.
        image_size: (mNIF of images) height and width of its images, in pixels.
        config: (trans-inr, ginr-ipc) the YAML configuration it was trained with; if None, what the
            checkpoint holds of it, or config.yaml beside it.
        views: (ginr-ipc, radiance fields) support views: those of the checkpoint, if its
            configuration does not say; or how many one made for that code shall take.
        averaged: (ginr-ipc) the moving average of the weights.
        code: (of a TransINR to .pt) whose code it shall be for; trans-inr if None.
        anr: (ANR) arguments of its class that its tensors do not say.
    """

    checkpoint: Positional[Path]
    out: Path
    modality: Modality = "image"
    w0: float = 30.0
    coefficients: Literal["layerwise", "shared"] = "layerwise"
    image_size: int = 64
    config: Path | None = None
    views: int | None = None
    averaged: bool = False
    code: Code | None = None
    anr: Annotated[AnrOptions, arg(name="anr")] = field(default_factory=AnrOptions)

    def __post_init__(self) -> None:
        if self.out.suffix not in (".safetensors", ".pt"):
            raise ValueError(f"out: expected a .safetensors or .pt file, got {self.out.name}")
        common.check_out(self.out)
        check_count("views", self.views, optional=True)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    given = common.parse(ConvertArguments, arguments, "convert")
    if given.out.suffix == ".pt":
        print(_to_published(given))
    else:
        print(_from_published(given))


def _from_published(given: ConvertArguments) -> str:
    from ginr_fast.adapters.checkpoints import anr_arguments, anr_decoder, read_published
    from ginr_fast.commands.convert_tokens import token_system
    from ginr_fast.training.checkpoints import write_export
    from ginr_fast.training.recipes import as_plain

    published = read_published(given.checkpoint, given.averaged)
    uses = _USES[published.kind]
    if published.kind == "mnif" and given.modality == "image":
        uses += ("image_size",)
    refuse_set(given, f"is of no use for a checkpoint of {published.kind}", but=uses)
    lines = []
    if published.kind == "anr":
        decoder = anr_decoder(published.state, given.anr)
        metadata = {"recipe": anr_arguments(published.state, given.anr)}
        write_export(given.out, ANR_SYSTEM, metadata, decoder.state_dict())
        lines.append(f"{given.out}: the weights of an AnrDecoder, {len(published.state)} tensors")
    else:
        if published.kind == "mnif":
            system, recipe, state, unused = _mnif(published.state, given)
        else:
            made = token_system(published, given.checkpoint, given.config, given.views)
            system, recipe, unused = made.recipe.system, as_plain(made.recipe), made.unused
            state = made.model.state_dict()
        write_export(given.out, system, {"recipe": recipe}, state)
        lines.append(f"{given.out}: {system}, {len(published.state) - len(unused)} tensors")
        lines += _listed("without a use there", unused)
    return "\n".join(lines + _listed("left out, not of the decoder", published.beside))


def _mnif(
    state: dict[str, Tensor], given: ConvertArguments
) -> tuple[str, dict[str, Any], dict[str, Tensor], list[str]]:
    """The system, its recipe, its weights, and the names of what it has no use for."""
    from ginr_fast.systems.mnif_adaptation import Cavia, CaviaConfig
    from ginr_fast.systems.mnif_published import load_published, published_step_sizes
    from ginr_fast.training.recipes import (
        MnifImagesRecipe,
        MnifRecipe,
        MnifScenesRecipe,
        MnifVoxelsRecipe,
        as_plain,
    )

    model = load_published(state, given.modality, given.w0, given.coefficients)
    rates = published_step_sizes(state)
    cavia = CaviaConfig(meta_sgd=rates is not None)
    about: dict[str, Any] = {"model": model.config, "cavia": cavia, "steps": 1}
    recipe: MnifRecipe
    if given.modality == "image":
        recipe = MnifImagesRecipe(image_size=given.image_size, **about)
    elif given.modality == "voxels":
        recipe = MnifVoxelsRecipe(**about)
    else:
        recipe = MnifScenesRecipe(adaptation="cavia", **about)
    adapted = Cavia(model, cavia)
    if rates is not None and adapted.step_sizes is not None:
        if adapted.step_sizes.shape != rates.shape:
            raise ValueError(
                f"meta_sgd_lrs: expected {len(adapted.step_sizes)} rates, got {len(rates)}"
            )
        adapted.step_sizes.data.copy_(rates)
    unused = [name for name in state if name.startswith("model.")]
    return recipe.system, as_plain(recipe), adapted.state_dict(), unused


def _to_published(given: ConvertArguments) -> str:
    from ginr_fast.commands.convert_tokens import TOKEN_SYSTEMS, write_published
    from ginr_fast.files import replace_atomically
    from ginr_fast.training.checkpoints import load_saved

    saved = load_saved(given.checkpoint)
    uses = ("code", "views") if saved.system in TOKEN_SYSTEMS else ()
    refuse_set(given, f"is of no use for a published checkpoint of {saved.system}", but=uses)
    if saved.system in TOKEN_SYSTEMS:
        return write_published(saved, given.out, given.code, given.views)
    state, source = _published_state(saved)
    replace_atomically(given.out, lambda temporary: torch.save(state, temporary))
    return f"{given.out}: a state dict of {source}, {len(state)} tensors"


def _published_state(saved: Saved) -> tuple[dict[str, Tensor], str]:
    """Of an ANR or an mNIF, under the published names."""
    from ginr_fast.adapters.checkpoints import anr_of, anr_published
    from ginr_fast.systems.mnif import Mnif
    from ginr_fast.systems.mnif_published import to_published
    from ginr_fast.training.recipes import (
        MnifImagesRecipe,
        MnifScenesRecipe,
        MnifVoxelsRecipe,
        from_plain,
    )

    if saved.system == ANR_SYSTEM:
        return anr_published(anr_of(saved)), "an ANR"
    kinds = {kind.system: kind for kind in (MnifImagesRecipe, MnifVoxelsRecipe, MnifScenesRecipe)}
    if saved.system not in kinds:
        raise ValueError(f"{saved.path}: holds {saved.system}, which has no published form here")
    recipe = from_plain(kinds[saved.system], {"steps": 1, **saved.recipe})
    model = Mnif(recipe.model)
    inner = {
        name.removeprefix("model."): value
        for name, value in saved.weights.items()
        if name.startswith("model.")
    }
    try:
        model.load_state_dict(inner)
    except RuntimeError as error:
        raise saved.misfit(error) from None
    return to_published(model, saved.weights.get("step_sizes")), "a LinearMixtureINR"


def _listed(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what}: {some(names)}"] if names else []
