"""TransINR's ``HypoMlp`` and ``HypoNerf``: fields whose matrices are set from outside, one for each
instance and layer with the bias in the last row."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ginr_fast.adapters.cross_attention import own_forward
from ginr_fast.adapters.frame import FastMethod, Match
from ginr_fast.adapters.packing import at_points, packed_rows, serves
from ginr_fast.adapters.probes import Probe, drawn
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops.field_mlp.op import field_mlp
from ginr_fast.published_fields import Format, layer_names

_NERF_OCTAVES = 8
_LAYOUTS: Mapping[str, Format] = {"HypoMlp": "trans_inr", "HypoNerf": "trans_inr_nerf"}
_OPTIONS: Mapping[Format, tuple[str, ...]] = {
    "trans_inr": ("depth", "use_pe", "pe_dim", "pe_sigma"),
    "trans_inr_nerf": ("depth", "use_pe", "pe_dim", "use_viewdirs"),
}
_PROBE_BATCH, _PROBE_POINTS = 2, 5


@dataclass(frozen=True)
class HypoField:
    """What a ``HypoMlp`` or ``HypoNerf`` computes.

    Args:
        spec: the field.
        layout: which of the two.
        names: of its layers, in the order of ``spec``.
        options: those it was recognised with, by the names of its attributes.
    """

    spec: FieldSpec
    layout: Format
    names: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    def matrices(self, module: Any) -> list[Tensor] | None:
        """What is set in the module, one matrix a layer; None if it is not what it was, or has
        nothing set."""
        if any(getattr(module, name) != value for name, value in self.options):
            return None
        if not _is_relu(module.relu):
            return None
        parameters = module.params
        if parameters is None or not all(name in parameters for name in self.names):
            return None
        found: list[Tensor] = []
        for name, (rows, columns) in zip(self.names, self.spec.layer_shapes, strict=True):
            matrix = parameters[name]
            if not isinstance(matrix, Tensor) or matrix.shape[-2:] != (columns + 1, rows):
                return None
            found.append(matrix)
        return found


def field_of(module: Any) -> HypoField | str:
    """What a ``HypoMlp`` or ``HypoNerf`` computes, or why ginr_fast has no field for it."""
    names = [base.__name__ for base in type(module).__mro__]
    layout = next((_LAYOUTS[name] for name in names if name in _LAYOUTS), None)
    if layout is None:
        return f"{names[0]} is neither HypoMlp nor HypoNerf"
    missing = [
        name
        for name in (*_OPTIONS[layout], "param_shapes", "params", "relu")
        if not hasattr(module, name)
    ]
    if missing:
        return f"it has no {', '.join(missing)}"
    if not _is_relu(module.relu):
        return f"its activation is {type(module.relu).__name__}, not ReLU"
    options = {name: getattr(module, name) for name in _OPTIONS[layout]}
    shapes = {name: tuple(shape) for name, shape in dict(module.param_shapes).items()}
    try:
        spec = _spec(layout, options, shapes)
        expected = layer_names(spec, layout)
    except (TypeError, ValueError) as error:
        return f"ginr_fast has no such field: {error}"
    sizes = [(columns + 1, rows) for rows, columns in spec.layer_shapes]
    if shapes != dict(zip(expected, sizes, strict=True)):
        return f"its layers are {shapes}"
    return HypoField(spec, layout, tuple(expected), tuple(options.items()))


def _spec(
    layout: Format, options: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> FieldSpec:
    depth, views = options["depth"], bool(options.get("use_viewdirs"))
    if depth < 2:
        raise ValueError(f"depth: expected at least 2, got {depth}")
    fan_in, width = shapes["wb0"]
    coord_dim, encoding = fan_in - 1, None
    if options["use_pe"]:
        count = options["pe_dim"] // 2
        coord_dim //= options["pe_dim"]
        if layout == "trans_inr":
            encoding = FourierEncoding.log_spaced(count, options["pe_sigma"])
        else:
            encoding = FourierEncoding.log_spaced(count, 2.0**_NERF_OCTAVES, scale=1.0)
    nerf = layout == "trans_inr_nerf"
    return FieldSpec(
        coord_dim=coord_dim,
        out_dim=4 if nerf else shapes[f"wb{depth - 1}"][1],
        hidden_dim=width,
        hidden_layers=depth - 2,
        encoding=encoding,
        view_dim=width // 2 if views else 0,
    )


def match_field(module: Any) -> Match | str:
    """How a ``HypoMlp`` or ``HypoNerf`` runs on ginr_fast, or why it cannot."""
    known = field_of(module)
    if isinstance(known, str):
        return known
    if known.layout == "trans_inr" and not _is_number(getattr(module, "out_bias", None)):
        return "its out_bias is not a number"
    spec = known.spec
    call = _mlp_forward if known.layout == "trans_inr" else _nerf_forward
    words = f"field_mlp: {spec.layers} layers, width {spec.hidden_dim}"
    return Match(
        words + (", view branch" if spec.view_dim else ""),
        {"forward": functools.partial(call, known)},
        (_field_probe(known),),
        known,
    )


def _is_relu(activation: object) -> bool:
    return isinstance(activation, nn.ReLU) and own_forward(activation, nn.ReLU)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mlp_forward(known: HypoField, module: Any, original: FastMethod, x: Tensor) -> Tensor:
    matrices, shift = known.matrices(module), module.out_bias
    if matrices is None or not _is_number(shift) or not serves(x.shape[0], (x,), matrices):
        return original(x)
    rows = packed_rows(matrices, x.shape[0], out_bias=shift)
    return field_mlp(at_points(x), rows, known.spec).reshape(*x.shape[:-1], known.spec.out_dim)


def _nerf_forward(
    known: HypoField,
    module: Any,
    original: FastMethod,
    x: Tensor,
    viewdirs: Tensor | None = None,
) -> Tensor:
    matrices = known.matrices(module)
    views = viewdirs if known.spec.view_dim else None
    if matrices is None or not serves(x.shape[0], _present(x, views), matrices):
        return original(x, viewdirs)
    if known.spec.view_dim and (views is None or views.shape != x.shape):
        return original(x, viewdirs)
    rows = packed_rows(matrices, x.shape[0])
    at = None if views is None else at_points(views)
    return field_mlp(at_points(x), rows, known.spec, at).reshape(*x.shape[:-1], known.spec.out_dim)


def _present(x: Tensor, views: Tensor | None) -> tuple[Tensor, ...]:
    return (x,) if views is None else (x, views)


def _field_probe(known: HypoField) -> Probe:
    spec, shape = known.spec, (_PROBE_BATCH, _PROBE_POINTS)
    parameters = {
        name: drawn(_PROBE_BATCH, columns + 1, rows, seed=index, scale=(2 / columns) ** 0.5)
        for index, (name, (rows, columns)) in enumerate(
            zip(known.names, spec.layer_shapes, strict=True)
        )
    }
    points = drawn(*shape, spec.coord_dim, seed=100, scale=0.3)
    views = (drawn(*shape, 3, seed=101),) if spec.view_dim else ()
    return Probe(arguments=(points, *views), attributes={"params": parameters})
