"""IPC of audio: clips encoded into latent tokens, decoded at any moment."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.decoders.token_field import PatternFieldDecoder
from ginr_fast.encoders import LatentEncoder
from ginr_fast.encoders.audio import AudioTokenizer
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops.checks import check_tensor
from ginr_fast.systems.image_inr import EncoderConfig
from ginr_fast.systems.image_rendering import output_size
from ginr_fast.systems.initialization import attend_to_likes

_AMPLITUDE = 0.7  # of positions: well above what is in the patches, or attention loses its way
_LIKENESS = 4.0  # how strongly tokens prefer tokens like themselves


@dataclass(frozen=True)
class AudioIpcConfig(EncoderConfig):
    """The sizes of an IPC of audio; the defaults are the published ones for 1 s at 16 kHz.

    Args:
        length: samples of a clip.
        patch_size: samples of a patch.
        hidden_dim: width of the field.
        hidden_layers: its layers between the first and the last.
        frequencies: of its encoding.
        cycles: of the lowest frequency in a clip; the published 1 Hz is 3 for 3 s.
        bandwidth: σ, ratio of the highest frequency to the lowest.
        latents: R, the latent tokens of a clip: the rank of the modulated layer.
        modulated_layer: which layer that is.
        normalize: whether rows of all weights have length 1.
        token_dim: width of the latent tokens; None leaves them as the Transformer gives them.
    """

    length: int = 16000
    patch_size: int = 200
    hidden_dim: int = 256
    hidden_layers: int = 3
    frequencies: int = 2048
    cycles: float = 1.0
    bandwidth: float = 1024.0
    latents: int = 256
    modulated_layer: int = 1
    normalize: bool = False
    token_dim: int | None = None

    @property
    def spec(self) -> FieldSpec:
        """The field; a cycle over [-1, 1] is π radians a unit."""
        encoding = FourierEncoding.log_spaced(
            self.frequencies, self.bandwidth, scale=self.cycles * math.pi
        )
        return FieldSpec(
            coord_dim=1,
            out_dim=1,
            hidden_dim=self.hidden_dim,
            hidden_layers=self.hidden_layers,
            encoding=encoding,
        )


class AudioIpc(nn.Module):
    """Instance pattern composers for audio (CVPR 2023, arXiv 2211.13223, section 4.1).

    ``encode`` runs once a clip, ``decode`` once a coordinate. The coordinate is time: a clip of N
    samples is [-1, 1], and sample i its centre ``(2i + 1)/N - 1``, as :func:`ginr_fast.grid` lays
    them. (The published code takes [-3, 3] for three seconds; ``cycles`` does the same.) Decoded
    values are not clamped, so that the loss has a gradient everywhere; ``reconstruct`` clamps.

    Args:
        config: the sizes.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.audio_inr import AudioIpc, AudioIpcConfig
        >>> model = AudioIpc(AudioIpcConfig(length=100, patch_size=10, encoder_dim=32,
        ...     encoder_depth=1, encoder_heads=2, encoder_head_dim=16, encoder_mlp_dim=64,
        ...     hidden_dim=32, hidden_layers=1, frequencies=8, bandwidth=16.0, latents=9))
        >>> tokens = model.encode(torch.zeros(2, 100))
        >>> tokens.shape
        torch.Size([2, 9, 32])
        >>> model.decode(ginr_fast.grid(150), tokens).shape
        torch.Size([2, 150, 1])
    """

    def __init__(self, config: AudioIpcConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AudioIpcConfig()
        self.tokenizer = AudioTokenizer(config.length, config.patch_size, config.encoder_dim)
        self.encoder = config.encoder(config.latents, config.token_dim)
        self.decoder = PatternFieldDecoder(
            config.spec,
            config.token_dim or config.encoder_dim,
            config.latents,
            config.modulated_layer,
            config.normalize,
        )
        _initialise(self.tokenizer, self.encoder)

    def encode(self, waves: torch.Tensor) -> torch.Tensor:
        """Latent tokens of clips.

        Args:
            waves: ``(B, length)``, values in [-1, 1].

        Returns:
            ``(B, latents, token_dim)``.

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape.
        """
        check_tensor("waves", waves, ("B", self.config.length))
        if not waves.is_floating_point():
            raise TypeError(f"waves: expected floating point in [-1, 1], got {waves.dtype}")
        return self.encoder(self.tokenizer(waves))

    def decode(self, coords: torch.Tensor | CoordinateGrid, tokens: torch.Tensor) -> torch.Tensor:
        """Values at coordinates.

        Args:
            coords: ``(B, ..., 1)``, ``(..., 1)`` shared by the batch, or a grid.
            tokens: ``(B, latents, token_dim)``.

        Returns:
            ``(B, ..., 1)``, about [-1, 1], not clamped.
        """
        return self.decoder(coords, tokens)

    def forward(self, waves: torch.Tensor, coords: torch.Tensor | CoordinateGrid) -> torch.Tensor:
        """``decode(coords, encode(waves))``: what a training step calls."""
        return self.decode(coords, self.encode(waves))

    @torch.no_grad()
    def reconstruct(self, waves: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Encode clips and decode them at ``scale`` times their sampling rate.

        Args:
            waves: ``(B, length)``, values in [-1, 1].
            scale: output samples per input sample; any positive number.

        Returns:
            ``(B, round(length · scale))``, clamped to [-1, 1].

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape, or a scale that leaves
                no sample.
        """
        where = grid(output_size(self.config.length, scale), device=waves.device)
        return self.decode(where, self.encode(waves)).squeeze(-1).clamp(-1, 1)


@torch.no_grad()
def _initialise(tokenizer: AudioTokenizer, encoder: LatentEncoder) -> None:
    """Starting values under which tokens attend to those near them in time, in place.

    What :func:`ginr_fast.systems.initialization.initialise_encoder` does for images, on a line.
    """
    for table in (tokenizer.position, encoder.latents):
        count, dim = table.shape
        table.copy_(_AMPLITUDE * _line_embedding(count, dim, tokenizer.count))
    encoder.latents.add_(0.02 * torch.randn_like(encoder.latents))
    attend_to_likes(encoder, _LIKENESS)


def _line_embedding(count: int, dim: int, places: int) -> torch.Tensor:
    """Sines and cosines of ``count`` places along [-1, 1], ``(count, dim)`` float32.

    Args:
        count: evenly spaced places.
        dim: width of the embedding.
        places: how many the highest frequency tells apart.
    """
    highest = math.log2(max(places / 2, 1))
    frequencies = math.pi / 2 * torch.logspace(0, highest, -(-dim // 2), base=2)
    phases = grid(count).tensor() * frequencies
    return torch.cat([phases.sin(), phases.cos()], -1)[:, :dim]
