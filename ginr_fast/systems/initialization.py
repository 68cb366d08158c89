"""Starting values under which encoders tell places apart, and LA-GINR becomes local, soon.

With PyTorch's defaults all attention starts almost uniform: every coordinate reads the mean of all
tokens, every token the mean of all patches, and training first spends long on a plateau where an
image is its mean colour. The values here break that symmetry without adding a constraint; all of
them are learned from the first step on.

* Patch positions and latent tokens start on the same lattice over the image, as sines and cosines
  of their place.
* The encoder's queries and keys start equal, so that tokens attend to tokens like themselves, which
  are the near ones (Trockman and Kolter, Mimetic Initialization of Self-Attention Layers,
  arXiv:2305.09828).
* The decoder's layers before a ReLU keep the variance of what they read (He et al.,
  arXiv:1502.01852), its attention projections start at Xavier scale with doubled queries, its
  outputs near zero.
"""

from __future__ import annotations

import torch
from torch import nn

from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.encoders import LatentEncoder, PatchTokenizer, TransformerBlock
from ginr_fast.encoders.lattice import lattice_embedding

_LATTICE_SCALE = 0.7  # amplitude of a sine; leaves room for what is in the patch
_LIKENESS = 4.0  # how strongly tokens prefer tokens like themselves


@torch.no_grad()
def initialise_encoder(tokenizer: PatchTokenizer, encoder: LatentEncoder) -> None:
    """Set the starting values of tokenizer and Transformer, in place, from the global state."""
    patches, side = tokenizer.side**2, tokenizer.side
    tables = [encoder.latents.unsqueeze(0)]
    if tokenizer.position.requires_grad:  # for one view or several
        tables.append(tokenizer.position.unflatten(0, (-1, patches)))
    for table in tables:
        count, dim = table.shape[1:]
        table.copy_(_LATTICE_SCALE * lattice_embedding(count, dim, side))
    encoder.latents.add_(0.02 * torch.randn_like(encoder.latents))
    tokenizer.embed.weight.mul_(2)
    attend_to_likes(encoder)


@torch.no_grad()
def attend_to_likes(encoder: LatentEncoder, likeness: float = _LIKENESS) -> None:
    """Let the tokens of a Transformer attend to tokens like themselves, in place.

    Args:
        encoder: the Transformer.
        likeness: how strongly.
    """
    for block in encoder.modules():
        if isinstance(block, TransformerBlock):
            query, key, _ = block.qkv.weight.chunk(3)
            nn.init.xavier_uniform_(query, gain=likeness**0.5)
            key.copy_(query)


@torch.no_grad()
def initialise_decoder(decoder: LocalityAwareDecoder) -> None:
    """Set the starting values of the decoder, in place, from the global random state."""
    for layer in _linear(decoder.query_feature, *decoder.band_features, *decoder.hidden):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.xavier_uniform_(decoder.query_projection.weight, gain=2.0)
    attention = (decoder.key_projection, decoder.value_projection, decoder.output_projection)
    for layer in _linear(*attention, *decoder.modulations):
        nn.init.xavier_uniform_(layer.weight)
    for layer in _linear(*decoder.outputs):
        layer.weight.mul_(0.1)
        layer.bias.zero_()


def _linear(*layers: nn.Module | None) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
