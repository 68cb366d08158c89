"""mNIF's published checkpoints: the same tensors under other names.

A published ``LinearMixtureINR`` (github.com/tackgeun/mNIF) keeps the bases of layer i as
``model_param.net.{i}.0.weight`` ``(M, out, in)`` and ``.bias`` ``(M, out)``, the projection as
``latent_to_mixture.{weight,bias}`` with outputs ``(M, layers)``, the meta-SGD rates as
``meta_sgd_lrs.meta_sgd_lrs``, and under ``model.net.{i}.0`` one network whose values it never uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch

from ginr_fast.systems.mnif import Mnif, MnifConfig, Modality
from ginr_fast.systems.published import check_published

_BASE = re.compile(r"model_param\.net\.(\d+)\.0\.(weight|bias)")
_PROJECTION = {"latent_to_mixture.weight": "projection.weight"}
_PROJECTION["latent_to_mixture.bias"] = "projection.bias"
_RATES = "meta_sgd_lrs.meta_sgd_lrs"


def from_published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published state dict as one of :class:`~ginr_fast.systems.mnif.Mnif`.

    Args:
        state: what ``torch.load`` gives for a published stage-1 checkpoint.

    Returns:
        The same tensors under our names; the meta-SGD rates are left out
        (:func:`published_step_sizes`).

    Raises:
        ValueError: names that such a checkpoint does not have, or that are missing, or tensors of
            other dimensions or kinds, by name.
    """
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        ours = _our_name(name)
        if ours is not None:
            each = 1 if name in _PROJECTION else 2  # of the bases there is a stack
            dimensions = each + name.endswith("weight")
            found[ours] = check_published(name, value, (None,) * dimensions)
        elif name != _RATES and not name.startswith("model."):
            raise ValueError(f"state: {name} is not of a published mNIF")
    count = sum(name.startswith("bases.") for name in found)
    missing = [index for index in range(max(count, 2)) if f"bases.{index}" not in found]
    if missing or count % 2:
        raise ValueError("state: expected model_param.net.{0..L+1}.0.{weight,bias}, all of them")
    if len(_PROJECTION.keys() & state.keys()) == 1:
        raise ValueError("state: expected latent_to_mixture.{weight,bias}, both or neither")
    return found


def _our_name(name: str) -> str | None:
    """Of a basis or of the projection."""
    base = _BASE.fullmatch(name)
    if base is None:
        return _PROJECTION.get(name)
    return f"bases.{2 * int(base[1]) + (base[2] == 'bias')}"


def published_step_sizes(state: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The learned meta-SGD rates of a published checkpoint, ``(context_dim,)``, if it has them.

    Raises:
        ValueError: they are no real floats.
    """
    rates = state.get(_RATES)
    return None if rates is None else check_published(_RATES, rates, rates.shape).reshape(-1)


def to_published(model: Mnif, step_sizes: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """A model under the published names, complete for a strict ``load_state_dict``.

    Args:
        model: the model.
        step_sizes: learned meta-SGD rates, if the checkpoint shall have them.
    """
    state: dict[str, torch.Tensor] = {}
    for slot, base in zip(model.config.spec.slots, model.bases, strict=True):
        name = f"net.{slot.layer}.0.{slot.kind}"
        state[f"model_param.{name}"] = base.detach()
        state[f"model.{name}"] = base.detach().mean(0)
    if model.projection is not None:
        for theirs, ours in _PROJECTION.items():
            state[theirs] = model.get_parameter(ours).detach()
    if step_sizes is not None:
        state[_RATES] = step_sizes.detach()
    return state


def load_published(
    state: Mapping[str, torch.Tensor],
    modality: Modality,
    w0: float = 30.0,
    coefficients: Literal["layerwise", "shared"] = "layerwise",
) -> Mnif:
    """The model of a published checkpoint; its sizes are read off the shapes.

    Args:
        state: what ``torch.load`` gives for it.
        modality: what it was trained on; the tensors do not say.
        w0: of its sines; the tensors do not say. 50 for mNIF (S) on voxels, else 30.
        coefficients: of a checkpoint without projection; the tensors do not say.

    Raises:
        ValueError: not such a checkpoint, or not of this modality, or a tensor of another shape
            than the first basis and their number say, by name.
    """
    found = from_published(state)
    layers = sum(name.startswith("bases.") for name in found) // 2
    mixtures, hidden_dim, coord_dim = found["bases.0"].shape
    projection = found.get("projection.weight")
    config = MnifConfig(
        modality=modality,
        hidden_layers=layers - 2,
        hidden_dim=hidden_dim,
        mixtures=mixtures,
        latent_dim=1 if projection is None else projection.shape[1],
        coefficients=coefficients if projection is None else "latent",
        w0=w0,
    )
    if config.spec.coord_dim != coord_dim:
        raise ValueError(
            f"modality: {modality} has {config.spec.coord_dim} coordinates, "
            f"the checkpoint {coord_dim}"
        )
    if projection is not None and projection.shape[0] != mixtures * layers:
        raise ValueError(
            f"state: expected latent_to_mixture.weight of {mixtures * layers} rows "
            f"(one for each basis and layer), got {projection.shape[0]}"
        )
    model = Mnif(config)
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        ours = _our_name(name)
        if ours is not None:
            check_published(name, value, parameters[ours].shape)
    model.load_state_dict(found)
    return model.eval()
