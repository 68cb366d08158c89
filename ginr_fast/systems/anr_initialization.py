"""Starting values under which an ANR reads the tokens around a coordinate from the first step on.

With random projections every coordinate begins by reading the mean of all tokens, and training
first spends long on blurred images; see :mod:`ginr_fast.systems.initialization`, which does the
same for the encoder's side. All of these values are learned.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ginr_fast.decoders.anr import AnrDecoder
from ginr_fast.encoders.lattice import lattice_places

_DROP = 4.0  # a token one place further away has a logit smaller by this
_RIDGE = 1e-2


@torch.no_grad()
def initialise_anr(decoder: AnrDecoder, tokens: torch.Tensor) -> None:
    """Set the starting values of an ANR of images, in place, from the global random state.

    Args:
        decoder: the ANR, of two coordinates.
        tokens: what its tokens are at first for any image, ``(R, token_dim)``, laid out as
            :func:`ginr_fast.encoders.lattice.lattice_places`.
    """
    for layer in (decoder.value_projection, decoder.output_projection):
        nn.init.xavier_uniform_(layer.weight)
    *inner, last = (layer for layer in decoder.layers if isinstance(layer, nn.Linear))
    for layer in inner:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    last.weight.mul_(0.1)
    last.bias.zero_()
    _attend_to_places(decoder, tokens)


def _attend_to_places(decoder: AnrDecoder, tokens: torch.Tensor) -> None:
    """Queries are some Fourier features of a coordinate, keys the same features of a token's place:
    the logit is a sum of cosines of their distance, largest where it is 0."""
    side = math.isqrt(len(tokens) - 1) + 1
    frequencies = decoder.frequencies
    count = len(frequencies)
    low = (frequencies <= max(1.0, side / 2)).nonzero()[:, 0]  # as far as the lattice tells apart
    most = decoder.head_dim // 4  # cosine and sine of two coordinates
    if len(tokens) == 1 or not len(low) or not most:
        return
    low = low[torch.linspace(0, len(low) - 1, min(most, len(low))).round().long()]
    angles = math.pi * frequencies[low]
    drop = (1 - (angles * (2 / side)).cos()).sum()
    scale = (_DROP / drop * decoder.head_dim**0.5).sqrt()

    # Features are the cosines of all frequencies of one coordinate after the other, then the sines.
    columns = torch.cat([low, low + count, low + 2 * count, low + 3 * count])
    phases = lattice_places(len(tokens))[:, :, None].to(angles) * angles
    features = torch.cat([phases.cos().flatten(1), phases.sin().flatten(1)], -1)
    # Ridge regression: an exact fit would rest on directions in which tokens hardly differ.
    known = tokens.double()
    products = known.T @ known
    products.diagonal().add_(_RIDGE * products.diagonal().mean())
    keys = scale * torch.linalg.solve(products, known.T @ features.double())
    query = decoder.query_projection.weight.view(decoder.heads, decoder.head_dim, -1)
    key = decoder.key_projection.weight.view(decoder.heads, decoder.head_dim, -1)
    used = len(columns)
    for weight in (query, key):
        weight.mul_(0.1)
    query[:, range(used), columns] = scale
    key[:, :used] = keys.T.to(key)
