"""INRCT's hyper-network: a noisy observation and its noise level to the tokens of an INR."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ginr_fast.encoders.lattice import lattice_embedding
from ginr_fast.encoders.noise_level import (
    AdaptiveBlock,
    NoiseLevelEmbedding,
    TokenDecoderBlock,
)
from ginr_fast.ops.checks import check_count, check_tensor

_LATTICE_SCALE = 0.7
_LIKENESS = 4.0
_KEEP = 0.5


@dataclass(frozen=True)
class HyperConfig:
    """The sizes of the hyper-network; the defaults are the published ones.

    Args:
        dim: width of its Transformer.
        encoder_depth: signal encoder blocks.
        decoder_depth: INR decoder blocks.
        hyper_heads: attention heads of a block; INRCT does not print them, 12 × 64 are DiT's at
            this width.
        hyper_head_dim: width of such a head.
        mlp_dim: hidden width of the feed-forward parts.
        token_self_attention: INR tokens attend to each other in the decoder blocks. INRCT's text
            has cross-attention alone; with it the sizes below have 145 million parameters, as its
            Table 8 prints, and without it 131.
    """

    dim: int = 768
    encoder_depth: int = 8
    decoder_depth: int = 6
    hyper_heads: int = 12
    hyper_head_dim: int = 64
    mlp_dim: int = 3072
    token_self_attention: bool = True

    def hyper_network(self, tokens: int, token_dim: int | None, floor: float) -> HyperNetwork:
        """The hyper-network for ``tokens`` INR tokens of width ``token_dim``."""
        return HyperNetwork(self, tokens, token_dim, floor)


class HyperNetwork(nn.Module):
    """Data tokens of a noisy observation to INR tokens, conditioned on the noise level.

    adaLN-Zero blocks make features of the data tokens; learned INR tokens then read them by
    cross-attention, are normalised and projected (INRCT, Appendix B.2, Figure 5).

    Args:
        config: the sizes.
        tokens: R, the number of INR tokens.
        token_dim: their width; None gives the Transformer's own, normalised and not projected.
        floor: t_min, see :class:`NoiseLevelEmbedding`.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> import torch
        >>> from ginr_fast.systems.hyper_network import HyperConfig, HyperNetwork
        >>> config = HyperConfig(dim=32, encoder_depth=1, decoder_depth=1, hyper_heads=2,
        ...                      hyper_head_dim=16, mlp_dim=64)
        >>> network = HyperNetwork(config, tokens=8, token_dim=24)
        >>> network(torch.randn(2, 16, 32), torch.tensor([0.0, 80.0])).shape
        torch.Size([2, 8, 24])
    """

    def __init__(
        self, config: HyperConfig, tokens: int, token_dim: int | None, floor: float = 0.003
    ) -> None:
        super().__init__()
        sizes = {
            "dim": config.dim,
            "encoder_depth": config.encoder_depth,
            "decoder_depth": config.decoder_depth,
            "hyper_heads": config.hyper_heads,
            "hyper_head_dim": config.hyper_head_dim,
            "mlp_dim": config.mlp_dim,
            "tokens": tokens,
            "token_dim": config.dim if token_dim is None else token_dim,
        }
        for name, size in sizes.items():
            check_count(name, size)
        dim, heads = config.dim, (config.hyper_heads, config.hyper_head_dim)
        self.dim = dim
        self.level = NoiseLevelEmbedding(dim, floor)
        self.encoder = nn.ModuleList(
            AdaptiveBlock(dim, *heads, config.mlp_dim) for _ in range(config.encoder_depth)
        )
        self.features_norm = nn.LayerNorm(dim)
        self.tokens = nn.Parameter(torch.empty(tokens, dim))
        self.decoder = nn.ModuleList(
            TokenDecoderBlock(dim, *heads, config.mlp_dim, config.token_self_attention)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Identity() if token_dim is None else nn.Linear(dim, token_dim)
        nn.init.normal_(self.tokens, std=0.02)

    def forward(self, data: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """INR tokens.

        Args:
            data: data tokens of the noisy observation, ``(B, T, dim)``.
            t: its noise levels, ``(B,)``; 0 for a clean one.

        Returns:
            ``(B, R, token_dim)``.

        Raises:
            TypeError, ValueError: not tensors, or of other shapes.
        """
        check_tensor("data", data, ("B", "T", self.dim))
        check_tensor("t", t, (data.shape[0],))
        condition = self.level(t)
        for block in self.encoder:
            data = block(data, condition)
        features = self.features_norm(data)
        tokens = self.tokens.to(features.dtype).expand(data.shape[0], -1, -1)
        for block in self.decoder:
            tokens = block(tokens, features)
        return self.project(self.norm(tokens))

    @torch.no_grad()
    def first_tokens(self) -> torch.Tensor:
        """INR tokens as they are before any block, ``(R, token_dim)``."""
        return self.project(self.norm(self.tokens))

    @torch.no_grad()
    def initialise_places(self, position: torch.Tensor, side: int) -> None:
        """Lay data tokens and INR tokens on one lattice over the image, in place.

        Tokens then read the patches around them from the first step on; see
        :mod:`ginr_fast.systems.initialization`. The encoder blocks are left alone: what noise
        becomes is for all patches to decide together.

        Args:
            position: the position embedding of the data tokens, ``(T, dim)``.
            side: data tokens along a side.
        """
        side = max(side, math.isqrt(len(self.tokens)))
        for table in (position, self.tokens):
            count, dim = table.shape
            table.copy_(_LATTICE_SCALE * lattice_embedding(count, dim, side))
        self.tokens.add_(0.02 * torch.randn_like(self.tokens))
        for block in self.modules():
            if isinstance(block, TokenDecoderBlock):
                attention = block.cross_attention
                key, _ = attention.key_value.weight.chunk(2)
                nn.init.xavier_uniform_(attention.query.weight, gain=_LIKENESS**0.5)
                key.copy_(attention.query.weight)
                # What a block adds starts small, so that tokens keep their places.
                for output in block.outputs():
                    output.weight.mul_(_KEEP / len(self.decoder) ** 0.5)
                    output.bias.mul_(_KEEP / len(self.decoder) ** 0.5)
