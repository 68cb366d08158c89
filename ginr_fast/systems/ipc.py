"""IPC: instance pattern composers, one modulated layer of an image's field."""

from __future__ import annotations

from dataclasses import dataclass

from ginr_fast.decoders.token_field import PatternFieldDecoder
from ginr_fast.systems.image_inr import ImageFieldConfig, ImageInr


@dataclass(frozen=True)
class IpcConfig(ImageFieldConfig):
    """The sizes of an IPC of images; the defaults are the published ones at 178×178.

    Args:
        bandwidth: σ, ratio of the highest frequency to the lowest, π; 64, and 128 for ImageNette.
        latents: R, the latent tokens of an image: the rank of the modulated layer.
        modulated_layer: which layer that is.
        normalize: whether rows of all weights have length 1.
    """

    bandwidth: float = 64.0
    latents: int = 256
    modulated_layer: int = 1
    normalize: bool = False


class Ipc(ImageInr):
    """Instance pattern composers for images (CVPR 2023, arXiv 2211.13223).

    Args:
        config: the sizes.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.ipc import Ipc, IpcConfig
        >>> model = Ipc(IpcConfig(image_size=16, patch_size=4, encoder_dim=32,
        ...     encoder_depth=1, encoder_heads=2, encoder_head_dim=16, encoder_mlp_dim=64,
        ...     hidden_dim=32, hidden_layers=1, frequencies=8, bandwidth=16.0, latents=9))
        >>> tokens = model.encode(torch.rand(2, 3, 16, 16))
        >>> tokens.shape
        torch.Size([2, 9, 32])
        >>> model.decode(ginr_fast.grid(5, 7), tokens).shape
        torch.Size([2, 5, 7, 3])
    """

    config: IpcConfig
    decoder: PatternFieldDecoder

    def __init__(self, config: IpcConfig | None = None) -> None:
        config = config or IpcConfig()
        decoder = PatternFieldDecoder(
            config.spec,
            config.token_dim or config.encoder_dim,
            config.latents,
            config.modulated_layer,
            config.normalize,
        )
        super().__init__(config, decoder, decoder.tokens, config.token_dim)
