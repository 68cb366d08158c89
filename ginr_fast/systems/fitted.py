"""Fitted instances: what they are, and models that decode them without touching the trained one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ginr_fast.coords import CoordinateGrid
from ginr_fast.decoders.token_field import TokenFieldDecoder
from ginr_fast.ops.volume_render.convention import RenderedRays
from ginr_fast.ops.volume_render.random import Seed
from ginr_fast.systems.mnif import Mnif


class Part(NamedTuple):
    """Some of the instances, and the model that decodes them.

    Args:
        model: decodes ``instances``, as the model that was fitted does.
        instances: tokens ``(b, R, token_dim)``, latents ``(b, context_dim)``, or for the target
            "weights" packed weights in the place of either: ``(b, 1, P)`` or ``(b, P)``.
    """

    model: Any
    instances: Tensor


class Fitted:
    """Instances after test-time optimisation, whatever of them was optimised.

    Args:
        parts: all instances in one, or each in one of its own where it has a decoder of its own.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)

    @property
    def instances(self) -> Tensor:
        """Tokens, latents or packed weights, ``(B, ...)``; see :class:`Part`."""
        return torch.cat([part.instances for part in self.parts])

    def __len__(self) -> int:
        return sum(len(part.instances) for part in self.parts)

    @torch.no_grad()
    def images(self, where: CoordinateGrid) -> Tensor:
        """Images on a grid, in bounded memory; for systems of images.

        Args:
            where: a grid of ``(H, W)`` points.

        Returns:
            ``(B, channels, H, W)``, clamped to [0, 1].
        """
        return self.each(lambda part, rows: part.model.render(part.instances, where))

    @torch.no_grad()
    def color(self, origins: Tensor, directions: Tensor) -> Tensor:
        """What rays show; for systems of views.

        Args:
            origins: ``(B, ..., 3)``.
            directions: ``(B, ..., 3)``.

        Returns:
            ``(B, ..., 3)``, not clamped.
        """
        return self.each(
            lambda part, rows: part.model.color(origins[rows], directions[rows], part.instances)
        )

    @torch.no_grad()
    def decode(self, coords: Tensor | CoordinateGrid) -> Tensor:
        """Values at coordinates.

        Args:
            coords: ``(B, ..., d)``, ``(..., d)`` shared by the instances, or a grid.

        Returns:
            ``(B, ..., out)``, not clamped.
        """
        shared = isinstance(coords, CoordinateGrid) or coords.ndim < 3 or len(coords) != len(self)
        return self.each(
            lambda part, rows: part.model.decode(
                coords if shared else coords[rows],  # type: ignore[index]  # a tensor here
                part.instances,
            )
        )

    def split(self) -> list[Fitted]:
        """Every instance by itself."""
        return [
            Fitted([Part(part.model, row)])
            for part in self.parts
            for row in part.instances.split(1)
        ]

    def each(self, function: Callable[[Part, slice], Tensor]) -> Tensor:
        """What a function gives for every part, joined along the instances.

        Args:
            function: of a part and the instances that it has.
        """
        found, first = [], 0
        for part in self.parts:
            last = first + len(part.instances)
            found.append(function(part, slice(first, last)))
            first = last
        return torch.cat(found)


def view_of(model: nn.Module, own: Sequence[str] = ()) -> Any:
    """A second model with the same parameters, none of which asks for a gradient.

    Args:
        model: the model.
        own: children whose parameters are copied instead, and ask for gradients.

    Returns:
        A model of the same class and mode; nothing done to it changes the first.
    """
    kept = {id(each) for name in own for each in getattr(model, name).parameters()}
    shared = {
        id(each): nn.Parameter(each.detach(), requires_grad=False)
        for each in model.parameters()
        if id(each) not in kept
    }
    # What the memo holds counts as copied already.
    view = copy.deepcopy(model, dict[int, Any](shared))
    for name in own:
        getattr(view, name).requires_grad_()
    return view


def packed_view(model: nn.Module, tokens: Tensor) -> Part:
    """The packed weights of instances, and a model that decodes them in the place of tokens.

    Args:
        model: an mNIF, or one whose decoder makes the weights of a field from tokens
            (:class:`ginr_fast.decoders.token_field.TokenFieldDecoder`).
        tokens: ``(B, R, token_dim)``; latents ``(B, context_dim)`` of an mNIF.

    Raises:
        ValueError: of another kind.
    """
    if isinstance(model, Mnif):
        with torch.no_grad():
            return Part(MnifFields(view_of(model)), model.weights(tokens))
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, TokenFieldDecoder):
        raise ValueError(
            f"target: expected 'tokens' or 'decoder' for a {type(model).__name__}, whose decoder "
            f"has no packed weights, got 'weights'"
        )
    with torch.no_grad():
        weights = decoder.weights(tokens)
    view = view_of(model)
    view.decoder = PackedDecoder(decoder)
    return Part(view, weights[:, None])


class PackedDecoder(TokenFieldDecoder):
    """A field decoder whose one token is the packed weights, ``(B, 1, P)``.

    Args:
        decoder: that it takes the place of.
    """

    def __init__(self, decoder: TokenFieldDecoder) -> None:
        super().__init__(decoder.spec, 1, decoder.spec.parameter_count)
        self.field = decoder.field

    def weights(self, tokens: Tensor) -> Tensor:
        return self._checked(tokens)[:, 0]


class MnifFields:
    """An mNIF that is given its fields' packed weights in the place of latents.

    Args:
        model: the model.
    """

    def __init__(self, model: Mnif) -> None:
        self.model = model

    def decode(self, coords: Tensor | CoordinateGrid, weights: Tensor) -> Tensor:
        """Values at coordinates, as :meth:`Mnif.decode` gives them."""
        return self.model.decoder(coords, weights)

    def render(
        self, origins: Tensor, directions: Tensor, weights: Tensor, *, seed: Seed | None = None
    ) -> RenderedRays:
        """Colours along rays, as :meth:`Mnif.render` gives them."""
        config = self.model.config
        return self.model.decoder.render(
            origins,
            directions,
            weights,
            near=config.near,
            far=config.far,
            samples=config.samples,
            convention="mnif",
            seed=seed,
        )
