"""TransINR's published checkpoints (github.com/yinboc/trans-inr) as systems, and back.

A checkpoint of that code is ``{"model": {"name", "args", "sd"}, "cfg", …}``: the state dict lies
beside the arguments that its model was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ginr_fast.adapters.published_options import Options
from ginr_fast.adapters.published_tensors import Tensors
from ginr_fast.adapters.token_checkpoints import Names, fill, published_state
from ginr_fast.published_fields import layer_names
from ginr_fast.systems.radiance_views import TransInrViews, TransInrViewsConfig
from ginr_fast.systems.trans_inr import TransInr, TransInrConfig

CAMERA_DISTANCE = 4.0
"""Of LearnIt-ShapeNet, which the published radiance fields see as it is."""
NERF_BANDWIDTH = 256.0
"""The highest frequency of ``HypoNerf``; the lowest is 1."""

_OUT_BIAS = 0.5
_SAMPLES = 128


def load_trans_inr(
    state: Mapping[str, Tensor], args: Any, samples: int = _SAMPLES
) -> tuple[TransInr | TransInrViews, list[str]]:
    """The system of a checkpoint of TransINR's code.

    Args:
        state: its ``TransInr``'s state dict.
        args: the arguments of that, ``model.args`` of its configuration.
        samples: (radiance fields) points along a ray, ``train_points_per_ray`` there.

    Returns:
        The system, in evaluation mode, and the names of tensors without a use in it.

    Raises:
        ValueError: an option is missing or has no counterpart here, or a tensor is missing or does
            not fit, by name.
    """
    options = Options(args, "model.args")
    tokenizer, hyponet = options.part("tokenizer"), options.part("hyponet")
    model: TransInr | TransInrViews
    if tokenizer.value("name") == "imgrec_tokenizer":
        model = TransInr(_image_config(options))
        out_bias = hyponet.part("args").number("out_bias", 0)
    elif tokenizer.value("name") == "nvs_tokenizer":
        model = TransInrViews(_views_config(options, samples))
        out_bias = 0.0
    else:
        known = "only imgrec_tokenizer and nvs_tokenizer have"
        raise tokenizer.refused("name", tokenizer.value("name"), known)
    tensors = Tensors(state)
    fill(model, tensors, _names(model), out_bias)
    return model.eval(), tensors.finish()


def _encoder(options: Options) -> dict[str, Any]:
    encoder = options.part("transformer_encoder")
    encoder.must("name", "transformer_encoder")
    sizes = encoder.part("args")
    return {
        "encoder_dim": sizes.count("dim"),
        "encoder_depth": sizes.count("depth", least=0),
        "encoder_heads": sizes.count("n_head"),
        "encoder_head_dim": sizes.count("head_dim"),
        "encoder_mlp_dim": sizes.count("ff_dim"),
    }


def _frequencies(hyponet: Options, **default: int) -> int:
    """Of the encoding, a coordinate; ``pe_dim`` counts cosines and sines."""
    found = hyponet.count("pe_dim", **default, least=2)
    if found % 2:
        raise hyponet.refused("pe_dim", found, "only even numbers have")
    return found // 2


def _image_config(options: Options) -> TransInrConfig:
    patches, hyponet = options.part("tokenizer").part("args"), options.part("hyponet")
    hyponet.must("name", "hypo_mlp")
    field = hyponet.part("args")
    field.must("use_pe", True)
    field.must("in_dim", 2)
    channels = patches.count("img_channels", 3)
    field.must("out_dim", channels)
    size, patch = patches.count("input_size"), patches.count("patch_size")
    padding = patches.count("padding", 0, least=0)
    if (size + 2 * padding) % patch or 2 * padding >= patch:
        whole = f"only what makes {size} pixels whole patches of {patch}, and no more, has"
        raise patches.refused("padding", padding, whole)
    return TransInrConfig(
        image_size=size,
        channels=channels,
        patch_size=patch,
        hidden_dim=field.count("hidden_dim"),
        hidden_layers=field.count("depth", least=2) - 2,
        frequencies=_frequencies(field),
        bandwidth=field.number("pe_sigma", 1024),
        groups=options.count("n_groups"),
        layout="tiled",
        **_encoder(options),
    )


def _views_config(options: Options, samples: int) -> TransInrViewsConfig:
    patches, hyponet = options.part("tokenizer").part("args"), options.part("hyponet")
    hyponet.must("name", "hypo_nerf")
    field = hyponet.part("args")
    field.must("use_pe", True, True)
    patches.must("padding", 0, 0)
    patches.must("img_channels", 3, 3)
    width = field.count("hidden_dim", 256)
    return TransInrViewsConfig(
        image_size=patches.count("input_size"),
        patch_size=patches.count("patch_size"),
        camera_distance=CAMERA_DISTANCE,
        position_views=0,
        samples=samples,
        hidden_dim=width,
        hidden_layers=field.count("depth", 6, least=2) - 2,
        frequencies=_frequencies(field, default=40),
        bandwidth=NERF_BANDWIDTH,
        view_dim=width // 2 if field.flag("use_viewdirs", False) else 0,
        groups=options.count("n_groups"),
        layout="tiled",
        **_encoder(options),
    )


def _names(model: TransInr | TransInrViews) -> Names:
    views = isinstance(model, TransInrViews)
    return Names(
        embed="tokenizer.prefc",
        position=None if views else "tokenizer.posemb",
        blocks="transformer_encoder.layers",
        parts={
            "attention_norm": "0.norm",
            "attention_out": "0.fn.to_out.0",
            "mlp_norm": "1.norm",
            "mlp.0": "1.fn.net.0",
            "mlp.2": "1.fn.net.3",
        },
        qkv=(("0.fn.to_q", 1), ("0.fn.to_kv", 2)),
        latents="wtokens",
        heads="wtoken_postfc",
        matrices="base_params",
        layers=layer_names(model.decoder.spec, "trans_inr_nerf" if views else "trans_inr"),
    )


def to_trans_inr(model: TransInr | TransInrViews) -> dict[str, Any]:
    """A system as a checkpoint of TransINR's code, which that loads strictly.

    Args:
        model: the system; groups of neighbours are reordered into what that code has.

    Returns:
        ``{"model": {"name", "args", "sd"}, "cfg"}``.

    Raises:
        ValueError: it has something that code has not, by name.
    """
    config = model.config
    if config.encoder_qkv_bias:
        raise ValueError("encoder_qkv_bias: trans-inr has no such bias; ginr-ipc has")
    if config.token_dim is not None:
        raise ValueError(f"token_dim: trans-inr has only the encoder's, got {config.token_dim}")
    hyponet = _hypo_mlp(config) if isinstance(config, TransInrConfig) else _hypo_nerf(config)
    args = {
        "tokenizer": _tokenizer(config),
        "hyponet": hyponet,
        "n_groups": _one_number(model),
        "transformer_encoder": {
            "name": "transformer_encoder",
            "args": {
                "dim": config.encoder_dim,
                "depth": config.encoder_depth,
                "n_head": config.encoder_heads,
                "head_dim": config.encoder_head_dim,
                "ff_dim": config.encoder_mlp_dim,
            },
        },
    }
    out_bias = _OUT_BIAS if isinstance(config, TransInrConfig) else 0.0
    spec = {"name": "trans_inr", "args": args}
    cfg: dict[str, Any] = {"model": spec}
    if isinstance(config, TransInrViewsConfig):
        cfg["train_points_per_ray"] = config.samples
    return {"model": {**spec, "sd": published_state(model, _names(model), out_bias)}, "cfg": cfg}


def _one_number(model: TransInr | TransInrViews) -> int:
    """The groups of every layer that has so many columns."""
    groups = model.decoder.groups
    number = max(groups)
    if groups != tuple(min(number, rows) for rows, _ in model.decoder.spec.layer_shapes):
        raise ValueError(f"groups: trans-inr has one number, ginr-ipc one a layer; got {groups}")
    return number


def _hypo_mlp(config: TransInrConfig) -> dict[str, Any]:
    args = {
        "depth": config.hidden_layers + 2,
        "in_dim": 2,
        "out_dim": config.channels,
        "hidden_dim": config.hidden_dim,
        "use_pe": True,
        "pe_dim": 2 * config.frequencies,
        "pe_sigma": config.bandwidth,
        "out_bias": _OUT_BIAS,
    }
    return {"name": "hypo_mlp", "args": args}


def _hypo_nerf(config: TransInrViewsConfig) -> dict[str, Any]:
    if config.bandwidth != NERF_BANDWIDTH:
        raise ValueError(f"bandwidth: trans-inr has {NERF_BANDWIDTH}, got {config.bandwidth}")
    if config.view_dim not in (0, config.hidden_dim // 2):
        raise ValueError(
            f"view_dim: trans-inr has 0 and half of hidden_dim {config.hidden_dim}, "
            f"got {config.view_dim}"
        )
    args = {
        "use_viewdirs": bool(config.view_dim),
        "depth": config.hidden_layers + 2,
        "hidden_dim": config.hidden_dim,
        "use_pe": True,
        "pe_dim": 2 * config.frequencies,
    }
    return {"name": "hypo_nerf", "args": args}


def _tokenizer(config: TransInrConfig | TransInrViewsConfig) -> dict[str, Any]:
    args = {"input_size": config.image_size, "patch_size": config.patch_size}
    if isinstance(config, TransInrConfig):
        padding = image_padding(config.image_size, config.patch_size, config.padding)
        args |= {"padding": padding, "img_channels": config.channels}
        return {"name": "imgrec_tokenizer", "args": args}
    if config.position_views != 0:
        raise ValueError("position_views: trans-inr has no positions; ginr-ipc has")
    check_distance(config.camera_distance)
    return {"name": "nvs_tokenizer", "args": args}


def image_padding(image_size: int, patch_size: int, padding: str) -> int:
    """Pixels on each side that make whole patches, as published code pads.

    Raises:
        ValueError: it would pad otherwise.
    """
    missing = -image_size % patch_size
    if missing % 2:
        raise ValueError(
            f"image_size: published code pads both sides alike; {image_size} pixels lack {missing}"
        )
    if missing and padding != "zeros":
        raise ValueError(f"padding: published code has 'zeros', got {padding!r}")
    return missing // 2


def check_distance(camera_distance: float) -> None:
    """Refuse scenes of another unit than the published code's.

    Raises:
        ValueError: says so.
    """
    if camera_distance != CAMERA_DISTANCE:
        raise ValueError(
            f"camera_distance: published code has {CAMERA_DISTANCE}, got {camera_distance}"
        )
