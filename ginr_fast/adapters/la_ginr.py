"""Locality-aware decoders of other people's code, on :func:`ginr_fast.locality_decode`.

LA-GINR's authors released no code, and reimplementations share neither the names of classes nor the
details of the formula (sines or cosines first, a ReLU after the modulation or not). So a decoder is
described by where it keeps its parts, a :class:`LocalityLayout`, and the details are found by
trial: a copy with random parameters is run beside the formula in each of its variants, and the one
that gives the same values is taken. If none does, the decoder is left alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ginr_fast.adapters.cross_attention import heads_of, linear_of, projections_of
from ginr_fast.adapters.frame import Adapter, Match
from ginr_fast.adapters.la_ginr_formula import as_bands, attribute, evaluate
from ginr_fast.adapters.la_ginr_layout import LAYOUTS, LocalityLayout, Variant, variants
from ginr_fast.adapters.probes import Probe, drawn
from ginr_fast.ops import dispatch

# Largest relative difference between a decoder and the variant of the formula it is taken for.
_TOLERANCE = 1e-3


def locality_adapter(layout: LocalityLayout) -> Adapter:
    """What recognises decoders of a layout, for ``accelerate(model, adapters=[...])``.

    Args:
        layout: where such a decoder keeps its parts. A module that lacks one of them is none of its
            kind; one that has them all and computes something else is left alone.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.adapters.la_ginr import locality_adapter
        >>> from ginr_fast.adapters.la_ginr_layout import LAINR
        >>> print(ginr_fast.accelerate(torch.nn.Linear(2, 3), adapters=[locality_adapter(LAINR)]))
        nothing in the model was recognised
    """
    return Adapter(layout.name, (), lambda module: _match(module, layout), relies_on=())


ADAPTERS = tuple(locality_adapter(layout) for layout in LAYOUTS)
"""Recognise decoders of :data:`LAYOUTS`."""


def _match(module: nn.Module, layout: LocalityLayout) -> Match | str | None:
    parts = _parts(module, layout)
    if parts is None:
        return None
    if isinstance(parts, str):
        return parts
    names = list(inspect.signature(type(module).forward).parameters)[1:3]
    if len(names) < 2:
        return "its forward does not take coordinates and tokens"
    try:
        variant = _variant_of(module, layout, parts)
    except Exception as error:  # of their code, or where ours does not fit it
        return f"it does not run on a sample: {error}"
    if variant is None:
        return f"it has the parts of {layout.name}, but computes no variant of LA-GINR's decoder"

    def forward(module: nn.Module, original: Any, *args: Any, **kwargs: Any) -> Tensor:
        given = dict(zip(names, args, strict=False)) | kwargs
        if not _as_recognised(module, layout, variant):
            return original(*args, **kwargs)
        if len(args) + len(kwargs) == 2 and all(name in given for name in names):
            values = evaluate(module, layout, variant, *(given[name] for name in names))
            if values is not None:
                return values
        return original(*args, **kwargs)

    runs_on = f"locality_decode: {parts[1].shape[0]} bands, {variant.heads} heads"
    like = next(module.parameters())
    probe = Probe(arguments=_sample(module, layout, variant.coord_dim, like))
    return Match(runs_on, {"forward": forward}, (probe,))


def _parts(module: nn.Module, layout: LocalityLayout) -> tuple[Tensor, Tensor] | str | None:
    """The frequencies of query and bands; None for a module of another kind; or what is missing."""
    lists = [layout.band_features, layout.modulations, layout.hidden, layout.outputs]
    single = [layout.query_feature, *([layout.query_linear] if layout.query_linear else [])]
    attributes = [s for s in (layout.query_frequencies, layout.band_frequencies) if type(s) is str]
    if any(
        attribute(module, name) is None for name in (*lists, *single, layout.attention, *attributes)
    ):
        return None
    layers = [attribute(module, name) for name in single]
    for name in lists:
        found = attribute(module, name)
        if not isinstance(found, (nn.ModuleList, nn.Sequential)):
            return f"its {name} is not a list of layers"
        layers += list(found)
    if any(linear_of(layer) is None for layer in layers):
        return f"it has the names of {layout.name}, but other layers than linear ones"
    attention = attribute(module, layout.attention)
    if projections_of(attention) is None or heads_of(attention) is None:
        return f"the layout of its {layout.attention} is not known"
    query, bands = (
        as_bands(attribute(module, source))
        for source in (layout.query_frequencies, layout.band_frequencies)
    )
    if query.ndim != 1 or bands.ndim != 2 or not query.numel() * bands.numel():
        return "its frequencies are not (n,) for the query and (L, n) for the bands"
    if query.requires_grad or bands.requires_grad:
        return "its frequencies are learned"
    return query, bands


def _as_recognised(module: nn.Module, layout: LocalityLayout, variant: Variant) -> bool:
    """Whether a decoder still has parts like those that it was recognised with."""
    heads = heads_of(attribute(module, layout.attention))
    return heads == variant.heads and isinstance(_parts(module, layout), tuple)


def _sample(module: nn.Module, layout: LocalityLayout, coord_dim: int, like: Tensor) -> tuple:
    """Coordinates and tokens of two instances."""
    key = projections_of(attribute(module, layout.attention))
    assert key is not None
    tokens = drawn(2, 4, key.key.weight.shape[1], like=like)
    return drawn(2, 5, coord_dim, seed=1, scale=0.5, like=like), tokens


def _variant_of(
    module: nn.Module, layout: LocalityLayout, parts: tuple[Tensor, Tensor]
) -> Variant | None:
    """The variant of the formula that a decoder computes, by trial on a copy; None if none."""
    query = linear_of(attribute(module, layout.query_feature))
    heads = heads_of(attribute(module, layout.attention))
    assert query is not None and heads is not None
    coord_dim = query.in_features // (2 * len(parts[0]))
    twin = _randomised(module, layout)
    arguments = _sample(twin, layout, coord_dim, torch.empty(0, dtype=torch.float32, device="cpu"))
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        dispatch.backend("reference"),
        _exact_products(),
    ):
        want = type(module).forward(twin, *arguments)
        for variant in variants(coord_dim, heads):
            got = evaluate(twin, layout, variant, *arguments)
            if got is None or got.shape != want.shape:
                continue
            if (got - want).norm() <= _TOLERANCE * want.norm():
                return variant
    return None


@contextmanager
def _exact_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _randomised(module: nn.Module, layout: LocalityLayout) -> nn.Module:
    """A copy in float32 on the CPU whose layers have random parameters: with its own ones, zeros
    after an initialisation above all, two variants may give the same values."""
    twin = copy.deepcopy(module).to(device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    names = [layout.query_feature, layout.attention, layout.band_features, layout.modulations]
    names += [
        layout.hidden,
        layout.outputs,
        *([layout.query_linear] if layout.query_linear else []),
    ]
    with torch.no_grad():
        for part in (attribute(twin, name) for name in names):
            for parameter in part.parameters():
                std = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
                parameter.normal_(0, std, generator=generator)
    return twin
