"""How far decoded values are from known ones, by the shortest way a decoder has."""

from __future__ import annotations

from torch import Tensor, nn

from ginr_fast.coords import CoordinateGrid
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.ops.locality_decode.squared_error import KeptFeatures, locality_error

__all__ = ["KeptFeatures", "decoding_errors"]


def decoding_errors(
    decoder: nn.Module,
    coords: Tensor | CoordinateGrid,
    tokens: Tensor,
    targets: Tensor,
    kept: KeptFeatures | None = None,
) -> Tensor:
    """The mean squared error of each instance.

    Args:
        decoder: of tokens.
        coords: ``(B, ..., c)``, ``(..., c)`` shared by the batch, or a grid.
        tokens: what it decodes, ``(B, ...)``.
        targets: what it should give, ``(B, ..., d_out)``.
        kept: the same in every call, where coordinates and decoder are the same in every call: what
            depends on nothing else is then computed once.

    Returns:
        ``(B,)``, differentiable.
    """
    if isinstance(decoder, LocalityAwareDecoder):
        keys, values = decoder.keys_and_values(tokens)
        return locality_error(
            coords,
            keys,
            values,
            decoder.weights(),
            targets,
            scale=decoder.head_dim**-0.5,
            modulation_relu=decoder.modulation_relu,
            kept=kept,
        )
    return (decoder(coords, tokens) - targets).square().flatten(1).mean(1)
