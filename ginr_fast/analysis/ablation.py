"""The papers' ablations as variants of a recipe.

LA-GINR: Tables 3, 4 and 6 of arXiv 2310.05624; TransINR: Table 2 of ECCV 2022, arXiv 2208.02801;
INRCT: its Table 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from ginr_fast.training.comparison import Entry
from ginr_fast.training.recipes import (
    ImagesRecipe,
    InrctRecipe,
    LaGinrRecipe,
    TransInrRecipe,
)

Over = Literal["modules", "aggregation", "modulation", "bandwidths", "levels", "groups", "losses"]

# Bands of one to four levels, as fractions of the highest: 128; 128, 32; 128, 64, 32; 128, 90, 64,
# 32. With the PSNR of FFHQ at 256x256.
_LEVELS: tuple[tuple[tuple[float, ...], float | None], ...] = (
    ((1.0,), None),
    ((1.0, 0.25), 39.88),
    ((1.0, 0.5, 0.25), 40.13),
    ((1.0, 0.703125, 0.5, 0.25), 39.79),
)
# Which losses of INRCT (generation, reconstruction, diffusion) are on, and its training scheduler,
# with the two-step FID and the PSNR of CelebA-HQ at 64x64.
_LOSSES: Mapping[str, tuple[tuple[bool, bool, bool, bool], float, float]] = {
    "reconstruction alone": ((False, True, False, False), 389.0, 49.2),
    "generation alone": ((True, False, False, False), 15.93, 10.7),
    "both": ((True, True, False, False), 19.31, 45.1),
    "and diffusion": ((True, True, True, False), 9.30, 37.4),
    "and the scheduler": ((True, True, True, True), 7.88, 40.9),
}
_GROUPS = {1: 25.63, 4: 27.89, 16: 29.93, 64: 31.96}


def variants(recipe: ImagesRecipe | InrctRecipe, over: Over) -> list[Entry]:
    """The settings of one ablation, all under the budget of ``recipe``.

    Args:
        recipe: what is varied.
        over: of an LA-GINR: modules: whole, without selective token aggregation, without
            multi-band modulation, without both (Table 3, where ``model.heads`` is 1); aggregation
            or modulation: one of the two parts alone; bandwidths: their order, and the query's
            (Table 4); levels: one to four bands (Table 6). Of a TransINR: groups: 1 to 64 weight
            groups a layer (its Table 2). Of an INRCT: losses: which losses there are, and the
            training scheduler (its Table 5).

    Returns:
        One entry a setting, with the paper's PSNR and FID where it prints them.

    Raises:
        ValueError: a recipe of another system, no such ablation, or a recipe without what is
            switched off.
    """
    if over not in get_args(Over):
        raise ValueError(f"over: expected one of {', '.join(get_args(Over))}, got {over!r}")
    if over == "groups":
        if not isinstance(recipe, TransInrRecipe):
            raise ValueError(f"over: groups are of trans-inr, not of {recipe.system}")
        return _groups(recipe)
    if over == "losses":
        if not isinstance(recipe, InrctRecipe):
            raise ValueError(f"over: losses are of inrct, not of {recipe.system}")
        return _losses(recipe)
    if not isinstance(recipe, LaGinrRecipe):
        raise ValueError(f"over: {over} are varied in la-ginr, not in {recipe.system}")
    return _LA_GINR[over](recipe)


def _entry(
    name: str, recipe: ImagesRecipe, changes: Mapping[str, Any], published: float | None = None
) -> Entry:
    return Entry(name, replace(recipe, model=replace(recipe.model, **changes)), published)


def _without_bands(recipe: LaGinrRecipe) -> dict[str, Any]:
    """Without multi-band modulation all frequencies are the query's: it gets the highest."""
    return {"modulation": "stack", "query_bandwidth": max(recipe.model.bandwidths)}


def _modules(recipe: LaGinrRecipe) -> list[Entry]:
    whole = {"aggregation": "attention", "modulation": "multi_band"}
    stack = _without_bands(recipe)
    rows: list[tuple[str, Mapping[str, Any], float]] = [
        ("LA-GINR", whole, 37.46),
        ("w/o STA", {**whole, "aggregation": "patterns"}, 34.54),
        ("w/o multiFM", {**whole, **stack}, 33.90),
        ("w/o both (IPC)", {"aggregation": "patterns", **stack}, 34.11),
    ]
    return [_entry(name, recipe, changes, published) for name, changes, published in rows]


def _aggregation(recipe: LaGinrRecipe) -> list[Entry]:
    kinds = ("attention", "patterns")
    return [_entry(kind, recipe, {"aggregation": kind}) for kind in kinds]


def _modulation(recipe: LaGinrRecipe) -> list[Entry]:
    query, highest = recipe.model.query_bandwidth, max(recipe.model.bandwidths)
    rows = [_entry("multi-band", recipe, {"modulation": "multi_band"})]
    for bandwidth in dict.fromkeys((query, highest)):
        changes = {"modulation": "stack", "query_bandwidth": bandwidth}
        rows.append(_entry(f"stack, query {bandwidth:g}", recipe, changes))
    return rows


def _bandwidths(recipe: LaGinrRecipe) -> list[Entry]:
    down = tuple(sorted(recipe.model.bandwidths, reverse=True))
    query, highest = recipe.model.query_bandwidth, down[0]
    rows = {
        (down, query): 37.46,
        (down[::-1], query): 35.00,
        ((highest,) * len(down), query): 35.30,
        (down, highest): 35.58,
    }
    return [
        _entry(
            f"{_listed(bands)}, query {sigma:g}",
            recipe,
            {"bandwidths": bands, "query_bandwidth": sigma},
            published,
        )
        for (bands, sigma), published in rows.items()
    ]


def _levels(recipe: LaGinrRecipe) -> list[Entry]:
    highest = max(recipe.model.bandwidths)
    rows = []
    for fractions, published in _LEVELS:
        bands = tuple(highest * fraction for fraction in fractions)
        name = f"L = {len(bands)}: {_listed(bands)}"
        rows.append(_entry(name, recipe, {"bandwidths": bands}, published))
    return rows


def _groups(recipe: TransInrRecipe) -> list[Entry]:
    width = recipe.model.hidden_dim
    return [
        _entry(f"{count} group{'s' * (count > 1)}", recipe, {"groups": count}, published)
        for count, published in _GROUPS.items()
        if width % count == 0
    ]


def _losses(recipe: InrctRecipe) -> list[Entry]:
    objective = recipe.objective
    weights = (objective.generation, objective.reconstruction, objective.diffusion)
    if not all(weights):
        raise ValueError("objective: expected all losses on, they are switched off here")
    if not recipe.first_steps(1):
        raise ValueError(
            "reconstruction_steps, reconstruction_epochs: expected some, they are the scheduler "
            "that is switched off here"
        )
    rows = []
    for name, ((generation, reconstruction, diffusion, scheduler), fid, psnr) in _LOSSES.items():
        changed = replace(
            objective,
            generation=objective.generation * generation,
            reconstruction=objective.reconstruction * reconstruction,
            diffusion=objective.diffusion * diffusion,
        )
        varied = replace(recipe, objective=changed)
        if not scheduler:
            varied = replace(varied, reconstruction_epochs=0, reconstruction_steps=None)
        rows.append(Entry(name, varied, psnr, fid))
    return rows


def _listed(bands: tuple[float, ...]) -> str:
    return " ".join(f"{band:g}" for band in bands)


_LA_GINR: Mapping[str, Callable[[LaGinrRecipe], list[Entry]]] = {
    "modules": _modules,
    "aggregation": _aggregation,
    "modulation": _modulation,
    "bandwidths": _bandwidths,
    "levels": _levels,
}
