"""The published code of instance pattern composers (github.com/kakaobrain/ginr-ipc) on ginr_fast.

``HypoNet`` is a field whose matrices are its own ``params_dict``, with the bias in the last row,
times those that an instance brings, or these alone; ``LowRankModulatedTransINR`` and
``ModulatedParamsFactors`` make the latter as a product of what an instance has and what all share.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ginr_fast.adapters.cross_attention import own_forward
from ginr_fast.adapters.frame import Adapter, FastMethod, Match
from ginr_fast.adapters.packing import at_points, packed_rows, serves
from ginr_fast.adapters.probes import Probe, drawn
from ginr_fast.fields import Activation, FieldSpec, FourierEncoding
from ginr_fast.ops.coordinates import shared_if_repeated
from ginr_fast.ops.field_mlp.op import field_mlp

_ENCODINGS = ("deterministic_transinr", "deterministic_transinr_nerf", "random_gaussian")
_WITHOUT_PI = "deterministic_transinr_nerf"
_ATTRIBUTES = (
    "config",
    "ff_config",
    "use_ff",
    "use_bias",
    "params_dict",
    "params_shape_dict",
    "activation",
    "output_bias",
    "normalize_weight",
    "ignore_base_param_dict",
)
_PROBE_BATCH, _PROBE_POINTS = 2, 5

Factors = Mapping[str, Tensor]


@dataclass(frozen=True)
class HypoNetField:
    """What a ``HypoNet`` computes.

    Args:
        spec: the field; of Fourier features it takes the features.
        names: of its layers.
        coord_dim: components of a coordinate.
        encoding: which Fourier features go before the field, one of its three; None for none.
    """

    spec: FieldSpec
    names: tuple[str, ...]
    coord_dim: int
    encoding: str | None

    def holds(self, module: Any) -> bool:
        """Whether the module's options are still those it was recognised with."""
        activation = _activation_of(module.activation)
        encoding = module.ff_config.type if module.use_ff else None
        return activation == (self.spec.activation, self.spec.w0) and encoding == self.encoding

    def evaluate(self, module: Any, coord: Tensor, matrices: list[Tensor], shift: float) -> Tensor:
        """Values at coordinates, ``(B, ..., out)``."""
        rows = packed_rows(matrices, coord.shape[0], self.spec.bias, shift)
        spec, points = self.spec, at_points(coord)
        if self.encoding is not None:
            fused = self._fused(module)
            if fused is None:
                points = module.fourier_mapping(_once(points.flatten(1, -2)))
            else:
                spec = fused
        values = field_mlp(points, rows, spec).reshape(*coord.shape[:-1], spec.out_dim)
        return values if self.spec.bias or not shift else values + shift

    def _fused(self, module: Any) -> FieldSpec | None:
        """The field with its encoding, where its frequencies are known numbers for each component
        of a coordinate."""
        known = self.encoding != "random_gaussian" and not torch.compiler.is_compiling()
        linear: Tensor = module.ff_linear
        if not known or linear.requires_grad or linear.is_inference():
            return None
        scale = 1.0 if self.encoding == _WITHOUT_PI else math.pi
        return _encoded(self.spec, self.coord_dim, _numbers(linear), scale)


# Reading numbers waits for a GPU, so it is done once for each state of a parameter.
_numbers_read: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _numbers(parameter: Tensor) -> tuple[float, ...]:
    state = parameter._version, parameter.data_ptr(), parameter.dtype
    found = _numbers_read.get(parameter)
    if found is None or found[0] != state:
        _numbers_read[parameter] = found = state, tuple(parameter.tolist())
    return found[1]


@functools.lru_cache(maxsize=64)
def _encoded(
    spec: FieldSpec, coord_dim: int, frequencies: tuple[float, ...], scale: float
) -> FieldSpec:
    encoding = FourierEncoding(tuple(scale * frequency for frequency in frequencies))
    return dataclasses.replace(spec, coord_dim=coord_dim, encoding=encoding)


def _once(points: Tensor) -> Tensor:
    """Coordinates ``(B, N, d)``, or one set ``(1, N, d)`` if all instances have the same."""
    if points.requires_grad or torch.compiler.is_compiling():
        return points
    return shared_if_repeated(points, ())


def hyponet_of(module: Any) -> HypoNetField | str:
    """What a ``HypoNet`` computes, or why ginr_fast has no field for it."""
    missing = [name for name in _ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    activation = _activation_of(module.activation)
    if activation is None:
        return f"its activation is {type(module.activation).__name__}, neither ReLU nor Sine"
    encoding = module.ff_config.type if module.use_ff else None
    if encoding is not None and encoding not in _ENCODINGS:
        return f"its encoding is {encoding!r}"
    if isinstance(module.output_bias, Tensor):
        return "its output_bias is a tensor"
    shapes = [tuple(shape) for shape in module.params_shape_dict.values()]
    fan_in = [rows - bool(module.use_bias) for rows, _ in shapes]
    widths = {columns for _, columns in shapes[:-1]}
    if len(shapes) < 2 or len(widths) > 1:
        return f"its layers are {shapes}; expected at least two, the hidden ones of one width"
    kind, w0 = activation
    try:
        spec = FieldSpec(
            coord_dim=fan_in[0],
            out_dim=shapes[-1][1],
            hidden_dim=widths.pop(),
            hidden_layers=len(shapes) - 2,
            activation=kind,
            w0=w0,
            bias=bool(module.use_bias),
        )
    except (TypeError, ValueError) as error:
        return f"ginr_fast has no such field: {error}"
    names = tuple(f"linear_wb{index}" for index in range(spec.layers))
    if tuple(module.params_shape_dict) != names:
        return f"its layers are called {', '.join(module.params_shape_dict)}"
    return HypoNetField(spec, names, int(module.config.input_dim), encoding)


def _activation_of(activation: nn.Module) -> tuple[Activation, float] | None:
    """Its name and the frequency factor of a sine."""
    if isinstance(activation, nn.ReLU) and own_forward(activation, nn.ReLU):
        return "relu", 1.0
    w0 = getattr(activation, "w0", None)
    if type(activation).__name__ == "Sine" and isinstance(w0, (int, float)):
        return "sine", float(w0)
    return None


def _match_hyponet(module: nn.Module) -> Match | str:
    known = hyponet_of(module)
    if isinstance(known, str):
        return known
    spec = known.spec
    encoded = f" of {known.encoding} features" if known.encoding else ""
    return Match(
        f"field_mlp: {spec.layers} layers, width {spec.hidden_dim}, {spec.activation}{encoded}",
        {
            "forward": functools.partial(_forward, known),
            "forward_with_params": functools.partial(_forward_with_params, known),
        },
        _hyponet_probes(known, module),
        known,
    )


def _forward(
    known: HypoNetField,
    module: Any,
    original: FastMethod,
    coord: Tensor,
    modulation_params_dict: Factors | None = None,
) -> Tensor:
    matrices = _modulated(known, module, coord.shape[0], modulation_params_dict or {})
    if matrices is None or not serves(coord.shape[0], (coord,), matrices):
        return original(coord, modulation_params_dict)
    return known.evaluate(module, coord, matrices, float(module.output_bias))


def _forward_with_params(
    known: HypoNetField, module: Any, original: FastMethod, coord: Tensor, params_dict: Factors
) -> Tensor:
    usual = known.holds(module) and set(params_dict) == set(known.names)
    matrices = [params_dict[name] for name in known.names] if usual else []
    batch = coord.shape[0]
    if not usual or not all(
        _is_of(matrix, batch, known, index) for index, matrix in enumerate(matrices)
    ):
        return original(coord, params_dict)
    if not serves(batch, (coord,), matrices):
        return original(coord, params_dict)
    return known.evaluate(module, coord, matrices, float(module.output_bias))


def _is_of(matrix: Tensor, batch: int, known: HypoNetField, index: int) -> bool:
    """Whether a matrix has a layer's shape, and one for each instance."""
    rows, columns = known.spec.layer_shapes[index]
    return tuple(matrix.shape) == (batch, columns + known.spec.bias, rows)


def _modulated(
    known: HypoNetField, module: Any, batch: int, modulations: Factors
) -> list[Tensor] | None:
    """The matrices that instances end up with, shared ones without a batch; None for modulations
    of names or shapes that its own code must judge."""
    spec, matrices = known.spec, []
    if not known.holds(module) or not set(modulations) <= set(known.names):
        return None
    for name, (rows, columns) in zip(known.names, spec.layer_shapes, strict=True):
        base, modulation = module.params_dict[name], modulations.get(name)
        alone = module.ignore_base_param_dict[name]
        if modulation is None:
            if alone:
                return None
            weight = base[:columns]
        elif tuple(modulation.shape) != (batch, columns, rows):
            return None
        else:
            weight = modulation if alone else base[:columns] * modulation
        if module.normalize_weight:
            weight = F.normalize(weight, dim=-2)
        # Under autocast a modulation may have a lower precision than the base.
        weight = weight.to(torch.promote_types(weight.dtype, base.dtype))
        if spec.bias:
            bias = base[columns:].expand(*weight.shape[:-2], 1, rows)
            weight = torch.cat((weight, bias), dim=-2)
        matrices.append(weight)
    return matrices


def _hyponet_probes(known: HypoNetField, module: Any) -> tuple[Probe, ...]:
    like: Tensor = module.params_dict[known.names[0]]
    coord = drawn(_PROBE_BATCH, _PROBE_POINTS, known.coord_dim, scale=0.3, like=like)
    shapes = known.spec.layer_shapes

    def matrix(index: int, more_rows: int) -> Tensor:
        rows, columns = shapes[index]
        # Of a size that keeps values in range from layer to layer, and phases of sines small.
        scale = (2 / columns) ** 0.5 / known.spec.w0
        return drawn(
            _PROBE_BATCH, columns + more_rows, rows, seed=index + 1, scale=scale, like=like
        )

    ignored = module.ignore_base_param_dict
    modulations = {
        name: matrix(index, 0) + float(not ignored[name])
        for index, name in enumerate(known.names)
        if ignored[name] or index == 1
    }
    bias = int(known.spec.bias)
    given = {name: matrix(index, bias) for index, name in enumerate(known.names)}
    return (
        Probe("forward", (coord, modulations)),
        Probe("forward_with_params", (coord, given)),
    )


def _match_groups(module: Any) -> Match | str:
    needed = ("weight_groups", "group_modulation_postfc", "shared_factor", "hyponet")
    missing = [name for name in needed if not hasattr(module, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    factors: Tensor = next(iter(module.shared_factor.values()))
    width = next(iter(module.group_modulation_postfc.values()))[0].normalized_shape[0]
    groups = drawn(_PROBE_BATCH, module.num_group_total, width, like=factors)
    return Match(
        f"one product for all instances, rank {factors.shape[-2]}",
        {"predict_group_modulations": _group_modulations},
        (Probe("predict_group_modulations", (groups,)),),
        calls=tuple(name for name, _ in module.named_children()),
    )


def _group_modulations(
    module: Any, original: FastMethod, group_output: Tensor
) -> dict[str, Tensor]:
    places, found = module.weight_groups.group_idx_dict, {}
    for name in module.hyponet.params_dict:
        if name in places:
            first, last = places[name]
            patterns = module.group_modulation_postfc[name](group_output[:, first:last])
            found[name] = torch.matmul(patterns.transpose(-1, -2), module.shared_factor[name][0])
    return found


def _match_factors(module: Any) -> Match | str:
    if not hasattr(module, "shared_factors") or not hasattr(module, "init_modulation_factors"):
        return "it has no shared_factors or init_modulation_factors"
    shared = {name: factor for name, factor in module.shared_factors.items() if factor is not None}
    if not shared:
        return "its modulations are not factorised"
    given = {
        name: drawn(_PROBE_BATCH, *factor.shape, like=factor)
        for name, factor in module.init_modulation_factors.items()
    }
    rank = next(iter(shared.values())).shape[0]
    return Match(
        f"one product for all instances, rank {rank}",
        {"compute_modulation_params_dict": _factor_modulations},
        (Probe("compute_modulation_params_dict", (given,)),),
    )


def _factor_modulations(
    module: Any, original: FastMethod, modulation_factors_dict: Factors
) -> dict[str, Tensor]:
    shared = module.shared_factors
    return {
        name: factor if shared[name] is None else torch.matmul(factor, shared[name])
        for name, factor in modulation_factors_dict.items()
    }


_HYPONET_METHODS = ("forward", "forward_with_params", "fourier_mapping", "check_valid_param_keys")
_GROUPED = ("LowRankModulatedTransINR", "LowRankModulatedTransINRNerf")
ADAPTERS = (
    Adapter("IPC", ("HypoNet",), _match_hyponet, _HYPONET_METHODS),
    Adapter("IPC", _GROUPED, _match_groups, ("predict_group_modulations",)),
    Adapter(
        "IPC", ("ModulatedParamsFactors",), _match_factors, ("compute_modulation_params_dict",)
    ),
)
