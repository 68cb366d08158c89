"""Systems as checkpoints of IPC's code (github.com/kakaobrain/ginr-ipc), with its configuration."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ginr_fast.adapters.ginr_ipc_checkpoints import FREQUENCIES, LOW_RANK, ginr_ipc_names
from ginr_fast.adapters.token_checkpoints import TokenModel, published_state
from ginr_fast.adapters.trans_inr_checkpoints import check_distance, image_padding
from ginr_fast.decoders.token_field import GroupedFieldDecoder, PatternFieldDecoder
from ginr_fast.fields import FourierEncoding
from ginr_fast.systems.audio_inr import AudioIpcConfig
from ginr_fast.systems.image_inr import EncoderConfig, ImageFieldConfig
from ginr_fast.systems.radiance_views import RadianceConfig

_OUT_BIAS = 0.5


class Exported(NamedTuple):
    """What IPC's code loads."""

    state: dict[str, Tensor]
    """The model's state dict."""
    config: dict[str, Any]
    """``arch`` of the configuration, and what of ``dataset`` belongs to it."""


def to_ginr_ipc(model: TokenModel, views: int | None = None) -> Exported:
    """A system as a checkpoint of IPC's code, which that loads strictly.

    Args:
        model: the system; groups of neighbours are reordered into what that code has.
        views: (radiance fields) support views that code shall take, whose positions are repeated;
            one if None, or as many as the system has positions for.

    Raises:
        ValueError: it has something that code has not, by name.
    """
    config = model.config
    _check_encoder(config)
    support = _support(config, views)
    positions = not (isinstance(config, RadianceConfig) and config.position_views == 0)
    names = ginr_ipc_names(model, positions)
    out_bias = _OUT_BIAS if isinstance(config, ImageFieldConfig) else 0.0
    repeats = 1
    if isinstance(config, RadianceConfig) and positions:
        repeats = support // config.position_views
    state = published_state(model, names, out_bias, repeats)
    spaced = FourierEncoding.log_spaced(config.frequencies, config.bandwidth, 1.0).frequencies
    state[FREQUENCIES] = torch.tensor(spaced)
    if not config.encoder_qkv_bias:  # there, all maps of the attention have a bias or none
        for index in range(config.encoder_depth):
            for name, _ in names.qkv:
                bias = torch.zeros(config.encoder_dim)
                state[f"{names.blocks}.{index}.{name}.bias"] = bias
    arch = {
        **_modulation(model),
        **_data(config, support),
        "transformer": {
            "n_layer": config.encoder_depth,
            "embed_dim": config.encoder_dim,
            "block": {"n_head": config.encoder_heads},
        },
        "hyponet": _hyponet(model, out_bias),
    }
    arch["latent_mapping"] |= {"latent_dim": config.encoder_dim, "use_pe": positions}
    about: dict[str, Any] = {"arch": arch}
    if isinstance(config, RadianceConfig):
        about["dataset"] = {"train_config": {"n_support": support}}
    return Exported(state, about)


def _check_encoder(config: EncoderConfig) -> None:
    token_dim = getattr(config, "token_dim", None)
    if token_dim is not None:
        raise ValueError(f"token_dim: ginr-ipc has only the encoder's own, got {token_dim}")
    dim, inner = config.encoder_dim, config.encoder_heads * config.encoder_head_dim
    if inner != dim:
        raise ValueError(
            f"encoder_heads, encoder_head_dim: ginr-ipc has heads that make up encoder_dim {dim}, "
            f"got {inner}"
        )
    if config.encoder_mlp_dim != 4 * dim:
        raise ValueError(
            f"encoder_mlp_dim: ginr-ipc has four times encoder_dim {dim}, "
            f"got {config.encoder_mlp_dim}"
        )


def _support(config: EncoderConfig, views: int | None) -> int:
    """Support views; 1 for what has none."""
    if not isinstance(config, RadianceConfig):
        if views is not None:
            raise ValueError("views: only radiance fields have support views")
        return 1
    given = views or max(1, config.position_views)
    if config.position_views > 1 and given != config.position_views:
        raise ValueError(f"views: there are positions for {config.position_views}, got {given}")
    return given


def _data(config: EncoderConfig, support: int) -> dict[str, Any]:
    """Its parts about data: coordinates, patches and their number."""
    sampler: dict[str, Any] = {"data_type": "image", "coord_range": [-1.0, 1.0]}
    encoder: dict[str, Any] = {"type": "unfold", "trainable": False}
    if isinstance(config, AudioIpcConfig):
        if config.length % config.patch_size:
            raise ValueError(
                f"length: ginr-ipc reflects clips of {config.length} samples to whole patches of "
                f"{config.patch_size}, which has no counterpart"
            )
        patches = config.length // config.patch_size
        sampler = {"data_type": "audio", "coord_range": [-config.cycles, config.cycles]}
        encoder |= {"type": "unfold_audio", "n_channel": 1}
        encoder["encoder_spec"] = {"patch_size": config.patch_size}
    elif isinstance(config, RadianceConfig):
        check_distance(config.camera_distance)
        patches = support * (config.image_size // config.patch_size) ** 2
        sampler |= {"data_type": "nvs", "num_points_per_ray": config.samples}
        encoder["n_channel"] = 9
        encoder["encoder_spec"] = {"patch_size": config.patch_size, "padding": 0}
    else:
        assert isinstance(config, ImageFieldConfig)
        padding = image_padding(config.image_size, config.patch_size, config.padding)
        patches = ((config.image_size + 2 * padding) // config.patch_size) ** 2
        encoder["n_channel"] = config.channels
        encoder["encoder_spec"] = {"patch_size": config.patch_size, "padding": padding}
    sampler |= {"train_strategy": None, "val_strategy": None}
    mapping = {"type": "linear", "n_patches": patches, "hidden_dim": [config.encoder_dim]}
    return {"coord_sampler": sampler, "data_encoder": encoder, "latent_mapping": mapping}


def _modulation(model: TokenModel) -> dict[str, Any]:
    """Which system it is, and the tokens of its layers."""
    nerf = "_nerf" if isinstance(model.config, RadianceConfig) else ""
    decoder = model.decoder
    if isinstance(decoder, GroupedFieldDecoder):
        groups = list(decoder.groups)
        return {"type": f"transinr{nerf}", "n_weight_groups": groups, "modulated_layer_idxs": None}
    rows, _ = decoder.spec.layer_shapes[decoder.layer]
    if rows % decoder.tokens:
        raise ValueError(
            f"latents: ginr-ipc has divisors of the layer's {rows} columns, got {decoder.tokens}"
        )
    return {
        "type": f"{LOW_RANK}{nerf}",
        "n_weight_groups": [decoder.tokens],
        "modulated_layer_idxs": [decoder.layer],
    }


def _hyponet(model: TokenModel, out_bias: float) -> dict[str, Any]:
    decoder, config = model.decoder, model.config
    nerf = isinstance(config, RadianceConfig)
    sigma = math.log2(config.bandwidth) if nerf else config.bandwidth
    return {
        "type": "mlp",
        "n_layer": decoder.spec.layers,
        "hidden_dim": [config.hidden_dim],
        "use_bias": True,
        "input_dim": decoder.spec.coord_dim,
        "output_dim": decoder.spec.out_dim,
        "output_bias": out_bias,
        "fourier_mapping": {
            "type": "deterministic_transinr_nerf" if nerf else "deterministic_transinr",
            "trainable": False,
            "use_ff": True,
            "ff_sigma": max(1, round(sigma)),  # a whole number there; the tensor has it exactly
            "ff_dim": config.frequencies * decoder.spec.coord_dim,
        },
        "activation": {"type": "relu", "siren_w0": None},
        "initialization": {"weight_init_type": "kaiming_uniform", "bias_init_type": "zero"},
        "normalize_weight": decoder.normalize if isinstance(decoder, PatternFieldDecoder) else True,
    }
