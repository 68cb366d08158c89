"""Which exact foldings pay for a call of ``locality_decode``: counted, not guessed.

All counts are multiply-adds. ``B`` instances, ``N`` coordinates each, ``R`` tokens, ``H`` heads of
width ``dq`` (keys) and ``dv`` (values), ``L`` bands of width ``d``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call."""

    batch: int
    coordinates: int
    tokens: int
    heads: int
    key_dim: int
    value_dim: int
    query_width: int
    width: int
    levels: int
    out_dim: int
    query_features: int
    features: int
    shared: bool
    """One set of coordinates serves the whole batch."""
    grid_points: int
    """Σ of the axis lengths of a separable grid; 0 without one."""
    coord_dim: int
    """Coordinates of a point: an axis table needs 1/c of the features."""
    projected: bool
    """The queries pass a projection."""
    modulated: bool
    """Values pass W_m (and W_o)."""
    attention_output: int
    """Rows of W_o; 0 without one."""

    @property
    def coordinate_sets(self) -> int:
        """How many times the coordinate features are computed."""
        return 1 if self.shared else self.batch


@dataclass(frozen=True)
class Foldings:
    """What to fold: ``keys`` takes the query projection into the keys, ``values`` takes W_m into
    the values."""

    keys: bool
    values: bool


def _query_cost(s: Sizes, fold: bool) -> int:
    """Projection and logits, with or without the projection folded into the keys."""
    projection = s.query_width * s.heads * s.key_dim
    points = s.batch * s.coordinates
    if fold:
        per_instance = s.tokens * projection  # every key, through its head's projection
        return s.batch * per_instance + points * s.heads * s.tokens * s.query_width
    projected = s.coordinate_sets * s.coordinates * projection if s.projected else 0
    return projected + points * s.heads * s.tokens * s.key_dim


def _value_cost(s: Sizes, fold: bool) -> int:
    """Weighted sum of the values and modulation, with or without W_m folded into the values."""
    points = s.batch * s.coordinates
    modulation = s.heads * s.value_dim * s.levels * s.width
    if fold:
        return s.batch * s.tokens * modulation + points * s.heads * s.tokens * s.levels * s.width
    return points * (s.tokens * s.heads * s.value_dim + (modulation if s.modulated else 0))


def choose_foldings(s: Sizes) -> Foldings:
    """The cheapest foldings for these sizes."""
    return Foldings(
        keys=s.projected and _query_cost(s, True) < _query_cost(s, False),
        values=s.modulated and _value_cost(s, True) < _value_cost(s, False),
    )


def executed_multiply_adds(s: Sizes, f: Foldings) -> int:
    """Multiply-adds of the forward pass as the blocked backend runs it."""
    inputs = s.query_width * s.query_features + s.levels * s.width * s.features
    if s.grid_points:
        features = inputs // s.coord_dim * s.grid_points
    else:
        features = inputs * s.coordinate_sets * s.coordinates
    tail = (s.levels - 1) * s.width**2 + s.levels * s.width * s.out_dim
    return (
        features
        + _query_cost(s, f.keys)
        + _value_cost(s, f.values)
        + s.batch * s.coordinates * tail
    )


def naive_multiply_adds(s: Sizes) -> int:
    """Multiply-adds of the published formula: everything for every coordinate of every instance."""
    attended = s.heads * s.value_dim
    modulated = s.attention_output or attended
    return (
        s.batch
        * s.coordinates
        * (
            s.query_width * s.query_features
            + (s.query_width * s.heads * s.key_dim if s.projected else 0)
            + s.tokens * (s.heads * s.key_dim + attended)
            + attended * s.attention_output
            + (s.levels * s.width * modulated if s.modulated else 0)
            + s.levels * s.width * s.features
            + (s.levels - 1) * s.width**2
            + s.levels * s.width * s.out_dim
        )
    )


def describe(s: Sizes, f: Foldings) -> tuple[str, ...]:
    """The foldings in words."""
    lines = []
    if s.shared and s.batch > 1:
        lines.append(f"shared coordinates: queries and features once, not {s.batch} times")
    if s.grid_points:
        lines.append(f"separable grid: {s.grid_points} feature rows instead of {s.coordinates}")
    if s.attention_output:
        lines.append("attention output projection folded into the modulation weights")
    if f.keys:
        lines.append("query projection folded into the keys")
    if f.values:
        lines.append("modulation weights folded into the values")
    return tuple(lines)
