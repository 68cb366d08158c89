"""LA-GINR: a Transformer that encodes an image into tokens, and a locality-aware decoder."""

from __future__ import annotations

from dataclasses import dataclass

from ginr_fast.decoders.locality_ablation import (
    Aggregation,
    LocalityAblationDecoder,
    Modulation,
)
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.systems.image_inr import ImageConfig, ImageInr
from ginr_fast.systems.initialization import initialise_decoder


@dataclass(frozen=True)
class LaGinrConfig(ImageConfig):
    """The sizes of an LA-GINR model; the defaults are those of 178×178 images.

    Args:
        latents: R, the number of latent tokens of an image.
        token_dim: width of the latent tokens.
        hidden_dim: d, width of the decoder.
        feature_dim: F, width of the Fourier features.
        bandwidths: σ of each level, high to low.
        query_bandwidth: σ_q.
        heads: H, heads of the decoder's cross-attention.
        head_dim: width of such a head; hidden_dim / heads if None.
        aggregation: how tokens become a modulation vector: attention, LA-GINR's selective token
            aggregation, or patterns, IPC's modulated layer in its place.
        modulation: how that becomes values: multi_band, LA-GINR's feature modulation, or a plain
            stack of as many layers as there are bandwidths, all of whose frequencies are those of
            query_bandwidth. Patterns and stack together are IPC.
    """

    latents: int = 256
    token_dim: int = 256
    hidden_dim: int = 256
    feature_dim: int = 256
    bandwidths: tuple[float, ...] = (128.0, 32.0)
    query_bandwidth: float = 16.0
    heads: int = 2
    head_dim: int | None = None
    aggregation: Aggregation = "attention"
    modulation: Modulation = "multi_band"

    def decoder(self, coord_dim: int = 2) -> LocalityAwareDecoder | LocalityAblationDecoder:
        """The decoder, with its starting values."""
        if (self.aggregation, self.modulation) != ("attention", "multi_band"):
            return LocalityAblationDecoder(
                coord_dim=coord_dim,
                out_dim=self.channels,
                token_dim=self.token_dim,
                tokens=self.latents,
                hidden_dim=self.hidden_dim,
                feature_dim=self.feature_dim,
                bandwidths=self.bandwidths,
                query_bandwidth=self.query_bandwidth,
                heads=self.heads,
                head_dim=self.head_dim,
                aggregation=self.aggregation,
                modulation=self.modulation,
            )
        decoder = LocalityAwareDecoder(
            coord_dim=coord_dim,
            out_dim=self.channels,
            token_dim=self.token_dim,
            hidden_dim=self.hidden_dim,
            feature_dim=self.feature_dim,
            bandwidths=self.bandwidths,
            query_bandwidth=self.query_bandwidth,
            heads=self.heads,
            head_dim=self.head_dim,
        )
        initialise_decoder(decoder)
        return decoder


class LaGinr(ImageInr):
    """Locality-aware generalizable INR of images (arXiv:2310.05624, Figure 2).

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

    config: LaGinrConfig
    decoder: LocalityAwareDecoder | LocalityAblationDecoder

    def __init__(self, config: LaGinrConfig | None = None) -> None:
        config = config or LaGinrConfig()
        super().__init__(config, config.decoder(), config.latents, config.token_dim)
