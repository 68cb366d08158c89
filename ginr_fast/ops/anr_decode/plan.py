"""What a call of ``anr_decode`` costs, and which exact foldings it uses.

All counts are multiply-adds. ``B`` instances, ``N`` coordinates each, ``R`` tokens, ``H`` heads of
width ``dq`` (keys) and ``dv`` (values), an MLP of ``depth`` layers of width ``d``.
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
    width: int
    """d; unused at depth 1."""
    depth: int
    out_dim: int
    features: int
    shared: bool
    """One set of coordinates serves the whole batch."""
    grid_points: int
    """Σ of the axis lengths of a separable grid; 0 without one."""
    coord_dim: int
    """Coordinates of a point: an axis table needs 1/c of the features."""
    attention_output: int
    """Rows of W_o; 0 without one."""

    @property
    def coordinate_sets(self) -> int:
        """How many times the queries are computed."""
        return 1 if self.shared else self.batch


def _attention_cost(s: Sizes) -> int:
    """Logits and weighted sum of the values, of one coordinate."""
    return s.heads * s.tokens * (s.key_dim + s.value_dim)


def _mlp_cost(s: Sizes, in_dim: int) -> int:
    """The MLP of one coordinate, from ``in_dim`` on."""
    if s.depth == 1:
        return in_dim * s.out_dim
    return in_dim * s.width + (s.depth - 2) * s.width**2 + s.width * s.out_dim


def executed_multiply_adds(s: Sizes) -> int:
    """Multiply-adds of the forward pass as the fast backends run it."""
    queries = s.features * s.heads * s.key_dim
    if s.grid_points:
        queries = queries // s.coord_dim * s.grid_points
    else:
        queries *= s.coordinate_sets * s.coordinates
    attended = s.heads * s.value_dim
    folding = (s.width if s.depth > 1 else s.out_dim) * s.attention_output * attended
    per_point = _attention_cost(s) + _mlp_cost(s, attended)
    return queries + folding + s.batch * s.coordinates * per_point


def naive_multiply_adds(s: Sizes) -> int:
    """Multiply-adds of the published formula: everything for every coordinate of every instance."""
    attended = s.heads * s.value_dim
    per_point = (
        s.features * s.heads * s.key_dim
        + _attention_cost(s)
        + attended * s.attention_output
        + _mlp_cost(s, s.attention_output or attended)
    )
    return s.batch * s.coordinates * per_point


def describe(s: Sizes) -> tuple[str, ...]:
    """The foldings in words."""
    lines = []
    if s.shared and s.batch > 1:
        lines.append(f"shared coordinates: queries once, not {s.batch} times")
    if s.grid_points:
        lines.append(f"separable grid: {s.grid_points} query rows instead of {s.coordinates}")
    if s.attention_output:
        layer = "first" if s.depth > 1 else "output"
        lines.append(f"attention output projection folded into the {layer} layer")
    return tuple(lines)
