"""Images as fields made from latent tokens: what LA-GINR, TransINR and IPC have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.encoders import LatentEncoder, PatchTokenizer
from ginr_fast.encoders.tokenizer import Padding
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.systems.image_rendering import check_images, output_size, render_image
from ginr_fast.systems.initialization import initialise_encoder


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of a Transformer that turns data tokens into latent tokens.

    Args:
        encoder_dim: its width.
        encoder_depth: its number of blocks.
        encoder_heads: attention heads a block.
        encoder_head_dim: width of such a head.
        encoder_mlp_dim: hidden width of its feed-forward parts.
        encoder_qkv_bias: whether its queries, keys and values have a bias (IPC's code has).
    """

    encoder_dim: int = 768
    encoder_depth: int = 6
    encoder_heads: int = 12
    encoder_head_dim: int = 64
    encoder_mlp_dim: int = 3072
    encoder_qkv_bias: bool = False

    def encoder(self, latents: int, token_dim: int | None) -> LatentEncoder:
        """The Transformer, with R = ``latents`` latent tokens."""
        return LatentEncoder(
            dim=self.encoder_dim,
            depth=self.encoder_depth,
            heads=self.encoder_heads,
            head_dim=self.encoder_head_dim,
            mlp_dim=self.encoder_mlp_dim,
            latents=latents,
            token_dim=token_dim,
            qkv_bias=self.encoder_qkv_bias,
        )


@dataclass(frozen=True)
class ImageConfig(EncoderConfig):
    """The sizes of an encoder of images; the defaults are those of 178×178 images.

    Args:
        image_size: height and width of the images encoded, in pixels.
        channels: colour channels.
        patch_size: height and width of a patch, in pixels.
        padding: how an image is padded to whole patches.
    """

    image_size: int = 178
    channels: int = 3
    patch_size: int = 9
    padding: Padding = "zeros"

    def tokenizer(self) -> PatchTokenizer:
        """What cuts images into data tokens."""
        return PatchTokenizer(
            self.image_size, self.patch_size, self.channels, self.encoder_dim, self.padding
        )


@dataclass(frozen=True)
class ImageFieldConfig(ImageConfig):
    """The sizes of an image's field whose weights are made from tokens, with its encoder's.

    Args:
        hidden_dim: width of the field.
        hidden_layers: its layers between the first and the last.
        frequencies: of its encoding, a coordinate.
        bandwidth: σ, ratio of the highest frequency to the lowest, π.
        token_dim: width of the latent tokens; None leaves them as the Transformer gives them.
    """

    hidden_dim: int = 256
    hidden_layers: int = 3
    frequencies: int = 64
    bandwidth: float = 1024.0
    token_dim: int | None = None

    @property
    def spec(self) -> FieldSpec:
        """The field."""
        return FieldSpec(
            coord_dim=2,
            out_dim=self.channels,
            hidden_dim=self.hidden_dim,
            hidden_layers=self.hidden_layers,
            encoding=FourierEncoding.log_spaced(self.frequencies, self.bandwidth),
        )


class ImageInr(nn.Module):
    """Images encoded into latent tokens and decoded at any coordinates.

    ``encode`` runs once an image, ``decode`` once a coordinate; coordinates are (row, column) in
    [-1, 1]², pixel centres as :func:`ginr_fast.grid` lays them. Images have values in [0, 1]: they
    are centred before the encoder, and the decoder's output is added to mid-grey (0.5). Decoded
    values are not clamped, so that the loss has a gradient everywhere; ``reconstruct`` clamps.

    Args:
        config: the sizes.
        decoder: called with coordinates and tokens.
        latents: R, the tokens it decodes.
        token_dim: width of a token; None for the encoder's own.
    """

    def __init__(
        self, config: ImageConfig, decoder: nn.Module, latents: int, token_dim: int | None
    ) -> None:
        super().__init__()
        self.config: Any = config  # a subclass knows its own
        self.tokenizer = config.tokenizer()
        self.encoder = config.encoder(latents, token_dim)
        self.decoder = decoder
        initialise_encoder(self.tokenizer, self.encoder)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latent tokens of images.

        Args:
            images: ``(B, channels, image_size, image_size)``, values in [0, 1].

        Returns:
            ``(B, latents, token_dim)``.

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape.
        """
        check_images(images, self.config.channels, self.config.image_size)
        return self.encoder(self.tokenizer(images * 2 - 1))

    def decode(self, coords: torch.Tensor | CoordinateGrid, tokens: torch.Tensor) -> torch.Tensor:
        """Values at coordinates.

        Args:
            coords: ``(B, ..., 2)``, ``(..., 2)`` shared by the batch, or a grid.
            tokens: ``(B, latents, token_dim)``.

        Returns:
            ``(B, ..., channels)``, about [0, 1], not clamped.
        """
        return self.decoder(coords, tokens) + 0.5

    def forward(self, images: torch.Tensor, coords: torch.Tensor | CoordinateGrid) -> torch.Tensor:
        """``decode(coords, encode(images))``: what a training step calls."""
        return self.decode(coords, self.encode(images))

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Encode images and decode them at ``scale`` times their resolution.

        Args:
            images: ``(B, channels, image_size, image_size)``, values in [0, 1].
            scale: output pixels per input pixel along each axis; any positive number.

        Returns:
            ``(B, channels, size, size)``, clamped to [0, 1], ``size = round(image_size · scale)``.

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape, or a scale that leaves
                no pixel.

        For images of any size see :func:`ginr_fast.systems.tiling.reconstruct_photograph`.
        """
        size = output_size(self.config.image_size, scale)
        return self.render(self.encode(images), grid(size, size, device=images.device))

    def render(self, tokens: torch.Tensor, where: CoordinateGrid) -> torch.Tensor:
        """Decode a grid into images, rows in blocks.

        Args:
            tokens: ``(B, latents, token_dim)``.
            where: a grid of ``(H, W)`` points.

        Returns:
            ``(B, channels, H, W)``, clamped to [0, 1].
        """
        return render_image(self.decode, tokens, where, self.config.channels)
