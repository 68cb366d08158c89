"""``ginr-fast analyse MODEL WHAT``: of an mNIF here, of other systems in modules of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from ginr_fast.commands import common

if TYPE_CHECKING:
    from ginr_fast.systems.mnif import Mnif

# What other modules analyse, each with options of its own.
_ELSEWHERE = {
    "tokens": "analyse_tokens",
    "attention": "analyse_tokens",
    "patches": "analyse_tokens",
    "seconds": "analyse_seconds",
}


@dataclass(frozen=True)
class AnalyseArguments:
    """The paper's analyses of an mNIF: how alike its bases are, or what it costs.

    Of a trained LA-GINR, TransINR or IPC: ginr-fast analyse CHECKPOINT tokens, attention,
    patches or seconds; each of them has a --help.

    Args:
        model: the folder of a run, a .pt checkpoint, exported .safetensors, or the name of a
            recipe, whose model is then as training would start from it.
        what: bases: |cosine similarity| between basis networks, layer by layer, as a table and heat
            maps. inference: parameters, multiply-adds, outputs a second and memory of one output.
        out: the folder to write to; analysis in the run's folder, or runs/RECIPE/analysis, if not
            given.
        size: (inference) pixels or voxels along an axis of an output; the paper's if not given.
        rounds: (inference) outputs timed.
    """

    model: Positional[str]
    what: Positional[Literal["bases", "inference"]]
    out: Path | None = None
    size: int | None = None
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.rounds < 1 or (self.size is not None and self.size < 1):
            raise ValueError(
                f"rounds, size: expected positive integers, got {self.rounds} and {self.size}"
            )


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    for what in arguments[:2]:
        if what in _ELSEWHERE:
            import_module(f"ginr_fast.commands.{_ELSEWHERE[what]}").main(arguments)
            return
    given = common.parse(AnalyseArguments, arguments, "analyse")
    from ginr_fast.analysis.instances import run_folder
    from ginr_fast.files import replace_text

    model, name, trained = _model_of(given.model)
    folder = run_folder(Path(given.model)) if trained else Path("runs") / name
    out = given.out or folder / "analysis"
    if given.what == "bases":
        content = _bases(model, name, out)
    else:
        content = _inference(model, name, trained, given)
    path = out / f"{given.what}.json"
    text = json.dumps({"model": name, "trained": trained, **content}, indent=1) + "\n"
    replace_text(path, text)
    print(f"figures: {path}")


def _model_of(name: str) -> tuple[Mnif, str, bool]:
    """A model, what to call it, and whether it is trained."""
    import torch

    from ginr_fast.analysis.instances import load_mnif
    from ginr_fast.systems.mnif import Mnif
    from ginr_fast.training.recipes import RECIPES, MnifRecipe

    if Path(name).exists():
        return load_mnif(name)[0], name, True
    chosen = RECIPES.get(name, (None, None))[1]
    if not isinstance(chosen, MnifRecipe):
        names = [known for known, (_, value) in RECIPES.items() if isinstance(value, MnifRecipe)]
        raise ValueError(f"model: expected a trained mNIF or one of {', '.join(names)}, got {name}")
    torch.manual_seed(chosen.seed)
    return Mnif(chosen.model).eval(), name, False


def _bases(model: Mnif, name: str, out: Path) -> dict[str, Any]:
    from rich.console import Console
    from rich.table import Table

    from ginr_fast.analysis.similarity import basis_similarity, draw_similarity

    layers = basis_similarity(model)
    table = Table("layer", "shape", "mean", "highest", title=f"|cosine| of the bases of {name}")
    shapes = model.config.spec.layer_shapes
    for layer in layers:
        shape = " x ".join(map(str, shapes[layer.layer]))
        table.add_row(str(layer.layer), shape, f"{layer.mean:.4f}", f"{layer.highest:.4f}")
    Console().print(table)
    draw_similarity(layers, out / "bases.png")
    print(f"heat maps: {out / 'bases.png'}")
    return {
        "mixtures": model.config.mixtures,
        "layers": [
            {"layer": layer.layer, "mean": layer.mean, "highest": layer.highest} for layer in layers
        ],
    }


def _inference(model: Mnif, name: str, trained: bool, given: AnalyseArguments) -> dict[str, Any]:
    import torch
    from rich.console import Console
    from rich.table import Table

    from ginr_fast.analysis.inference import SIZES, UNITS, count, measure, published

    config, device = model.config, common.best_device()
    size = given.size or SIZES[config.modality]
    unit = UNITS[config.modality]
    model.to(device)
    zeros = torch.zeros(1, config.context_dim, device=device)
    latent = _latent(given.model, model) if trained else model.initial_latents(zeros, 0.0)
    counts = count(config, size)
    found = measure(model, latent.to(device), size, given.rounds)
    paper = published(config) if size == SIZES[config.modality] else None
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    dims = "^3" if config.modality == "voxels" else "^2"
    title = f"{name}, one {unit} of {size}{dims}"
    if config.modality == "scene":
        title += f" with {config.samples} samples a ray"
    table = Table("what", f"here ({where})", "paper", title=title)
    rows = {
        "learnable parameters": (_scaled(counts.learnable), paper and paper.learnable),
        "inference parameters": (_scaled(counts.inference), paper and paper.inference),
        "multiply-adds (the paper's FLOPS)": (
            _scaled(counts.multiply_adds),
            paper and paper.multiply_adds,
        ),
        "multiply-adds of averaging, not counted above": (_scaled(counts.averaging), None),
        f"{unit}s a second": (f"{1 / found.seconds:.1f}", paper and paper.per_second),
        "peak memory": (_bytes(found.peak_bytes), paper and paper.memory),
    }
    content: dict[str, Any] = {
        "size": size,
        "device": where,
        "threads": torch.get_num_threads(),
        **asdict(counts),
        **found._asdict(),
    }
    if trained and config.modality == "scene":
        sparse = measure(model, latent.to(device), size, given.rounds, occupancy=True)
        rows["further views a second, with an occupancy grid"] = f"{1 / sparse.seconds:.1f}", None
        content["occupancy_seconds"] = sparse.seconds
    for what, (here, there) in rows.items():
        table.add_row(what, here, there or "")
    Console().print(table)
    if paper is not None:
        print("paper: Tables 1 to 3, on an RTX 8000; its mNIF (S) has the parameters of scenes")
    return content


def _latent(path: str, model: Mnif) -> Any:
    """The first training instance's latent, or the mean one if a run keeps none."""
    import torch

    from ginr_fast.training.checkpoints import load_saved

    kept = load_saved(path).weights.get("latents.weight")
    if kept is not None:
        return kept[:1]
    return model.initial_latents(torch.zeros(1, model.config.context_dim), 0.0)


def _scaled(number: int) -> str:
    for unit, factor in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= factor:
            return f"{number / factor:.3f} {unit}"
    return str(number)


def _bytes(number: int | None) -> str:
    return "not known" if number is None else f"{number / 2**20:.1f} MiB"
