"""Fields: batches of small MLPs that share one static description and pack their weights."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from ginr_fast.ops.checks import check_tensor

Activation = Literal["relu", "sine", "none"]

_FLOAT32_MAX = 3.4e38
VIEW_COMPONENTS = 3
"""Components of a viewing direction."""


@dataclass(frozen=True)
class FourierEncoding:
    """Fourier features of a coordinate, the input of a field's first layer in place of the
    coordinate itself (TransINR, arXiv 2208.02801).

    For a coordinate ``v`` of d components and n angular frequencies ``ω`` the features are
    ``[cos(ω_j v_i) …, sin(ω_j v_i) …]``, i = 1..d outermost, j = 1..n innermost: 2·d·n in all.

    Args:
        frequencies: ω in radians a unit of the coordinate; finite.

    Raises:
        ValueError: no frequency, or one that is not finite.
    """

    frequencies: tuple[float, ...]

    def __post_init__(self) -> None:
        try:
            frequencies = tuple(float(frequency) for frequency in self.frequencies)
        except (TypeError, ValueError):
            raise TypeError(
                f"frequencies: expected a sequence of numbers, got {self.frequencies!r}"
            ) from None
        if not frequencies or not all(math.isfinite(frequency) for frequency in frequencies):
            raise ValueError(f"frequencies: expected finite numbers, got {self.frequencies!r}")
        object.__setattr__(self, "frequencies", frequencies)

    @classmethod
    def log_spaced(cls, count: int, highest: float, scale: float = math.pi) -> FourierEncoding:
        """``count`` frequencies from ``scale`` to ``scale·highest``, evenly spaced in logarithm.

        Args:
            count: n, at least 1; TransINR uses 64 for images and 20 for radiance fields.
            highest: ratio of the last to the first, σ; 1024 for images, 2⁸ for radiance fields.
            scale: the first frequency; π for images, 1 for radiance fields.

        Raises:
            ValueError: ``count`` below 1, or ``highest`` or ``scale`` not positive.
        """
        _check_size("count", count, 1)
        for argument, value in (("highest", highest), ("scale", scale)):
            _check_positive(argument, value)
        steps = [index / max(count - 1, 1) for index in range(count)]
        return cls(tuple(scale * highest**step for step in steps))


@dataclass(frozen=True)
class ParameterSlot:
    """Where one parameter lies in a packed row: ``row[offset : offset + size].view(shape)``."""

    layer: int
    kind: Literal["weight", "bias"]
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class FieldSpec:
    """The static description of a field: an MLP from coordinates to values.

    A batch of B fields of one spec keeps its parameters *packed* in one ``(B, P)`` tensor: for each
    layer in order the weight ``(out, in)`` row-major, then the bias ``(out)`` if there is one.
    Layer i computes ``h ← activation(W h + b)``; the last one ``out_activation(W h + b)``.

    Args:
        coord_dim: components of a coordinate, d.
        out_dim: components of a value.
        hidden_dim: width W of the hidden layers.
        hidden_layers: how many W×W layers lie between the first and the last, so that there are
            ``hidden_layers + 2`` layers (mNIF's L; TransINR's "5-layer MLP" has three).
        activation: ``"relu"``, ``"sine"`` (``sin(w0·x)``) or ``"none"``, after every layer but the
            last.
        w0: frequency factor of the sine.
        bias: whether layers have a bias.
        out_activation: the same choices, after the last layer.
        encoding: Fourier features in front of the first layer; None feeds it the coordinate.
        view_dim: width of a branch for the viewing direction d, 0 for none (NeRF; TransINR has
            W/2). The value is then (colour, density): four layers take the place of the last one,
            in this order: the view ``v = activation(W d/‖d‖ + b)``, the density ``W h + b``, the
            colour's hidden layer ``activation(W [h, v] + b)`` of width W, and the colour.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, by name.

    Example:
        >>> import ginr_fast
        >>> spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=64, hidden_layers=4,
        ...                            activation="sine", w0=30.0)
        >>> spec.layers, spec.parameter_count
        (6, 17027)
    """

    coord_dim: int
    out_dim: int
    hidden_dim: int
    hidden_layers: int
    activation: Activation = "relu"
    w0: float = 30.0
    bias: bool = True
    out_activation: Activation = "none"
    encoding: FourierEncoding | None = None
    view_dim: int = 0

    _slots: tuple[ParameterSlot, ...] = field(init=False, repr=False, compare=False)
    _parameter_count: int = field(init=False, repr=False, compare=False)
    # Made at once: torch.compile cannot trace a property that is cached under a lock.
    _key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for argument in ("coord_dim", "out_dim", "hidden_dim"):
            _check_size(argument, getattr(self, argument), 1)
        _check_size("hidden_layers", self.hidden_layers, 0)
        _check_size("view_dim", self.view_dim, 0)
        if self.view_dim and self.out_dim < 2:
            raise ValueError(f"out_dim: expected a colour and a density, got {self.out_dim}")
        for argument in ("activation", "out_activation"):
            if getattr(self, argument) not in get_args(Activation):
                choices = ", ".join(get_args(Activation))
                got = getattr(self, argument)
                raise ValueError(f"{argument}: expected one of {choices}, got {got!r}")
        _check_positive("w0", self.w0)
        if not isinstance(self.bias, bool):
            raise TypeError(f"bias: expected True or False, got {self.bias!r}")
        if self.encoding is not None and not isinstance(self.encoding, FourierEncoding):
            raise TypeError(f"encoding: expected a FourierEncoding or None, got {self.encoding!r}")

        slots: list[ParameterSlot] = []
        offset = 0
        for layer, (rows, columns) in enumerate(self.layer_shapes):
            slots.append(ParameterSlot(layer, "weight", (rows, columns), offset, rows * columns))
            offset += rows * columns
            if self.bias:
                slots.append(ParameterSlot(layer, "bias", (rows,), offset, rows))
                offset += rows
        object.__setattr__(self, "_slots", tuple(slots))
        object.__setattr__(self, "_parameter_count", offset)
        object.__setattr__(self, "_key", self._as_key())

    @property
    def layers(self) -> int:
        """The number of layers: ``hidden_layers + 2``, and three more with a view branch."""
        return self.hidden_layers + (5 if self.view_dim else 2)

    @property
    def input_dim(self) -> int:
        """The fan-in of the first layer: coordinates, or their Fourier features."""
        if self.encoding is None:
            return self.coord_dim
        return 2 * self.coord_dim * len(self.encoding.frequencies)

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(out, in)`` of every layer's weight."""
        width = self.hidden_dim
        trunk = ((width, self.input_dim), *((width, width),) * self.hidden_layers)
        if not self.view_dim:
            return (*trunk, (self.out_dim, width))
        branch = ((self.view_dim, VIEW_COMPONENTS), (1, width), (width, width + self.view_dim))
        return (*trunk, *branch, (self.out_dim - 1, width))

    @property
    def slots(self) -> tuple[ParameterSlot, ...]:
        """Every parameter's place in a packed row, in order."""
        return self._slots

    @property
    def parameter_count(self) -> int:
        """P, the length of a packed row."""
        return self._parameter_count

    @property
    def key(self) -> str:
        """The spec as a string, from which :meth:`from_key` makes it again."""
        return self._key

    def _as_key(self) -> str:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        if self.encoding is not None:
            values["encoding"] = list(self.encoding.frequencies)
        return json.dumps(values)

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def from_key(key: str) -> FieldSpec:
        """The spec that has this :attr:`key`."""
        values = json.loads(key)
        if values["encoding"] is not None:
            values["encoding"] = FourierEncoding(tuple(values["encoding"]))
        return FieldSpec(**values)

    def pack(self, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        """Pack the parameters of B fields.

        Args:
            parameters: in layer order weight ``(B, out, in)``, bias ``(B, out)`` (if the spec has
                biases), next weight, …; one dtype and device.

        Returns:
            ``(B, P)``; differentiable.

        Raises:
            TypeError, ValueError: a wrong number, shape, dtype or device, by name.
        """
        _check_count("parameters", parameters, len(self.slots))
        first = check_tensor("parameters[0]", parameters[0], ("B", *self.slots[0].shape))
        rows = []
        for index, (slot, value) in enumerate(zip(self.slots, parameters, strict=True)):
            tensor = check_tensor(
                f"parameters[{index}]",
                value,
                (first.shape[0], *slot.shape),
                dtypes=[first.dtype],
                device=first.device,
            )
            rows.append(tensor.reshape(first.shape[0], slot.size))
        return torch.cat(rows, dim=1)

    def unpack(self, weights: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """The parameters of B fields as views of their packed rows.

        Args:
            weights: ``(B, P)``.

        Returns:
            For each layer ``(weight (B, out, in), bias (B, out) or None)``.

        Raises:
            TypeError, ValueError: not a tensor, or not ``(B, P)``.
        """
        check_tensor("weights", weights, ("B", self.parameter_count))
        # One split: the gradient of as many slices would be as many full-size tensors.
        parts = weights.split([slot.size for slot in self.slots], dim=1)
        views = [
            part.unflatten(1, slot.shape) for part, slot in zip(parts, self.slots, strict=True)
        ]
        if not self.bias:
            return [(view, None) for view in views]
        return list(zip(views[0::2], views[1::2], strict=True))


def _check_size(argument: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{argument}: expected at least {least}, got {value}")


def _check_positive(argument: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected a number, got {value!r}")
    if not 0 < value <= _FLOAT32_MAX:
        raise ValueError(f"{argument}: expected a positive number, got {value}")


def _check_count(argument: str, values: object, count: int) -> None:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{argument}: expected a sequence of tensors, got {type(values).__name__}")
    if len(values) != count:
        raise ValueError(f"{argument}: expected {count} tensors, got {len(values)}")
