"""Where attention goes: of coordinates over latent tokens, and of latent tokens over patches.

Computed from queries and keys by the published formulas; decoder and encoder run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ginr_fast.analysis.locality import check_tokens
from ginr_fast.coords import CoordinateGrid
from ginr_fast.decoders.anr import AnrDecoder
from ginr_fast.decoders.arguments import check_inputs
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.encoders import LatentEncoder, PatchTokenizer, TransformerBlock
from ginr_fast.ops.anr_decode.reference import threshold_weights
from ginr_fast.ops.coordinates import normalised, written_out
from ginr_fast.ops.locality_decode.reference import fourier_features
from ginr_fast.systems.image_inr import ImageInr

_BLOCK = 1 << 13


@torch.no_grad()
def token_attention(
    decoder: nn.Module,
    coords: Tensor | CoordinateGrid,
    tokens: Tensor,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """How much of its attention each coordinate gives to each token, head by head.

    softmax over the tokens of (W_Q q + b_Q)·(W_K z_r + b_K) / √d_h, q the query feature of the
    coordinate: the weights of LA-GINR's selective token aggregation (arXiv 2310.05624, equations
    4 and 5), in float32 (float64 for a decoder of that dtype). Of an ANR q is the Fourier features
    themselves, there are no biases, and a threshold τ makes of the weights max(p − τ, 0),
    normalised (Attention Beats Linear, ECCV 2024).

    Args:
        decoder: a :class:`ginr_fast.LocalityAwareDecoder` or a :class:`ginr_fast.AnrDecoder`.
        coords: ``(B, ..., c)``, ``(..., c)`` shared by the batch, or a grid.
        tokens: ``(B, R, token_dim)``.
        chosen: only these tokens are returned; the softmax is over all.

    Returns:
        ``(B, H, ..., R)``, or as many as chosen in place of R; a row of all tokens sums to 1, or to
        0 where a threshold leaves nothing.

    Raises:
        TypeError: a decoder without cross-attention, or an argument of the wrong kind.
        ValueError: another shape, or a number that no token has.
    """
    if not isinstance(decoder, LocalityAwareDecoder | AnrDecoder):
        raise TypeError(
            "decoder: expected cross-attention over tokens (LocalityAwareDecoder, AnrDecoder), "
            f"got {type(decoder).__name__}"
        )
    parameter = decoder.query_projection.weight
    check_inputs(coords, tokens, parameter, decoder.coord_dim, decoder.token_dim)
    if chosen is not None:
        check_tokens(chosen, tokens.shape[1])
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    batch = tokens.shape[0]
    where, grid_shape, shape = normalised(coords, batch, parameter.device, dtype)
    points = written_out(where, grid_shape)
    keys = decoder.keys_and_values(tokens)[0].to(dtype) * decoder.head_dim**-0.5
    queries = _queries(decoder, dtype)
    threshold = decoder.threshold if isinstance(decoder, AnrDecoder) else 0.0
    parts = []
    for part in points.split(_BLOCK, dim=1):
        query = queries(part).unflatten(-1, (decoder.heads, decoder.head_dim)).transpose(1, 2)
        attention = torch.softmax(query @ keys.transpose(-1, -2), dim=-1)
        if threshold:
            attention = threshold_weights(attention, threshold)
        parts.append(attention if chosen is None else attention[..., list(chosen)])
    found = torch.cat(parts, dim=2)
    return found.reshape(batch, decoder.heads, *shape[1:], found.shape[-1])


def _queries(
    decoder: LocalityAwareDecoder | AnrDecoder, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Of points ``(B, N, c)`` the queries of all heads, ``(B, N, H·d_h)``."""
    if isinstance(decoder, AnrDecoder):
        frequencies = decoder.frequencies
        projection = decoder.query_projection.weight.to(dtype)
        return lambda points: F.linear(fourier_features(points, frequencies).to(dtype), projection)
    weights = decoder.weights().to_dtype(dtype)
    weight, bias = weights.projection_weight, weights.projection_bias
    assert weight is not None and bias is not None

    def project(points: Tensor) -> Tensor:
        gamma = fourier_features(points, weights.query_frequencies).to(dtype)
        feature = F.linear(gamma, weights.query_weight, weights.query_bias).relu()
        return F.linear(feature, weight, bias)

    return project


def block_attention(block: TransformerBlock, stream: Tensor) -> Tensor:
    """The attention weights of a Transformer block, from what goes into it.

    Args:
        block: the block.
        stream: its tokens, ``(B, T, dim)``.

    Returns:
        softmax(QKᵀ/√d_h), ``(B, heads, T, T)``, float32 or wider: rows are queries.
    """
    qkv = block.qkv(block.attention_norm(stream))
    query, key, _ = qkv.unflatten(-1, (3, block.heads, block.head_dim)).permute(2, 0, 3, 1, 4)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    scores = query.to(dtype) * block.head_dim**-0.5 @ key.to(dtype).transpose(-1, -2)
    return torch.softmax(scores, dim=-1)


@torch.no_grad()
def latent_attention(encoder: LatentEncoder, data_tokens: Tensor) -> Tensor:
    """Attention from latent tokens to data tokens in the last block of an encoder.

    A hook takes what goes into that block; the encoder itself runs as ever.

    Args:
        encoder: with at least one block.
        data_tokens: ``(B, T, dim)``.

    Returns:
        ``(B, heads, R, T)``. Rows sum to less than 1: the rest goes to the latent tokens.

    Raises:
        ValueError: an encoder without blocks, or tokens of another shape.
    """
    return _latent_attention(encoder, lambda: encoder(data_tokens))


def _latent_attention(encoder: LatentEncoder, run: Callable[[], object]) -> Tensor:
    """:func:`latent_attention` of what ``run`` gives the encoder."""
    if not len(encoder.blocks):
        raise ValueError("encoder: expected at least one block, got none")
    last = encoder.blocks[-1]
    assert isinstance(last, TransformerBlock)
    streams: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: streams.append(given[0]))
    try:
        run()
    finally:
        hook.remove()
    latents = encoder.latents.shape[0]
    return block_attention(last, streams[0])[:, :, :latents, latents:]


@torch.no_grad()
def patch_attention(model: ImageInr, images: Tensor) -> Tensor:
    """Attention from latent tokens to patches of an image, mean over the heads of the last block.

    TransINR, ECCV 2022, arXiv 2208.02801, section 5.

    Args:
        model: of images, with a :class:`ginr_fast.encoders.LatentEncoder`.
        images: ``(B, channels, image_size, image_size)``, values in [0, 1].

    Returns:
        ``(B, R, side, side)``, on the grid of patches. What is missing from a sum of 1 over them
        goes to other latent tokens.

    Raises:
        TypeError, ValueError: as ``model.encode`` and :func:`latent_attention`.
    """
    attention = _latent_attention(model.encoder, lambda: model.encode(images)).mean(1)
    return attention.unflatten(-1, (model.tokenizer.side, model.tokenizer.side))


def patch_masks(tokenizer: PatchTokenizer, attention: Tensor) -> Tensor:
    """Attention over patches as masks over the image: TransINR's Figure 7.

    Args:
        tokenizer: of the model.
        attention: of :func:`patch_attention`, ``(B, R, side, side)``.

    Returns:
        ``(B, R, image_size, image_size)``, bilinearly up-sampled, the padding of the image cut off,
        the highest value of each mask 1.
    """
    size, before = tokenizer.image_size, tokenizer.pad[0]
    padded = tokenizer.side * tokenizer.patch_size
    masks = F.interpolate(attention, (padded, padded), mode="bilinear")
    masks = masks[:, :, before : before + size, before : before + size]
    return masks / masks.amax((2, 3), keepdim=True)


@torch.no_grad()
def effective_tokens(decoder: nn.Module, coords: Tensor | CoordinateGrid, tokens: Tensor) -> Tensor:
    """How many tokens a coordinate looks at: exp(entropy) of its attention, geometric mean over
    all coordinates.

    Args:
        decoder: see :func:`token_attention`, as the others.
        coords: see there.
        tokens: see there.

    Returns:
        ``(B, H)``, from 1 (one token) to R (all alike).
    """
    attention = token_attention(decoder, coords, tokens)
    entropy = torch.special.entr(attention).sum(-1)
    return entropy.flatten(2).mean(-1).exp()
