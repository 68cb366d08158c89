"""What published renderers do differently, as parameters; and what a rendering needs to know."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast, get_args

from torch import Tensor

ColorActivation = Literal["none", "sigmoid"]
DensityActivation = Literal["relu", "shifted_elu", "none"]
Jitter = Literal["midpoints", "forward"]

_FLOAT32_MAX = 3.4e38


class RenderedRays(NamedTuple):
    """What a ray sees.

    Args:
        color: ``(..., C)``.
        opacity: ``(...)``, the light that does not come from behind, Σ w.
        depth: ``(...)``, Σ w t, in units of the ray's direction; not divided by the opacity.
    """

    color: Tensor
    opacity: Tensor
    depth: Tensor


@dataclass(frozen=True)
class RenderConvention:
    """How samples of a field become the colour of a ray.

    With t_k the samples' positions, ``δ_k = (t_{k+1} − t_k)·s``, the last one ``last_interval·s``,
    s = ‖d‖ or 1, ``e_k = exp(−σ_k δ_k)``, ``T_0 = 1``, ``T_{k+1} = T_k (e_k + epsilon)`` and
    ``w_k = T_k (1 − e_k)``: colour Σ w c (+ 1 − Σ w on white), opacity Σ w, depth Σ w t.

    Args:
        color: of the field's first components: "sigmoid", or "none".
        density: of the field's last component x: "relu"; "shifted_elu",
            ``min(ELU(x; 0.1) + 0.1, 10)`` (Functa, mNIF); or "none".
        last_interval: behind the last sample, before scaling.
        scale_by_norm: whether intervals are multiplied by ‖d‖.
        white_background: whether light from behind is white, else black.
        epsilon: added to e, so that opaque samples pass a gradient.
        jitter: "midpoints": a sample moves between the midpoints to its neighbours (stratified);
            "forward": by up to one interval away from the camera.

    Raises:
        ValueError, TypeError: an argument out of range, by name.
    """

    color: ColorActivation = "sigmoid"
    density: DensityActivation = "relu"
    last_interval: float = 1e10
    scale_by_norm: bool = True
    white_background: bool = True
    epsilon: float = 1e-10
    jitter: Jitter = "midpoints"

    _key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for argument, kind in (
            ("color", ColorActivation),
            ("density", DensityActivation),
            ("jitter", Jitter),
        ):
            choices, got = get_args(kind), getattr(self, argument)
            if got not in choices:
                raise ValueError(f"{argument}: expected one of {', '.join(choices)}, got {got!r}")
        for argument in ("scale_by_norm", "white_background"):
            if not isinstance(getattr(self, argument), bool):
                got = getattr(self, argument)
                raise TypeError(f"{argument}: expected True or False, got {got!r}")
        for argument in ("last_interval", "epsilon"):
            value = getattr(self, argument)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"{argument}: expected a number, got {value!r}")
            if not 0 <= value <= _FLOAT32_MAX:
                raise ValueError(f"{argument}: expected a finite number from 0 up, got {value}")

        # Made here: torch.compile may not know the numbers.
        key = (
            f"{self.color} {self.density} {self.last_interval!r} {self.scale_by_norm} "
            f"{self.white_background} {self.epsilon!r} {self.jitter}"
        )
        object.__setattr__(self, "_key", key)

    @property
    def key(self) -> str:
        """The convention as a string, from which :meth:`from_key` makes it again."""
        return self._key

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def from_key(key: str) -> RenderConvention:
        """The convention that has this :attr:`key`."""
        color, density, last, by_norm, white, epsilon, jitter = key.split()
        return RenderConvention(
            color=cast(ColorActivation, color),
            density=cast(DensityActivation, density),
            last_interval=float(last),
            scale_by_norm=by_norm == "True",
            white_background=white == "True",
            epsilon=float(epsilon),
            jitter=cast(Jitter, jitter),
        )


CONVENTIONS: Mapping[str, RenderConvention] = {
    "mnif": RenderConvention(color="none", density="shifted_elu"),
    "functa": RenderConvention(color="none", density="shifted_elu", last_interval=1e-3),
    "trans_inr": RenderConvention(last_interval=1e-3, scale_by_norm=False, jitter="forward"),
    "nerf": RenderConvention(white_background=False),
}
"""The conventions of published code: mNIF; Functa as mNIF's code offers it; TransINR (after
LearnIt); NeRF (arXiv 2003.08934)."""


def convention_of(value: str | RenderConvention) -> RenderConvention:
    """A convention, or the one of that name.

    Raises:
        ValueError: no such name. TypeError: neither.
    """
    if isinstance(value, RenderConvention):
        return value
    if not isinstance(value, str):
        kind = type(value).__name__
        raise TypeError(f"convention: expected a name or a RenderConvention, got {kind}")
    if value not in CONVENTIONS:
        names = ", ".join(CONVENTIONS)
        raise ValueError(f"convention: expected one of {names}, got {value!r}")
    return CONVENTIONS[value]


@dataclass(frozen=True)
class Rendering:
    """A convention with the samples of a call."""

    convention: RenderConvention
    near: float
    far: float
    samples: int
    seed: int | None = None
