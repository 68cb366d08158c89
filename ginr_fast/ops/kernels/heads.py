"""How heads lie in memory for the attention kernels: padded, cut where wide, packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ginr_fast.ops.kernels.launch import cdiv, padded, power_of_two

WIDEST_CHUNK = 256


@dataclass(frozen=True)
class HeadLayout:
    """How heads lie in memory for the kernels: padded to powers of two, cut where wide."""

    heads: int
    query_dim: int
    query_chunks: int
    value_dim: int
    value_chunks: int

    @classmethod
    def of(cls, heads: int, key_dim: int, value_dim: int) -> HeadLayout:
        def cut(dim: int) -> tuple[int, int]:
            width = min(power_of_two(dim), WIDEST_CHUNK)
            return width, cdiv(dim, width)

        return cls(heads, *cut(key_dim), *cut(value_dim))

    @property
    def query_width(self) -> int:
        """Columns of a head's queries and keys."""
        return self.query_dim * self.query_chunks

    @property
    def value_width(self) -> int:
        """Columns of a head's values and output."""
        return self.value_dim * self.value_chunks

    @property
    def widest(self) -> int:
        return max(self.query_width, self.value_width)


def pack_tokens(tensor: Tensor, width: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """Keys or values (B, H, R, d) padded with zeros to (B, H, tokens, width), in ``dtype``."""
    batch, heads, count, dim = tensor.shape
    if (count, dim) == (tokens, width):
        return tensor.to(dtype).contiguous()
    out = tensor.new_zeros((batch, heads, tokens, width), dtype=dtype)
    out[:, :, :count, :dim] = tensor
    return out


def head_columns(weight: Tensor, heads: int, dim: int, width: int) -> Tensor:
    """The columns of ``weight`` (·, H·dim) moved to where a padded head has them, (·, H·width)."""
    if dim == width:
        return weight
    out = weight.new_zeros((*weight.shape[:-1], heads, width))
    out[..., :dim] = weight.unflatten(-1, (heads, dim))
    return out.flatten(-2)


def padded_tokens(count: int) -> int:
    """Tokens as the kernels see them: whole blocks of any kernel's size."""
    return padded(count, 64) if count > 64 else power_of_two(count)


def token_block(tile: dict[str, int], tokens: int) -> int:
    """The largest block of the tile that divides the padded tokens."""
    block = min(tile["tokens"], tokens)
    while tokens % block:
        block //= 2
    return block
