"""IPC's published checkpoints (github.com/kakaobrain/ginr-ipc) as systems.

A checkpoint of that code has its state dict under ``state_dict``. What the tensors do not say is
under ``arch`` in ``config.yaml`` beside it, of IPC and of that code's own TransINR.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ginr_fast.adapters.published_options import Options
from ginr_fast.adapters.published_tensors import Tensors
from ginr_fast.adapters.token_checkpoints import Names, TokenModel, fill
from ginr_fast.adapters.trans_inr_checkpoints import CAMERA_DISTANCE
from ginr_fast.fields import FourierEncoding
from ginr_fast.published_fields import layer_names
from ginr_fast.systems.audio_inr import AudioIpc, AudioIpcConfig
from ginr_fast.systems.ipc import Ipc, IpcConfig
from ginr_fast.systems.radiance_views import (
    IpcViews,
    IpcViewsConfig,
    TransInrViews,
    TransInrViewsConfig,
)
from ginr_fast.systems.trans_inr import TransInr, TransInrConfig

LOW_RANK = "low_rank_modulated_transinr"
"""What that code calls an IPC."""
FREQUENCIES = "hyponet.ff_linear"
"""Of the encoding, in cycles of [-1, 1] or, for radiance fields, in radians a unit."""

_CLOSE = 1e-4  # relative: the published frequencies are exponentials in float32
_VIEW_SIZE = 128  # of LearnIt-ShapeNet, in pixels


def load_ginr_ipc(
    state: Mapping[str, Tensor], arch: Any, views: int | None = None
) -> tuple[TokenModel, list[str]]:
    """The system of a checkpoint of IPC's code.

    Args:
        state: its model's state dict.
        arch: ``arch`` of its configuration.
        views: (radiance fields) how many support views it takes, its positions being those of all;
            None for so many of 128×128 pixels as there are positions for.

    Returns:
        The system, in evaluation mode, and the names of tensors without a use in it.

    Raises:
        ValueError: an option is missing or has no counterpart here, or a tensor is missing or does
            not fit, by name.
    """
    options = Options(arch, "arch")
    block = options.part("transformer").part("block")
    zeros: tuple[str, ...] = () if block.flag("attn_bias", True) else ("attn.proj.bias",)
    zeros += () if block.flag("mlp_bias", True) else ("mlp.0.bias", "mlp.2.bias")
    tensors = Tensors(state, zeros)
    model = _model(options, tensors, views)
    positions = options.part("latent_mapping").flag("use_pe", True)
    names = ginr_ipc_names(model, positions)
    fill(model, tensors, names, options.part("hyponet").number("output_bias", 0.5))
    return model.eval(), tensors.finish()


def ginr_ipc_names(model: TokenModel, positions: bool) -> Names:
    """What IPC's code calls the tensors of a system.

    Args:
        model: the system.
        positions: whether patches have positions there.
    """
    return Names(
        embed="latent_mapping.latent_mapping",
        position="latent_mapping.pos_emb_latent" if positions else None,
        blocks="transformer.blocks",
        parts={
            "attention_norm": "ln1",
            "attention_out": "attn.proj",
            "mlp_norm": "ln2",
            "mlp.0": "mlp.0",
            "mlp.2": "mlp.2",
        },
        qkv=(("attn.query", 1), ("attn.key", 1), ("attn.value", 1)),
        latents="weight_groups.weight_groups",
        heads="group_modulation_postfc",
        matrices="hyponet.params_dict",
        layers=layer_names(model.decoder.spec, "ginr_ipc"),
        mixing="shared_factor",
        leading=(1,),
    )


def _model(options: Options, tensors: Tensors, views: int | None) -> TokenModel:
    kind, encoder = options.value("type"), _encoder(options)
    if options.part("data_encoder").value("type", "unfold") == "unfold_audio":
        options.must("type", LOW_RANK)
        sizes = _audio(options) | _field(options, 1, tensors) | encoder
        return AudioIpc(AudioIpcConfig(**sizes, **_rank(options)))
    options.part("data_encoder").must("type", "unfold", "unfold")
    if kind in ("transinr", LOW_RANK):
        sizes = _image(options) | _field(options, 2, tensors) | encoder
        if kind == LOW_RANK:
            return Ipc(IpcConfig(**sizes, **_rank(options)))
        return TransInr(TransInrConfig(**sizes, **_groups(options)))
    if kind in ("transinr_nerf", f"{LOW_RANK}_nerf"):
        sizes = _views(options, views) | _field(options, 3, tensors) | encoder
        if kind != "transinr_nerf":
            return IpcViews(IpcViewsConfig(**sizes, **_rank(options)))
        return TransInrViews(TransInrViewsConfig(**sizes, **_groups(options)))
    raise options.refused("type", kind, f"only transinr and {LOW_RANK} have, and both with _nerf")


def _encoder(options: Options) -> dict[str, Any]:
    transformer, mapping = options.part("transformer"), options.part("latent_mapping")
    block = transformer.part("block")
    transformer.must("mask", False, False)
    block.must("gelu", "v1", "v1")
    dim, heads = transformer.count("embed_dim", 768), block.count("n_head")
    if dim % heads:
        raise block.refused("n_head", heads, f"only divisors of embed_dim {dim} have")
    mapping.must("type", "linear", "linear")
    mapping.must("latent_dim", dim, 256)
    return {
        "encoder_dim": dim,
        "encoder_depth": transformer.count("n_layer", least=0),
        "encoder_heads": heads,
        "encoder_head_dim": dim // heads,
        "encoder_mlp_dim": 4 * dim,
        "encoder_qkv_bias": block.flag("attn_bias", True),
    }


def _field(options: Options, coord_dim: int, tensors: Tensors) -> dict[str, Any]:
    """Sizes of the field, of which the checkpoint holds the frequencies."""
    hyponet = options.part("hyponet")
    mapping = hyponet.part("fourier_mapping")
    hyponet.must("type", "mlp", "mlp")
    hyponet.must("use_bias", True, True)
    hyponet.must("input_dim", coord_dim, 2)
    hyponet.part("activation").must("type", "relu", "relu")
    mapping.must("use_ff", True, True)
    nerf = coord_dim == 3
    plain = "deterministic_transinr"
    mapping.must("type", f"{plain}_nerf" if nerf else plain, plain)
    features, sigma = mapping.count("ff_dim", 128), mapping.number("ff_sigma", 1024)
    if features % coord_dim:
        raise mapping.refused("ff_dim", features, f"only multiples of {coord_dim} have")
    count, bandwidth = features // coord_dim, 2.0**sigma if nerf else sigma
    table = tensors.take(FREQUENCIES, (count,))
    if FREQUENCIES in tensors:
        bandwidth = _bandwidth(table.double(), bandwidth)
    hidden = hyponet.counts("hidden_dim")
    if len(set(hidden)) > 1:
        raise hyponet.refused("hidden_dim", hidden, "only layers of one width have")
    layers = hyponet.count("n_layer", 5, least=2)
    sizes = {"hidden_dim": hidden[0], "hidden_layers": layers - 2}
    return {**sizes, "frequencies": count, "bandwidth": bandwidth}


def _bandwidth(table: Tensor, configured: float) -> float:
    """The highest frequency over the lowest; what is configured, if the table has it."""
    found = float(table[-1] / table[0])
    if math.isclose(found, configured, rel_tol=_CLOSE):
        found = configured
    if 0 < found < math.inf:
        spaced = table.new_tensor(FourierEncoding.log_spaced(len(table), found, 1.0).frequencies)
        if torch.allclose(table, spaced, rtol=_CLOSE, atol=0.0):
            return found
    raise ValueError(
        f"state: {FREQUENCIES}: trained frequencies have no counterpart here, only those spaced "
        "evenly in logarithm, from 1 on, have"
    )


def _image(options: Options) -> dict[str, Any]:
    data, hyponet = options.part("data_encoder"), options.part("hyponet")
    mapping, spec = options.part("latent_mapping"), data.part("encoder_spec")
    channels = data.count("n_channel", 3)
    hyponet.must("output_dim", channels, 3)
    options.part("coord_sampler").must("coord_range", [-1.0, 1.0])
    patch, padding = spec.count("patch_size", 9), spec.count("padding", 1, least=0)
    if 2 * padding >= patch:
        raise spec.refused("padding", padding, f"only less than half of patch_size {patch} has")
    count = mapping.count("n_patches", 400)
    side = math.isqrt(count)
    if side**2 != count:
        raise mapping.refused("n_patches", count, "only a square number has")
    return {
        "image_size": side * patch - 2 * padding,
        "channels": channels,
        "patch_size": patch,
    }


def _audio(options: Options) -> dict[str, Any]:
    data, hyponet = options.part("data_encoder"), options.part("hyponet")
    data.must("n_channel", 1, 3)
    hyponet.must("output_dim", 1, 3)
    patch = data.part("encoder_spec").count("patch_size", 200)
    sampler = options.part("coord_sampler")
    span = sampler.value("coord_range")
    if not isinstance(span, (list, tuple)) or len(span) != 2 or not -span[0] == span[1] > 0:
        raise sampler.refused("coord_range", span, "only [-c, c] has")
    count = options.part("latent_mapping").count("n_patches", 400)
    return {"length": count * patch, "patch_size": patch, "cycles": float(span[1])}


def _views(options: Options, views: int | None) -> dict[str, Any]:
    data, hyponet = options.part("data_encoder"), options.part("hyponet")
    mapping, spec = options.part("latent_mapping"), data.part("encoder_spec")
    data.must("n_channel", 9, 3)
    spec.must("padding", 0, 1)
    hyponet.must("output_dim", 4, 3)
    patch, count = spec.count("patch_size", 9), mapping.count("n_patches", 400)
    if views is None:
        views = max(1, count // (_VIEW_SIZE // patch) ** 2)
    side = math.isqrt(count // views)
    if side < 1 or views * side**2 != count:
        raise mapping.refused("n_patches", count, f"{views} square views have another number")
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "camera_distance": CAMERA_DISTANCE,
        "position_views": views if mapping.flag("use_pe", True) else 0,
        "samples": options.part("coord_sampler").count("num_points_per_ray", 128),
    }


def _widths(options: Options) -> list[int]:
    """Outputs of every layer of the field."""
    hyponet = options.part("hyponet")
    hidden = hyponet.counts("hidden_dim")[:1] * (hyponet.count("n_layer", 5) - 1)
    return [*hidden, hyponet.count("output_dim", 3)]


def _counts_of_groups(options: Options) -> list[int]:
    """Tokens of every layer, were all modulated."""
    widths, counts = _widths(options), options.counts("n_weight_groups")
    counts = counts * len(widths) if len(counts) == 1 else counts
    if len(counts) != len(widths):
        raise options.refused("n_weight_groups", counts, f"{len(widths)} layers have one each")
    return [min(count, width) for count, width in zip(counts, widths, strict=True)]


def _groups(options: Options) -> dict[str, Any]:
    """Of a TransINR, all of whose layers are modulated and normalised."""
    groups = _counts_of_groups(options)
    options.part("hyponet").must("normalize_weight", True, True)
    if options.value("modulated_layer_idxs", None) is not None:
        options.must("modulated_layer_idxs", list(range(len(groups))))
    return {"groups": tuple(groups), "layout": "tiled"}


def _rank(options: Options) -> dict[str, Any]:
    """Of an IPC, one of whose layers is modulated."""
    layers = options.value("modulated_layer_idxs", None)
    counts = _counts_of_groups(options)
    if (
        not isinstance(layers, (list, tuple))
        or len(layers) != 1
        or layers[0] not in range(len(counts))
    ):
        raise options.refused("modulated_layer_idxs", layers, "only one layer has")
    return {
        "latents": counts[layers[0]],
        "modulated_layer": layers[0],
        "normalize": options.part("hyponet").flag("normalize_weight", True),
    }
