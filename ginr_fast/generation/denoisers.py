"""Networks that predict clean latents from noisy ones: a residual MLP and a Transformer of tokens.

Both are called with standardised latents and the timestep t = 0 … T − 1 of their noise, and give
x̂₀, the clean latents (x₀-prediction). Their last layer starts at zero: before training, x̂₀ is the
mean of all latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ginr_fast.encoders.lattice import lattice_embedding
from ginr_fast.encoders.noise_level import AdaptiveBlock
from ginr_fast.generation.averaging import AveragedModel
from ginr_fast.ops.checks import check_count, check_tensor

_LONGEST = 10000.0


@dataclass(frozen=True)
class ResidualMlpConfig:
    """The sizes of a :class:`ResidualMlpDenoiser`; the defaults are mNIF's (Appendix A.3).

    Args:
        width: of the hidden layers.
        blocks: residual blocks.
        time_dim: width of the embedding of the timestep.

    Raises:
        ValueError: a size below 1.
    """

    width: int = 4096
    blocks: int = 4
    time_dim: int = 256

    def __post_init__(self) -> None:
        _check_sizes(self, ("width", "blocks", "time_dim"))

    def build(self, shape: tuple[int, ...], classes: int = 0) -> ResidualMlpDenoiser:
        """The network for latents of a shape.

        Raises:
            ValueError: latents that are no vectors.
        """
        if len(shape) != 1:
            raise ValueError(f"latents: expected vectors (N, H), got instances of shape {shape}")
        return ResidualMlpDenoiser(shape[0], self.width, self.blocks, self.time_dim, classes)


@dataclass(frozen=True)
class TokenDenoiserConfig:
    """The sizes of a :class:`TokenDenoiser`; the defaults are LA-GINR's (Appendix A.3).

    Args:
        width: of the Transformer.
        blocks: of self-attention.
        heads: of each block; they divide the width.
        mlp_ratio: hidden width of the feed-forward parts, in widths.
        positions: a learned vector for each token. LA-GINR's tokens carry where they are and need
            none to be decoded, but standardising takes from each token the mean that tells it from
            the others.

    Raises:
        ValueError: a size below 1, or heads that do not divide the width.
    """

    width: int = 1024
    blocks: int = 24
    heads: int = 16
    mlp_ratio: int = 4
    positions: bool = True

    def __post_init__(self) -> None:
        _check_sizes(self, ("width", "blocks", "heads", "mlp_ratio"))
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width {self.width}, got {self.heads}")

    def build(self, shape: tuple[int, ...], classes: int = 0) -> TokenDenoiser:
        """The network for latents of a shape.

        Raises:
            ValueError: latents that are no tokens.
        """
        if len(shape) != 2:
            raise ValueError(f"latents: expected tokens (N, R, D), got instances of shape {shape}")
        return TokenDenoiser(shape[0], shape[1], self, classes)


def timestep_embedding(times: torch.Tensor, dim: int) -> torch.Tensor:
    """Sines and cosines of timesteps, with wavelengths from 2π to 10⁴·2π (arXiv:1706.03762).

    Args:
        times: ``(B,)``.
        dim: width; even.

    Returns:
        ``(B, dim)``, float32.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=times.device)
    phases = times.float()[:, None] * torch.exp(steps * (-math.log(_LONGEST) / half))
    return torch.cat([phases.cos(), phases.sin()], -1)


class Conditioning(nn.Module):
    """One vector of a timestep and, where there are classes, a class.

    Args:
        width: of the vector.
        time_dim: of the timestep's sines and cosines; even.
        classes: how many; one more stands for none of them, the *null class*.

    Raises:
        ValueError: a number of classes below 0.
    """

    def __init__(self, width: int, time_dim: int, classes: int) -> None:
        super().__init__()
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
            raise ValueError(f"classes: expected a non-negative integer, got {classes!r}")
        self.time_dim, self.classes = time_dim, classes
        self.time = nn.Sequential(nn.Linear(time_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)

    def forward(self, times: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """``(B,), (B,) -> (B, width)``; without labels, or where one is ``classes``: no class.

        The range of labels is for who makes them to see to: looking at each would make a sampler
        wait for its GPU in every step.
        """
        if labels is not None:
            if self.label is None:
                raise ValueError("labels: this model has no classes")
            check_tensor("labels", labels, tuple(times.shape), dtypes=[torch.int64])
        first = self.time[0]
        assert isinstance(first, nn.Linear)
        vector = self.time(timestep_embedding(times, self.time_dim).to(first.weight.dtype))
        if self.label is None:
            return vector
        if labels is None:
            labels = times.new_full(times.shape, self.classes, dtype=torch.int64)
        return vector + self.label(labels)


class _MlpBlock(nn.Module):
    """h + W₂ SiLU(s(t) ∘ LN(W₁ [h, x]) + b(t)), where x is the network's input."""

    def __init__(self, dim: int, width: int, time_dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(width + dim, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(time_dim, 2 * width)
        self.second = nn.Linear(width, width)

    def forward(self, h: torch.Tensor, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(condition).chunk(2, -1)
        inner = self.norm(self.first(torch.cat([h, x], -1))) * (1 + scale) + shift
        return h + self.second(F.silu(inner))


class ResidualMlpDenoiser(AveragedModel):
    """mNIF's denoiser of latent vectors: a residual MLP (NeurIPS 2023, Appendix A.3).

    As in the MLP of diffusion autoencoders (arXiv:2111.15640) every block reads the noisy latent
    again beside the stream, and the timestep scales and shifts what each block normalises.

    Args:
        dim: H, width of a latent.
        width: of the hidden layers.
        blocks: residual blocks.
        time_dim: width of the embedding of the timestep; even.
        classes: of labelled latents; 0 for an unconditional model, as published.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.denoisers import ResidualMlpDenoiser
        >>> denoiser = ResidualMlpDenoiser(dim=8, width=32, blocks=2, time_dim=16)
        >>> denoiser(torch.randn(5, 8), torch.tensor([0, 1, 10, 100, 999])).shape
        torch.Size([5, 8])
    """

    def __init__(
        self, dim: int, width: int = 4096, blocks: int = 4, time_dim: int = 256, classes: int = 0
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "width": width, "blocks": blocks, "time_dim": time_dim}
        for name, size in sizes.items():
            check_count(name, size)
        self.shape: tuple[int, ...] = (dim,)
        self.classes = classes
        self.condition = Conditioning(time_dim, time_dim + time_dim % 2, classes)
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_MlpBlock(dim, width, time_dim) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Clean latents.

        Args:
            noisy: ``(B, H)``.
            times: ``(B,)``, timesteps.
            labels: ``(B,)``, int64, classes from 0; ``classes`` or no tensor for none.

        Returns:
            ``(B, H)``.

        Raises:
            TypeError, ValueError: another dtype or shape, or labels for a model without classes.
        """
        check_tensor("noisy", noisy, ("B", *self.shape))
        check_tensor("times", times, noisy.shape[:1])
        condition = F.silu(self.condition(times, labels))
        h = self.first(noisy)
        for block in self.blocks:
            h = block(h, noisy, condition)
        return self.last(F.silu(self.norm(h)))


class TokenDenoiser(AveragedModel):
    """LA-GINR's denoiser of latent tokens: a Transformer (arXiv:2310.05624, Appendix A.3).

    The published 458M weights in 24 blocks of width 1024 are those of a DiT-L, whose blocks the
    timestep and the class modulate.

    Args:
        tokens: R, tokens of an instance.
        token_dim: D, width of a token.
        config: the sizes.
        classes: of labelled latents; 0 for an unconditional model.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.denoisers import TokenDenoiser, TokenDenoiserConfig
        >>> config = TokenDenoiserConfig(width=32, blocks=1, heads=2)
        >>> denoiser = TokenDenoiser(tokens=9, token_dim=6, config=config, classes=10)
        >>> denoiser(torch.randn(2, 9, 6), torch.tensor([3, 999]), torch.tensor([0, 7])).shape
        torch.Size([2, 9, 6])
    """

    def __init__(
        self,
        tokens: int,
        token_dim: int,
        config: TokenDenoiserConfig | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        check_count("tokens", tokens)
        check_count("token_dim", token_dim)
        config = config or TokenDenoiserConfig()
        width = config.width
        self.shape: tuple[int, ...] = (tokens, token_dim)
        self.classes = classes
        self.condition = Conditioning(width, 256, classes)
        self.first = nn.Linear(token_dim, width)
        self.positions = nn.Parameter(torch.zeros(tokens, width)) if config.positions else None
        if self.positions is not None:
            side = math.sqrt(tokens)
            self.positions.data.copy_(lattice_embedding(tokens, width, side))
        self.blocks = nn.ModuleList(
            AdaptiveBlock(width, config.heads, width // config.heads, config.mlp_ratio * width)
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, token_dim)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Clean tokens.

        Args:
            noisy: ``(B, R, D)``.
            times: ``(B,)``, timesteps.
            labels: ``(B,)``, int64, classes from 0; ``classes`` or no tensor for none.

        Returns:
            ``(B, R, D)``.

        Raises:
            TypeError, ValueError: another dtype or shape, or labels for a model without classes.
        """
        check_tensor("noisy", noisy, ("B", *self.shape))
        check_tensor("times", times, noisy.shape[:1])
        condition = self.condition(times, labels)
        tokens = self.first(noisy)
        if self.positions is not None:
            tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, -1)
        return self.last(self.norm(tokens) * (1 + scale) + shift)


def _check_sizes(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        check_count(name, getattr(config, name))
