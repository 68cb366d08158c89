"""The Transformer that reads data tokens and writes latent tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ginr_fast.ops.checks import check_tensor

# Up to this many tokens the explicit formula's T×T scores stay small.
_SHORT = 1024


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(QKᵀ/√d_h) V, each ``(B, heads, T, head_dim)``.

    PyTorch's fused kernel, except for short bfloat16 sequences on a CPU: there its backward does
    not use the processor's bfloat16 products, and two batched products are about four times faster.
    """
    batch, heads, length, width = query.shape
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or length > _SHORT:
        return F.scaled_dot_product_attention(query, key, value)
    query, key, value = (part.reshape(batch * heads, length, width) for part in (query, key, value))
    scores = torch.bmm(query * width**-0.5, key.transpose(1, 2))
    return torch.bmm(torch.softmax(scores, -1), value).view(batch, heads, length, width)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, each with a residual connection.

    Args:
        dim: width of the tokens.
        heads: attention heads.
        head_dim: width of a head; ``heads * head_dim`` is free of ``dim``.
        mlp_dim: hidden width of the feed-forward part.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, mlp_dim: int, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=qkv_bias)
        self.attention_out = nn.Linear(heads * head_dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, T, dim) -> (B, T, dim)``."""
        batch, length, _ = tokens.shape
        qkv = self.qkv(self.attention_norm(tokens))
        query, key, value = (
            qkv.view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = attention(query, key, value)
        tokens = tokens + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.mlp_norm(tokens))


class LatentEncoder(nn.Module):
    """Turn data tokens into R latent tokens.

    R learned tokens are concatenated to the data tokens; after ``depth`` blocks of self-attention
    their R outputs, normalised and projected to ``token_dim``, are the latent tokens of the
    instance (LA-GINR, arXiv:2310.05624, section 3.2; six blocks of 12 heads × 64 as published).

    Args:
        dim: width of the data tokens and of the Transformer.
        depth: number of blocks.
        heads: attention heads a block.
        head_dim: width of a head.
        mlp_dim: hidden width of the feed-forward parts.
        latents: R, the number of latent tokens.
        token_dim: width of the latent tokens; None gives the Transformer's own outputs, neither
            normalised nor projected (TransINR and IPC do that a layer of the field).
        qkv_bias: whether queries, keys and values have a bias (IPC's code has, TransINR's not).

    Raises:
        ValueError: a size below 1 (``depth`` may be 0).

    Example:
        >>> import torch
        >>> from ginr_fast.encoders import LatentEncoder
        >>> encoder = LatentEncoder(dim=32, depth=1, heads=2, head_dim=16, mlp_dim=64,
        ...                         latents=8, token_dim=24)
        >>> encoder(torch.randn(2, 16, 32)).shape
        torch.Size([2, 8, 24])
    """

    def __init__(
        self,
        dim: int = 768,
        depth: int = 6,
        heads: int = 12,
        head_dim: int = 64,
        mlp_dim: int = 3072,
        latents: int = 256,
        token_dim: int | None = 256,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = {
            "dim": dim,
            "heads": heads,
            "head_dim": head_dim,
            "mlp_dim": mlp_dim,
            "latents": latents,
            "token_dim": dim if token_dim is None else token_dim,
        }
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        if not isinstance(depth, int) or depth < 0:
            raise ValueError(f"depth: expected a non-negative integer, got {depth!r}")
        self.dim = dim
        self.latents = nn.Parameter(torch.empty(latents, dim))
        nn.init.normal_(self.latents, std=0.02)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, heads, head_dim, mlp_dim, qkv_bias) for _ in range(depth)
        )
        self.norm = nn.Identity() if token_dim is None else nn.LayerNorm(dim)
        self.project = nn.Identity() if token_dim is None else nn.Linear(dim, token_dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latent tokens of data tokens.

        Args:
            tokens: data tokens, ``(B, T, dim)``.

        Returns:
            ``(B, R, token_dim)``.

        Raises:
            TypeError: not a tensor. ValueError: another shape.
        """
        check_tensor("tokens", tokens, ("B", "T", self.dim))
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        # Latents first: the slice that is read in the end is then contiguous in each instance.
        stream = torch.cat([latents.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            stream = block(stream)
        return self.project(self.norm(stream[:, : self.latents.shape[0]]))
