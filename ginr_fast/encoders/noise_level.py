"""Transformer blocks that know a noise level, and blocks that read INR tokens from features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ginr_fast.encoders.transformer import attention
from ginr_fast.ops.checks import check_tensor

# ln(t)/4 spans 2.5 from 0.003 to 80: between a tenth of a period and six. Finer ones would make the
# network jump between neighbouring levels, which consistency training compares.
_LOWEST, _HIGHEST = 0.25, 16.0


class NoiseLevelEmbedding(nn.Module):
    """Noise levels to vectors that condition a network.

    A level enters as ln(max(t, floor)) / 4 (EDM, arXiv:2206.00364), through sines and cosines of
    geometric frequencies and a two-layer MLP (as DiT's steps, arXiv:2212.09748). Level 0, a clean
    signal, is embedded as the floor: its logarithm is finite, and the levels just above it, which
    training sees, are neighbours.

    Args:
        dim: width of the vectors.
        floor: t_min; every level below counts as it.
        frequencies: pairs of sines and cosines.

    Raises:
        ValueError: a size below 1, or a floor that is not positive.

    Example:
        >>> import torch
        >>> from ginr_fast.encoders.noise_level import NoiseLevelEmbedding
        >>> NoiseLevelEmbedding(dim=32)(torch.tensor([0.0, 0.5, 80.0])).shape
        torch.Size([3, 32])
    """

    frequencies: torch.Tensor

    def __init__(self, dim: int, floor: float = 0.003, frequencies: int = 32) -> None:
        super().__init__()
        for name, size in {"dim": dim, "frequencies": frequencies}.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        if not 0 < floor < math.inf:
            raise ValueError(f"floor: expected above 0, got {floor}")
        self.floor = floor
        rates = torch.logspace(math.log2(_LOWEST), math.log2(_HIGHEST), frequencies, base=2)
        self.register_buffer("frequencies", rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """``(B,)`` to ``(B, dim)``.

        Raises:
            TypeError, ValueError: no tensor, or of another shape.
        """
        check_tensor("t", t, ("B",))
        phases = (t.clamp(min=self.floor).log() / 4)[:, None] * self.frequencies
        return self.mlp(torch.cat([phases.cos(), phases.sin()], -1).to(self.frequencies.dtype))


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to others.

    Args:
        dim: width of the tokens.
        heads: attention heads.
        head_dim: width of a head.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query = nn.Linear(dim, heads * head_dim)
        self.key_value = nn.Linear(dim, 2 * heads * head_dim)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, tokens: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
        """``(B, T, dim)`` and, if not the same, ``(B, S, dim)`` to ``(B, T, dim)``."""
        key_value = self.key_value(tokens if others is None else others)
        query = self._by_head(self.query(tokens))
        key, value = (self._by_head(part) for part in key_value.chunk(2, -1))
        if others is None:
            mixed = attention(query, key, value)
        else:  # that function's other path is for equal lengths
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)


def _feed_forward(dim: int, mlp_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))


class AdaptiveBlock(nn.Module):
    """adaLN-Zero: a Transformer block whose norms and residuals a condition scales and shifts.

    x ← x + α₁·Attention(norm(x)·(1 + γ₁) + τ₁), x ← x + α₂·MLP(norm(x)·(1 + γ₂) + τ₂); α, γ and τ
    are linear in SiLU(condition) and start at 0, so that the block starts as the identity (DiT,
    arXiv:2212.09748).

    Args:
        dim: width of the tokens and of the condition.
        heads: attention heads.
        head_dim: width of a head.
        mlp_dim: hidden width of the feed-forward part.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention = Attention(dim, heads, head_dim)
        self.mlp_norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.mlp = _feed_forward(dim, mlp_dim)
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """``(B, T, dim)`` and ``(B, dim)`` to ``(B, T, dim)``."""
        gate, scale, shift, mlp_gate, mlp_scale, mlp_shift = self.modulation(F.silu(condition))[
            :, None
        ].chunk(6, -1)
        normed = self.attention_norm(tokens) * (1 + scale) + shift
        tokens = tokens + gate * self.attention(normed)
        normed = self.mlp_norm(tokens) * (1 + mlp_scale) + mlp_shift
        return tokens + mlp_gate * self.mlp(normed)


class TokenDecoderBlock(nn.Module):
    """INR tokens read features: cross-attention and feed-forward, pre-norm, with residuals.

    Args:
        dim: width of the tokens and features.
        heads: attention heads.
        head_dim: width of a head.
        mlp_dim: hidden width of the feed-forward part.
        self_attention: the tokens attend to each other first.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, mlp_dim: int, self_attention: bool
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        self.self_attention = Attention(dim, heads, head_dim) if self_attention else None
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, heads, head_dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = _feed_forward(dim, mlp_dim)

    def forward(self, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """``(B, R, dim)`` and ``(B, T, dim)`` to ``(B, R, dim)``."""
        if self.self_norm is not None and self.self_attention is not None:
            tokens = tokens + self.self_attention(self.self_norm(tokens))
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), features)
        return tokens + self.mlp(self.mlp_norm(tokens))

    def outputs(self) -> list[nn.Linear]:
        """The layers whose outputs are added to the tokens."""
        attention = (self.self_attention, self.cross_attention)
        found = [part.out for part in attention if part is not None]
        return [*found, *[layer for layer in self.mlp if isinstance(layer, nn.Linear)][-1:]]
