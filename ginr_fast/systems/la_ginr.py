"""LA-GINR: a Transformer that encodes an image into tokens, and a locality-aware decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.encoders import LatentEncoder, PatchTokenizer
from ginr_fast.encoders.tokenizer import Padding
from ginr_fast.ops.checks import check_tensor
from ginr_fast.systems.initialization import initialise_for_locality

# Values decoded in one go by `reconstruct`: bounds its float memory, whatever the output's size.
_POINTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class LaGinrConfig:
    """The sizes of an LA-GINR model; the defaults are those of 178×178 images.

    Args:
        image_size: height and width of the images encoded, in pixels.
        channels: colour channels.
        patch_size: height and width of a patch, in pixels.
        padding: how an image is padded to whole patches.
        encoder_dim: width of the encoder's Transformer.
        encoder_depth: its number of blocks.
        encoder_heads: its attention heads a block.
        encoder_head_dim: width of such a head.
        encoder_mlp_dim: hidden width of its feed-forward parts.
        latents: R, the number of latent tokens of an image.
        token_dim: width of the latent tokens.
        hidden_dim: d, width of the decoder.
        feature_dim: F, width of the Fourier features.
        bandwidths: σ of each level, high to low.
        query_bandwidth: σ_q.
        heads: H, heads of the decoder's cross-attention.
        head_dim: width of such a head; hidden_dim / heads if None.
    """

    image_size: int = 178
    channels: int = 3
    patch_size: int = 9
    padding: Padding = "zeros"
    encoder_dim: int = 768
    encoder_depth: int = 6
    encoder_heads: int = 12
    encoder_head_dim: int = 64
    encoder_mlp_dim: int = 3072
    latents: int = 256
    token_dim: int = 256
    hidden_dim: int = 256
    feature_dim: int = 256
    bandwidths: tuple[float, ...] = (128.0, 32.0)
    query_bandwidth: float = 16.0
    heads: int = 2
    head_dim: int | None = None


class LaGinr(nn.Module):
    """Locality-aware generalizable INR of images (arXiv:2310.05624, Figure 2).

    ``encode`` runs once an image, ``decode`` once a coordinate; coordinates are (row, column) in
    [-1, 1]², pixel centres as :func:`ginr_fast.grid` lays them. Images have values in [0, 1]: they
    are centred before the encoder, and the decoder's output is added to mid-grey (0.5). Decoded
    values are not clamped, so that the loss has a gradient everywhere; ``reconstruct`` clamps.

    Args:
        config: the sizes.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.la_ginr import LaGinr, LaGinrConfig
        >>> model = LaGinr(LaGinrConfig(image_size=16, patch_size=4, encoder_dim=32,
        ...     encoder_depth=1, encoder_heads=2, encoder_head_dim=16, encoder_mlp_dim=64,
        ...     latents=8, token_dim=16, hidden_dim=32, feature_dim=32, bandwidths=(16.0, 4.0)))
        >>> tokens = model.encode(torch.rand(2, 3, 16, 16))
        >>> tokens.shape
        torch.Size([2, 8, 16])
        >>> model.decode(ginr_fast.grid(5, 7), tokens).shape
        torch.Size([2, 5, 7, 3])
    """

    def __init__(self, config: LaGinrConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LaGinrConfig()
        self.tokenizer = PatchTokenizer(
            config.image_size,
            config.patch_size,
            config.channels,
            config.encoder_dim,
            config.padding,
        )
        self.encoder = LatentEncoder(
            dim=config.encoder_dim,
            depth=config.encoder_depth,
            heads=config.encoder_heads,
            head_dim=config.encoder_head_dim,
            mlp_dim=config.encoder_mlp_dim,
            latents=config.latents,
            token_dim=config.token_dim,
        )
        self.decoder = LocalityAwareDecoder(
            coord_dim=2,
            out_dim=config.channels,
            token_dim=config.token_dim,
            hidden_dim=config.hidden_dim,
            feature_dim=config.feature_dim,
            bandwidths=config.bandwidths,
            query_bandwidth=config.query_bandwidth,
            heads=config.heads,
            head_dim=config.head_dim,
        )
        initialise_for_locality(self.tokenizer, self.encoder, self.decoder)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latent tokens of images.

        Args:
            images: ``(B, channels, image_size, image_size)``, values in [0, 1].

        Returns:
            ``(B, latents, token_dim)``.

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape.
        """
        size = self.config.image_size
        check_tensor("images", images, ("B", self.config.channels, size, size))
        if not images.is_floating_point():
            raise TypeError(f"images: expected floating point in [0, 1], got {images.dtype}")
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

    @torch.no_grad()
    def render(self, tokens: torch.Tensor, where: CoordinateGrid) -> torch.Tensor:
        """Decode a grid into images, rows in blocks.

        Args:
            tokens: ``(B, latents, token_dim)``.
            where: a grid of ``(H, W)`` points.

        Returns:
            ``(B, channels, H, W)``, clamped to [0, 1].
        """
        rows, columns = where.axes
        batch, width = tokens.shape[0], columns.shape[0]
        output = tokens.new_empty(batch, self.config.channels, rows.shape[0], width)
        block = max(1, _POINTS_AT_ONCE // max(1, batch * width))
        for first in range(0, rows.shape[0], block):
            part = rows[first : first + block]
            values = self.decode(CoordinateGrid((part, columns)), tokens)
            output[:, :, first : first + block] = values.permute(0, 3, 1, 2).clamp(0, 1)
        return output


def output_size(size: int, scale: float) -> int:
    """``round(size · scale)``, checked.

    Raises:
        ValueError: ``scale`` is no positive number, or leaves no pixel of ``size``.
    """
    if not isinstance(scale, (int, float)) or not 0 < scale < float("inf"):
        raise ValueError(f"scale: expected a positive number, got {scale!r}")
    if round(size * scale) < 1:
        raise ValueError(f"scale: {scale} leaves no pixel of {size}")
    return round(size * scale)
