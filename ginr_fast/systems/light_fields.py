"""View synthesis by light fields: LA-GINR and IPC from a ray's Plücker coordinates to its colour.

One evaluation a ray, where volume rendering takes one a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.decoders.token_field import PatternFieldDecoder
from ginr_fast.encoders.views import RayChannels
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.volume_render.random import Seed
from ginr_fast.rays import plucker
from ginr_fast.systems.initialization import initialise_decoder
from ginr_fast.systems.view_synthesis import ViewInr, ViewInrConfig

_PLUCKER = 6


class LightField(ViewInr):
    """Scenes as functions from rays to colours; the decoder's output is added to mid-grey.

    A ray's coordinates are its unit direction d and its moment o × d, with o in units of the
    config's ``camera_distance``: a ray from a camera at that distance has a moment of length
    sin(angle to the middle of the scene), so that all six lie in [-1, 1], where frequencies mean
    what they mean for images.
    """

    rays: ClassVar[RayChannels] = "plucker"

    def coords(self, origins: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """What the decoder is given of rays, ``(..., 3)`` twice to ``(..., 6)``."""
        return plucker(origins / self.config.camera_distance, directions)

    def color(
        self,
        origins: torch.Tensor,
        directions: torch.Tensor,
        tokens: torch.Tensor,
        seed: Seed | None = None,
    ) -> torch.Tensor:
        """What rays show, see :meth:`ViewInr.color`; nothing is drawn at random along them."""
        check_tensor("directions", directions, origins.shape)
        count = math.prod(origins.shape[1:-1])
        flat = [part.reshape(origins.shape[0], count, 3) for part in (origins, directions)]
        if len(origins) > 1 and all(part.stride(0) == 0 for part in flat):
            flat = [part[0] for part in flat]  # the same rays for all scenes
        values = self.decoder(self.coords(*flat), tokens) + 0.5
        return values.reshape(origins.shape)


@dataclass(frozen=True)
class LaGinrLightFieldConfig(ViewInrConfig):
    """The sizes of an LA-GINR of light fields; the defaults are the published ones.

    Args:
        latents: R, the number of latent tokens of a scene.
        token_dim: width of the latent tokens.
        hidden_dim: d, width of the decoder.
        feature_dim: F, width of the Fourier features; 2·6·n for n frequencies, so that the
            published 256 are 252.
        bandwidths: σ of each level, high to low.
        query_bandwidth: σ_q.
        heads: H, heads of the decoder's cross-attention.
        head_dim: width of such a head; hidden_dim / heads if None.
    """

    latents: int = 256
    token_dim: int = 256
    hidden_dim: int = 256
    feature_dim: int = 252
    bandwidths: tuple[float, ...] = (8.0, 4.0)
    query_bandwidth: float = 2.0
    heads: int = 2
    head_dim: int | None = None


class LaGinrLightField(LightField):
    """LA-GINR of light fields from a few views (arXiv:2310.05624, section 4.2, Appendix A.2).

    Args:
        config: the sizes.

    Example:
        >>> import torch
        >>> from ginr_fast.rays import camera_rays, orbit_poses
        >>> from ginr_fast.systems.light_fields import LaGinrLightField, LaGinrLightFieldConfig
        >>> model = LaGinrLightField(LaGinrLightFieldConfig(image_size=16, patch_size=4,
        ...     encoder_dim=32, encoder_depth=1, encoder_heads=2, encoder_head_dim=16,
        ...     encoder_mlp_dim=64, latents=8, token_dim=16, hidden_dim=32, feature_dim=36))
        >>> poses = orbit_poses(2, radius=4.0)
        >>> origins, directions = camera_rays(poses, 16, 16, focal=18.0)
        >>> tokens = model.encode(torch.rand(1, 2, 3, 16, 16), origins[None], directions[None])
        >>> model.render_view(tokens, poses, 24, 20, focal=18.0).shape
        torch.Size([1, 2, 3, 24, 20])
    """

    config: LaGinrLightFieldConfig
    decoder: LocalityAwareDecoder

    def __init__(self, config: LaGinrLightFieldConfig | None = None) -> None:
        config = config or LaGinrLightFieldConfig()
        decoder = LocalityAwareDecoder(
            coord_dim=_PLUCKER,
            out_dim=3,
            token_dim=config.token_dim,
            hidden_dim=config.hidden_dim,
            feature_dim=config.feature_dim,
            bandwidths=config.bandwidths,
            query_bandwidth=config.query_bandwidth,
            heads=config.heads,
            head_dim=config.head_dim,
        )
        initialise_decoder(decoder)
        super().__init__(config, decoder, config.latents, config.token_dim)


@dataclass(frozen=True)
class IpcLightFieldConfig(ViewInrConfig):
    """The sizes of an IPC of light fields, which LA-GINR's paper compares with.

    It publishes no sizes for it: these are IPC's for images, with the frequencies of LA-GINR's
    light fields.

    Args:
        hidden_dim: width of the field.
        hidden_layers: its layers between the first and the last.
        frequencies: of its encoding, a coordinate.
        bandwidth: σ, ratio of the highest frequency to the lowest, π.
        latents: R, the latent tokens of a scene: the rank of the modulated layer.
        modulated_layer: which layer that is.
        normalize: whether rows of all weights have length 1.
        token_dim: width of the latent tokens; None leaves them as the Transformer gives them.
    """

    hidden_dim: int = 256
    hidden_layers: int = 3
    frequencies: int = 21
    bandwidth: float = 8.0
    latents: int = 256
    modulated_layer: int = 1
    normalize: bool = False
    token_dim: int | None = None

    @property
    def spec(self) -> FieldSpec:
        """The field."""
        return FieldSpec(
            coord_dim=_PLUCKER,
            out_dim=3,
            hidden_dim=self.hidden_dim,
            hidden_layers=self.hidden_layers,
            encoding=FourierEncoding.log_spaced(self.frequencies, self.bandwidth),
        )


class IpcLightField(LightField):
    """IPC of light fields from a few views, see :class:`IpcLightFieldConfig`.

    Args:
        config: the sizes.

    Example:
        >>> import torch
        >>> from ginr_fast.rays import camera_rays, orbit_poses
        >>> from ginr_fast.systems.light_fields import IpcLightField, IpcLightFieldConfig
        >>> model = IpcLightField(IpcLightFieldConfig(image_size=16, patch_size=4, encoder_dim=32,
        ...     encoder_depth=1, encoder_heads=2, encoder_head_dim=16, encoder_mlp_dim=64,
        ...     hidden_dim=32, hidden_layers=1, frequencies=4, latents=9))
        >>> origins, directions = camera_rays(orbit_poses(1, radius=4.0), 16, 16, focal=18.0)
        >>> tokens = model.encode(torch.rand(1, 1, 3, 16, 16), origins[None], directions[None])
        >>> model.color(origins, directions, tokens).shape
        torch.Size([1, 16, 16, 3])
    """

    config: IpcLightFieldConfig
    decoder: PatternFieldDecoder

    def __init__(self, config: IpcLightFieldConfig | None = None) -> None:
        config = config or IpcLightFieldConfig()
        decoder = PatternFieldDecoder(
            config.spec,
            config.token_dim or config.encoder_dim,
            config.latents,
            config.modulated_layer,
            config.normalize,
        )
        super().__init__(config, decoder, decoder.tokens, config.token_dim)
