"""mNIF's published code on the operators of this library (github.com/tackgeun/mNIF).

``LinearMixtureINR`` averages K networks for every instance and evaluates the average: here
:func:`ginr_fast.mixture_average` and :func:`ginr_fast.field_mlp`, both differentiable twice, as
CAVIA's inner loop needs. Its renderer, a function, is in ``mnif_rendering``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ginr_fast.adapters.frame import Adapter, Match
from ginr_fast.adapters.probes import Probe, drawn
from ginr_fast.fields import Activation, FieldSpec
from ginr_fast.ops.field_mlp.op import field_mlp
from ginr_fast.ops.mixture_average.op import mixture_average

_SHARED = ("all-layer",)
_LAYERWISE = ("layerwise", "two-layers")


@dataclass(frozen=True)
class MixtureSettings:
    """What a ``LinearMixtureINR`` computes.

    Args:
        spec: the field that its networks share.
        mixtures: K, the number of networks.
        shared: whether all layers have the same coefficients.
        sines: w0 of each layer's sine; None for a layer without activation.
    """

    spec: FieldSpec
    mixtures: int
    shared: bool
    sines: tuple[float | None, ...]

    def hold(self, module: nn.Module) -> bool:
        """Whether the module's options are still those it was recognised with."""
        return (
            getattr(module, "mixture_type", None) in (_SHARED if self.shared else _LAYERWISE)
            and not getattr(module, "use_last_layer", False)
            and _sines(module) == self.sines
        )


def settings_of(module: nn.Module) -> MixtureSettings | str:
    """What a ``LinearMixtureINR`` computes, or why this library cannot."""
    mode = getattr(module, "mixture_type", None)
    if mode not in _SHARED + _LAYERWISE:
        return f"its mixture_type is {mode!r}"
    if getattr(module, "use_last_layer", False):
        return "it has a last layer of its own"
    if getattr(module, "use_latent_embedding", False) and not _projects(module):
        return "its latent_to_mixture has no linear map"
    for name in ("model", "model_param"):
        net = getattr(getattr(module, name, None), "net", None)
        if not isinstance(net, nn.Sequential) or len(net) < 2:
            return f"its {name}.net is not a sequence of layers"
        if not all(isinstance(layer, nn.Sequential) and 1 <= len(layer) <= 2 for layer in net):
            return "its layers are not (linear, sine)"
    shapes: list[tuple[int, ...]] = []
    for layer in _net(module):
        weight, bias = (getattr(layer[0], name, None) for name in ("weight", "bias"))
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or weight.ndim != 3:
            return "its layers do not hold all networks, (K, out, in) and (K, out)"
        shapes.append(tuple(weight.shape))
    sines = _sines(module)
    *inner, last = sines
    if inner[0] is None or any(w0 != inner[0] for w0 in inner):
        return "its hidden layers do not all end in a sine with one w0"
    if last not in (None, inner[0]):
        return "its last layer ends in something else than a sine or nothing"
    out_activation: Activation = "none" if last is None else "sine"
    mixtures, width, coord_dim = shapes[0]
    try:
        spec = FieldSpec(
            coord_dim=coord_dim,
            out_dim=shapes[-1][1],
            hidden_dim=width,
            hidden_layers=len(shapes) - 2,
            activation="sine",
            w0=inner[0],
            out_activation=out_activation,
        )
    except (TypeError, ValueError) as problem:
        return f"its sizes: {problem}"
    if shapes != [(mixtures, *shape) for shape in spec.layer_shapes]:
        return f"its layers have the shapes {shapes}"
    return MixtureSettings(spec, mixtures, mode in _SHARED, sines)


def _projects(module: nn.Module) -> bool:
    projection = getattr(module, "latent_to_mixture", None)
    return isinstance(projection, nn.Module) and any(
        isinstance(part, nn.Linear) for part in projection.modules()
    )


def _sines(module: Any) -> tuple[float | None, ...]:
    """w0 of each layer's sine, None for no activation, NaN for another one, in ``model``: it takes
    the averaged weights, ``model_param`` only holds those of all networks."""
    return tuple(_factor(layer[1]) if len(layer) == 2 else None for layer in module.model.net)


def _factor(activation: nn.Module) -> float:
    w0 = getattr(activation, "w0", None)
    if type(activation).__name__ != "Sine" or not isinstance(w0, (int, float)):
        return math.nan
    return float(w0)


def evaluate(
    module: nn.Module,
    settings: MixtureSettings,
    inputs: Mapping[str, Any],
    context_params: Tensor | None = None,
    coefficients: Tensor | None = None,
    **others: Any,
) -> dict[str, Any] | None:
    """``LinearMixtureINR.forward``.

    Args:
        module: the ``LinearMixtureINR``.
        settings: what it computes.
        inputs: ``coords`` ``(B, N, d)`` or ``(N, d)``, and ``context_params`` if not given.
        context_params: latents ``(B, H)``, or without latents the coefficients themselves.
        coefficients: instead of those that the latents give.
        others: what the published code does not have.

    Returns:
        ``model_in`` (the inputs), ``model_out`` ``(B, N, out)`` and ``l1_mean``, as published; None
        for inputs that the operators do not take.
    """
    if others:
        return None
    coords = inputs["coords"]
    mixture = _mixture(module, settings, inputs, context_params, coefficients)
    spec = settings.spec
    columns = 1 if settings.shared else spec.layers
    if mixture is None or mixture.shape[1:] != (settings.mixtures, columns):
        return None
    bases: Any = [getattr(layer[0], name) for layer in _net(module) for name in ("weight", "bias")]
    batch = mixture.shape[0]
    if not isinstance(coords, Tensor) or coords.ndim not in (2, 3) or batch == 0:
        return None
    if coords.shape[-1] != spec.coord_dim or coords.dtype != bases[0].dtype:
        return None
    if batch > 1 and coords.ndim == 3 and coords.shape[0] not in (1, batch):
        return None
    weights = mixture_average(mixture.transpose(1, 2).expand(-1, spec.layers, -1), bases, spec)
    # A phase needs float32 whatever the parameters are.
    points = coords.float() if coords.dtype in (torch.float16, torch.bfloat16) else coords
    if batch == 1 and points.ndim == 3:
        # One network for all sets of coordinates.
        values = field_mlp(points.reshape(1, -1, spec.coord_dim), weights, spec)
        values = values.view(*points.shape[:2], spec.out_dim)
    else:
        values = field_mlp(points, weights, spec)
    return {"model_in": inputs, "model_out": values, "l1_mean": mixture.abs().mean()}


def _net(module: nn.Module) -> Any:
    parameters: Any = module.model_param
    return parameters.net


def _mixture(
    module: Any,
    settings: MixtureSettings,
    inputs: Mapping[str, Any],
    context_params: Tensor | None,
    coefficients: Tensor | None,
) -> Tensor | None:
    """Coefficients, ``(B, K, layers or 1)``."""
    if module.use_latent_embedding:
        if coefficients is None:
            given = inputs["context_params"] if context_params is None else context_params
            coefficients = module.latent_to_mixture(given)
        mixture = coefficients
        shape = (1,) if settings.shared else (settings.spec.layers,)
        return mixture.view(-1, settings.mixtures, *shape)
    if not isinstance(context_params, Tensor) or not 1 <= context_params.ndim <= 3:
        return None
    if context_params.ndim == 3:
        return context_params
    batch = 1 if context_params.ndim == 1 else context_params.shape[0]
    return context_params.view(batch, settings.mixtures, -1)


def _match(module: nn.Module) -> Match | str:
    settings = settings_of(module)
    if isinstance(settings, str):
        return settings

    def forward(module: nn.Module, original: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        result = evaluate(module, settings, *args, **kwargs) if settings.hold(module) else None
        return original(*args, **kwargs) if result is None else result

    spec, mixtures = settings.spec, settings.mixtures
    runs_on = (
        f"mixture_average of {mixtures} networks, field_mlp: {spec.layers} layers of width "
        f"{spec.hidden_dim}"
    )
    return Match(
        runs_on,
        {"forward": forward},
        _probes(module, settings),
        calls=("latent_to_mixture",),
    )


def _probes(module: Any, settings: MixtureSettings) -> tuple[Probe, ...]:
    """The network with coefficients for which its sines amplify no rounding, and the latents' way
    to the coefficients."""
    spec = settings.spec
    weights = [layer[0].weight.detach() for layer in _net(module)]
    coords = drawn(2, 3, spec.coord_dim, seed=1, scale=0.5, like=weights[0])
    inputs = {"coords": coords}
    # Averaged weights of about 1/w0 in the first layer and 1/(w0·√fan-in) in the others.
    scales = [
        1 / (spec.w0 * weight.square().mean().sqrt() * (weight.shape[2] if index else 1) ** 0.5)
        for index, weight in enumerate(weights)
    ]
    scale = torch.stack(scales) / settings.mixtures**0.5
    if settings.shared:
        scale = scale.min(dim=0, keepdim=True).values
    coefficients = drawn(2, settings.mixtures, len(scale), like=weights[0]) * scale
    if not module.use_latent_embedding:
        return (_probe(inputs, coefficients),)
    first = next(m for m in module.latent_to_mixture.modules() if isinstance(m, nn.Linear))
    latents = drawn(2, first.in_features, like=weights[0])
    return (
        _probe(inputs, None, coefficients.flatten(1)),
        Probe(arguments=(inputs, latents), collect=lambda result: result["l1_mean"]),
    )


def _probe(*arguments: Any) -> Probe:
    return Probe(
        arguments=arguments, collect=lambda result: (result["model_out"], result["l1_mean"])
    )


ADAPTER = Adapter(
    "mNIF",
    ("LinearMixtureINR",),
    _match,
    relies_on=("forward", "get_combined_weight", "get_mixture_weight", "get_input_embedding"),
)
"""Recognises ``LinearMixtureINR``."""
