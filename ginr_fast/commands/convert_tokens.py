"""What ``ginr-fast convert`` does with checkpoints of TransINR's and IPC's code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ginr_fast.adapters.checkpoints import Published
from ginr_fast.adapters.ginr_ipc_checkpoints import load_ginr_ipc
from ginr_fast.adapters.ginr_ipc_export import to_ginr_ipc
from ginr_fast.adapters.token_checkpoints import TokenModel
from ginr_fast.adapters.trans_inr_checkpoints import load_trans_inr, to_trans_inr
from ginr_fast.data.views import ViewConfig
from ginr_fast.files import replace_atomically, replace_text
from ginr_fast.ops.checks import check_count
from ginr_fast.systems.audio_inr import AudioIpc
from ginr_fast.systems.ipc import Ipc
from ginr_fast.systems.radiance_views import IpcViews, TransInrViews
from ginr_fast.systems.trans_inr import TransInr
from ginr_fast.training.checkpoints import Saved
from ginr_fast.training.recipes import (
    AudioIpcRecipe,
    IpcRecipe,
    IpcViewsRecipe,
    Recipe,
    TransInrRecipe,
    TransInrViewsRecipe,
    from_plain,
)

_KINDS = (TransInrRecipe, IpcRecipe, TransInrViewsRecipe, IpcViewsRecipe, AudioIpcRecipe)
TOKEN_SYSTEMS: Mapping[str, type[Recipe]] = {kind.system: kind for kind in _KINDS}
_WHOLE = ViewConfig(kind="whole")
_RAYS = 128
_SAMPLES = "train_points_per_ray"


class TokenSystem(NamedTuple):
    """A system made from a published checkpoint."""

    model: TokenModel
    recipe: Recipe
    unused: list[str]
    """The names of tensors without a use in it."""


def token_system(
    published: Published, path: Path, config: Path | None, views: int | None
) -> TokenSystem:
    """The system of a checkpoint of TransINR's or IPC's code.

    Args:
        published: what it holds.
        path: the checkpoint.
        config: its configuration; None for ``config.yaml`` beside it, where one is needed.
        views: (radiance fields of IPC's code) support views; None for those configured.

    Raises:
        FileNotFoundError: no such configuration.
        ValueError: no configuration, or an option or a tensor that does not fit, by name.
    """
    model: TokenModel
    if published.kind == "trans-inr":
        spec = published.content.get("model")
        cfg = published.content.get("cfg")
        if config is not None or not isinstance(spec, Mapping) or "args" not in spec:
            cfg = _configuration(path, config)
            spec = cfg.get("model")
        args = spec.get("args") if isinstance(spec, Mapping) else None
        samples = cfg.get(_SAMPLES) if isinstance(cfg, Mapping) else None
        check_count(_SAMPLES, samples, optional=True)
        model, unused = load_trans_inr(published.state, args, **_given(samples=samples))
    else:
        configured = _configuration(path, config)
        views = _support(configured) if views is None else views
        model, unused = load_ginr_ipc(published.state, configured.get("arch"), views)
    return TokenSystem(model, _recipe(model), unused)


def _support(configured: Mapping[str, Any]) -> int | None:
    """The support views that a configuration of IPC's code names."""
    found: Any = configured
    for name in ("dataset", "train_config", "n_support"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) and found > 0 else None


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _configuration(path: Path, config: Path | None) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    beside = (path.with_suffix(".yaml"), path.with_name("config.yaml"))
    file = config or next((file for file in beside if file.is_file()), None)
    if file is None:
        raise ValueError(
            f"{path}: its tensors do not say all: name the YAML configuration it was trained with "
            f"(--config), or lay it beside the checkpoint as {beside[1].name}"
        )
    if not file.is_file():
        raise FileNotFoundError(f"config: {file} does not exist")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"{file}: expected options by name, got {type(found).__name__}")
    return found


def _recipe(model: TokenModel) -> Recipe:
    if isinstance(model, TransInr):
        return TransInrRecipe(model=model.config, views=_WHOLE, steps=1)
    if isinstance(model, Ipc):
        return IpcRecipe(model=model.config, views=_WHOLE, steps=1)
    if isinstance(model, AudioIpc):
        return AudioIpcRecipe(model=model.config, steps=1)
    sizes = model.config
    about: dict[str, Any] = {
        "support": max(1, sizes.position_views),
        "rays": min(_RAYS, sizes.image_size**2),
        "steps": 1,
    }
    if isinstance(model, IpcViews):
        return IpcViewsRecipe(model=model.config, **about)
    return TransInrViewsRecipe(model=model.config, **about)


def write_published(saved: Saved, out: Path, code: str | None, views: int | None) -> str:
    """Write a TransINR or an IPC as a checkpoint of published code.

    Args:
        saved: what this library holds.
        out: the file.
        code: "trans-inr" or "ginr-ipc"; None for that of the system's authors.
        views: (radiance fields for ginr-ipc) support views.

    Returns:
        What was written, in words.

    Raises:
        CheckpointError: the weights do not fit.
        ValueError: something the code has not, by name; or another configuration lies where that
            of the file would.
    """
    model = _model(saved)
    if isinstance(model, (TransInr, TransInrViews)) and code != "ginr-ipc":
        if views is not None:
            raise ValueError("views: trans-inr takes any number of them")
        checkpoint = to_trans_inr(model)
        replace_atomically(out, lambda temporary: torch.save(checkpoint, temporary))
        return f"{out}: a checkpoint of trans-inr, {len(checkpoint['model']['sd'])} tensors"
    if code == "trans-inr":
        raise ValueError(f"code: trans-inr has TransINR only, {saved.path} holds {saved.system}")
    import yaml

    exported, beside = to_ginr_ipc(model, views), out.with_suffix(".yaml")
    text = yaml.safe_dump(exported.config, sort_keys=False)
    if beside.exists() and beside.read_bytes() != text.encode():
        raise ValueError(
            f"out: {beside} exists, where the configuration of {out.name} would be written; name "
            "another file, or move that one away"
        )
    replace_text(beside, text)
    content = {"state_dict": exported.state}
    replace_atomically(out, lambda temporary: torch.save(content, temporary))
    return (
        f"{out}: a checkpoint of ginr-ipc, {len(exported.state)} tensors\n"
        f"{beside}: arch of its configuration"
    )


def _model(saved: Saved) -> TokenModel:
    try:
        recipe = from_plain(TOKEN_SYSTEMS[saved.system], {"steps": 1, **saved.recipe})
    except (TypeError, ValueError) as error:
        raise saved.misfit(error) from None
    model: TokenModel
    if isinstance(recipe, AudioIpcRecipe):
        model = AudioIpc(recipe.model)
    else:
        assert isinstance(recipe, (TransInrRecipe, IpcRecipe, TransInrViewsRecipe, IpcViewsRecipe))
        model = recipe.build()
    saved.restore(model)
    return model.eval()
