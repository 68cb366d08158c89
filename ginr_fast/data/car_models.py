"""Parametric cars: proportions and colours drawn at random, solids built from them.

Lengths are in metres: x forwards, y to the left, z up, the road at z = 0. ``Car.scale`` brings a
car into a sphere of radius ½ about the origin, as ShapeNet's are.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import torch

from ginr_fast.data.raytrace import Hits, Paint, Solid, hull

Color = tuple[float, float, float]

_GLASS = (0.13, 0.16, 0.2)
_RUBBER = (0.1, 0.1, 0.11)
_PLASTIC = (0.17, 0.17, 0.18)
_LAMP = (0.97, 0.95, 0.8)
_TAIL_LAMP = (0.78, 0.07, 0.07)
_WHEEL_SIDES = 18

# length, width, height; where the bonnet ends and the boot begins as parts of the length;
# how far windscreen and rear window lean, as parts of the cabin's height.
# fmt: off
_KINDS: dict[str, tuple[tuple[float, float], ...]] = {
    "saloon": (
        (4.3, 5.0), (1.72, 1.9), (1.38, 1.5), (0.27, 0.32), (0.12, 0.2), (1.0, 1.4), (0.8, 1.3),
    ),
    "hatchback": (
        (3.5, 4.3), (1.6, 1.8), (1.42, 1.58), (0.22, 0.28), (0.0, 0.04), (0.8, 1.2), (0.3, 0.6),
    ),
    "estate": (
        (4.4, 4.9), (1.72, 1.88), (1.42, 1.55), (0.26, 0.31), (0.0, 0.03), (0.9, 1.3), (0.3, 0.6),
    ),
    "off-road": (
        (4.0, 4.9), (1.78, 2.0), (1.68, 1.95), (0.22, 0.28), (0.0, 0.03), (0.4, 0.8), (0.1, 0.4),
    ),
    "van": (
        (4.2, 5.1), (1.75, 2.0), (1.75, 2.05), (0.08, 0.16), (0.0, 0.02), (0.5, 0.9), (0.05, 0.2),
    ),
    "coupe": (
        (4.1, 4.7), (1.78, 1.96), (1.18, 1.32), (0.3, 0.36), (0.05, 0.12), (1.4, 1.9), (1.6, 2.4),
    ),
    "pick-up": (
        (4.8, 5.3), (1.8, 2.0), (1.62, 1.85), (0.24, 0.29), (0.34, 0.4), (0.6, 0.9), (0.1, 0.3),
    ),
}
# fmt: on
KINDS = tuple(_KINDS)


@dataclass(frozen=True)
class CarParameters:
    """What makes a car; lengths in metres.

    Args:
        kind: one of :data:`KINDS`.
        length, width, height: over all.
        clearance: from the road to the floor.
        belt: height of the windows' lower edge.
        nose: height of the bonnet at the front.
        tail: height of the body at the rear.
        cabin_front, cabin_rear: x of the windscreen's and rear window's lower edges.
        roof_front, roof_rear: x of their upper edges.
        roof_width: of the roof, as part of the width.
        wheel_radius, wheel_width: of each wheel.
        axle_front, axle_rear: x of the axles.
        color: of the body.
        roof_color: of roof and pillars.
        stripe: colour of a stripe from front to rear, or None.
        rim: grey level of the rims.
        spokes: of a rim.
    """

    kind: str
    length: float
    width: float
    height: float
    clearance: float
    belt: float
    nose: float
    tail: float
    cabin_front: float
    cabin_rear: float
    roof_front: float
    roof_rear: float
    roof_width: float
    wheel_radius: float
    wheel_width: float
    axle_front: float
    axle_rear: float
    color: Color
    roof_color: Color
    stripe: Color | None
    rim: float
    spokes: int


@dataclass(frozen=True)
class Car:
    """A car as solids.

    Args:
        solids: in metres.
        center: the point, in metres, that goes to the origin.
        scale: world units a metre.
    """

    solids: tuple[Solid, ...]
    center: torch.Tensor
    scale: float

    def to_metres(self, pose: torch.Tensor) -> torch.Tensor:
        """A camera's pose ``(4, 4)`` in world units as one around the solids."""
        moved = pose.clone()
        moved[:3, 3] = pose[:3, 3] / self.scale + self.center
        return moved


def draw_parameters(rng: np.random.Generator) -> CarParameters:
    """A random car."""
    kind = KINDS[rng.integers(len(KINDS))]
    length, width, height, bonnet, boot, screen, rear = (
        float(rng.uniform(*bounds)) for bounds in _KINDS[kind]
    )
    radius = float(rng.uniform(0.3, 0.34)) + (0.05 if kind in ("off-road", "pick-up") else 0.0)
    clearance = radius * float(rng.uniform(0.55, 0.7))
    belt = height * float(rng.uniform(0.56, 0.63))
    cabin_front = length * (0.5 - bonnet)
    cabin_rear = length * (boot - 0.5) + 0.06
    tall = height - belt
    color = _body_color(rng)
    two_tone = rng.random() < 0.2
    return CarParameters(
        kind=kind,
        length=length,
        width=width,
        height=height,
        clearance=clearance,
        belt=belt,
        nose=belt - float(rng.uniform(0.08, 0.2)),
        tail=belt - float(rng.uniform(0.0, 0.07)),
        cabin_front=cabin_front,
        cabin_rear=cabin_rear,
        roof_front=cabin_front - screen * tall,
        roof_rear=cabin_rear + rear * tall,
        roof_width=float(rng.uniform(0.68, 0.78)),
        wheel_radius=radius,
        wheel_width=float(rng.uniform(0.19, 0.25)),
        axle_front=length * float(rng.uniform(0.29, 0.33)),
        axle_rear=-length * float(rng.uniform(0.27, 0.32)),
        color=color,
        roof_color=_body_color(rng) if two_tone else color,
        stripe=_body_color(rng) if rng.random() < 0.15 else None,
        rim=float(rng.uniform(0.45, 0.9)),
        spokes=int(rng.integers(4, 8)),
    )


def build_car(parameters: CarParameters) -> Car:
    """The solids of a car."""
    p = parameters
    y = p.width / 2
    shapes = [(_body_points(p), _body_paint(p), 0.035), (_cabin_points(p), _cabin_paint(p), 0.03)]
    for axle in (p.axle_front, p.axle_rear):
        for side in (-1, 1):
            shapes.append((_wheel_points(p, axle, side), _wheel_paint(p, axle, side), 0.0))
    for side in (-1, 1):
        mirror = _box((p.cabin_front - 0.28, side * (y + 0.05), p.belt + 0.07), (0.07, 0.09, 0.06))
        shapes.append((mirror, _plain(p.color), 0.02))
    every = np.concatenate([points for points, _, _ in shapes])
    center = np.array([0.0, 0.0, (every[:, 2].min() + every[:, 2].max()) / 2])
    reach = np.linalg.norm(every - center, axis=1).max()
    return Car(
        tuple(hull(*shape) for shape in shapes),
        torch.from_numpy(center.astype(np.float32)),
        0.5 / float(reach),
    )


def _body_color(rng: np.random.Generator) -> Color:
    if rng.random() < 0.3:  # white, silver, grey, black
        level = float(rng.choice([0.92, 0.75, 0.5, 0.3, 0.18]))
        return level, level, level
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.55, 0.95), rng.uniform(0.5, 0.95))


def _body_points(p: CarParameters) -> np.ndarray:
    """Rings across the lower body: narrower at its ends, at the floor and at its upper edge."""
    x, y = p.length / 2, p.width / 2
    floor = p.clearance
    rings = [  # x, half width, lowest, highest
        (x, 0.72 * y, floor + 0.14, p.nose - 0.13),
        (x - 0.1, 0.88 * y, floor + 0.04, p.nose - 0.02),
        (x - 0.4, 0.98 * y, floor, p.nose + 0.03),
        (p.cabin_front, y, floor, p.belt),
        (p.cabin_rear, y, floor, p.belt),
        (0.35 - x, 0.98 * y, floor, p.tail),
        (0.1 - x, 0.9 * y, floor + 0.05, p.tail - 0.03),
        (-x, 0.78 * y, floor + 0.16, p.tail - 0.15),
    ]
    points = []
    for at, half, low, high in rings:
        for side in (-half, half):
            points += [
                (at, 0.9 * side, low),
                (at, side, low + 0.3 * (high - low)),
                (at, side, low + 0.72 * (high - low)),
                (at, 0.88 * side, high),
            ]
    return np.array(points)


def _cabin_points(p: CarParameters) -> np.ndarray:
    y, low, top = p.width / 2, p.belt - 0.05, p.height
    tall = top - low
    lean = (p.cabin_front - p.roof_front) / tall, (p.roof_rear - p.cabin_rear) / tall
    below = 0.07  # the roof's edge begins here
    roof = p.roof_width
    rings = [  # height, half width, front, rear
        (low, 0.9 * y, p.cabin_front + 0.05 * lean[0], p.cabin_rear - 0.05 * lean[1]),
        (
            top - below,
            (roof + 0.05) * y,
            p.roof_front + below * lean[0],
            p.roof_rear - below * lean[1],
        ),
        (top, (roof - 0.06) * y, p.roof_front - 0.08, p.roof_rear + 0.08),
    ]
    return np.array(
        [
            (x, side, height)
            for height, half, front, rear in rings
            for x in (front, rear)
            for side in (-half, half)
        ]
    )


def _wheel_points(p: CarParameters, axle: float, side: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(_WHEEL_SIDES) / _WHEEL_SIDES
    outer = side * (p.width / 2 + 0.015)
    points = []
    for depth, part in ((0.0, 0.9), (0.03, 1.0), (p.wheel_width, 1.0)):
        radius = part * p.wheel_radius
        x, z = axle + radius * np.cos(angles), p.wheel_radius + radius * np.sin(angles)
        points.append(np.stack([x, np.full_like(x, outer - side * depth), z], axis=1))
    return np.concatenate(points)


def _box(center: tuple[float, float, float], half: tuple[float, float, float]) -> np.ndarray:
    corners = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=float)
    return np.array(center) + corners * np.array(half)


def _plain(color: Color) -> Paint:
    return lambda hits: torch.tensor(color).expand(len(hits.points), 3)


def _over(colors: torch.Tensor, where: torch.Tensor, color: Color) -> torch.Tensor:
    return torch.where(where[:, None], torch.tensor(color), colors)


def _body_paint(p: CarParameters) -> Paint:
    length, width = p.length / 2, p.width / 2

    def paint(hits: Hits) -> torch.Tensor:
        x, y, z = hits.points.unbind(1)
        facing_x, facing_y, facing_z = hits.normals.unbind(1)
        colors = torch.tensor(p.color).expand(len(x), 3)
        if p.stripe is not None:
            colors = _over(colors, (y.abs() < 0.14 * p.width) & (facing_z > 0.3), p.stripe)
        colors = _over(colors, z < p.clearance + 0.09, _PLASTIC)
        front, rear = x > length - 0.22, x < 0.2 - length
        outside = y.abs() > 0.52 * width
        lamp = (z > p.nose - 0.24) & (z < p.nose - 0.09)
        colors = _over(colors, front & outside & lamp & (facing_z < 0.5), _LAMP)
        grille = (y.abs() < 0.42 * width) & (z > p.clearance + 0.14) & (z < p.nose - 0.16)
        colors = _over(colors, front & grille & (facing_x > 0.6), _RUBBER)
        tail_lamp = (z > p.tail - 0.3) & (z < p.tail - 0.1) & (y.abs() > 0.58 * width)
        colors = _over(colors, rear & tail_lamp, _TAIL_LAMP)
        for axle in (p.axle_front, p.axle_rear):
            from_axle = torch.hypot(x - axle, z - p.wheel_radius)
            arch = (from_axle < 1.16 * p.wheel_radius) & (facing_y.abs() > 0.5)
            colors = _over(colors, arch, _RUBBER)
        return _over(colors, facing_z < -0.9, _PLASTIC)

    return paint


def _cabin_paint(p: CarParameters) -> Paint:
    pillar = 0.5 * (p.axle_front + p.axle_rear) + 0.1

    def paint(hits: Hits) -> torch.Tensor:
        x, y, z = hits.points.unbind(1)
        sideways, upwards = hits.normals[:, 1].abs(), hits.normals[:, 2]
        colors = torch.tensor(p.roof_color).expand(len(x), 3)
        if p.stripe is not None:
            colors = _over(colors, (y.abs() < 0.14 * p.width) & (upwards > 0.8), p.stripe)
        glass = (hits.inset > 0.05) & (upwards < 0.95) & (z > p.belt + 0.03)
        glass &= ~((sideways > 0.6) & ((x - pillar).abs() < 0.045))
        if p.kind == "van":  # goods, not passengers
            glass &= ~((sideways > 0.6) & (x < pillar))
        return _over(colors, glass, _GLASS)

    return paint


def _wheel_paint(p: CarParameters, axle: float, side: int) -> Paint:
    def paint(hits: Hits) -> torch.Tensor:
        x, z = hits.points[:, 0] - axle, hits.points[:, 2] - p.wheel_radius
        part = torch.hypot(x, z) / p.wheel_radius
        colors = torch.tensor(_RUBBER).expand(len(x), 3)
        outside = hits.normals[:, 1] * side > 0.9
        colors = _over(colors, outside & (part < 0.66), (p.rim, p.rim, p.rim))
        gap = torch.cos(p.spokes * torch.atan2(z, x)) < -0.1
        hole = outside & gap & (part > 0.24) & (part < 0.54)
        return _over(colors, hole, _PLASTIC)

    return paint
