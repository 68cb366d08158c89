"""Random shapes, dtypes, strides and settings thrown at the operators of fields.

Every call raises TypeError, ValueError or BackendError, or agrees with the reference in float64; a
call with nothing wrong in it never raises. GINR_FAST_FUZZ_CASES sets how many calls are made.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from field_cases import NATIVE, engine, make_weights, relative_error, threads
from torch import Tensor

import ginr_fast
from ginr_fast import (
    BackendError,
    FieldSpec,
    FourierEncoding,
    OccupancyGrid,
    RaySeed,
    RenderConvention,
)
from ginr_fast.ops.volume_render.convention import CONVENTIONS

CASES = int(os.environ.get("GINR_FAST_FUZZ_CASES", "300"))
PARTS = 10
ENGINES = [*NATIVE, "native", "blocked", "reference"]
WRONG_DTYPES = (torch.int64, torch.bool, torch.complex64, torch.float16, torch.float64)
HALF = (torch.float16, torch.bfloat16)


@dataclass
class Case:
    """A call: a function of tensors; and whether anything in it is wrong on purpose."""

    random: random.Random
    generator: torch.Generator
    log: list[str] = field(default_factory=list)
    wrong: bool = False

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def size(self) -> int:
        return self.random.choice([0, 1, 1, 2, 3, 5, 7, 16, 31, 64, 65, 70])

    def tensor(self, name: str, value: Tensor) -> Tensor:
        """The tensor as it is to be given: perhaps of another dtype or shape, of any strides."""
        if self.chance(0.05):
            self.wrong = True
            value = value.to(self.random.choice(WRONG_DTYPES))
        if self.chance(0.06):
            self.wrong = True
            value = self.misshapen(value)
        elif self.chance(0.03) and value.numel() and value.is_floating_point():
            value = value.clone()
            value.view(-1)[self.random.randrange(value.numel())] = self.random.choice(
                [math.nan, math.inf, -math.inf, 1e30, -1e30]
            )
        value = self.strange(value)
        self.log.append(f"{name}: {value.dtype} {tuple(value.shape)} {value.stride()}")
        return value

    def misshapen(self, value: Tensor) -> Tensor:
        choice = self.random.randrange(5)
        if choice == 0:
            return value[..., :-1]
        if choice == 1:
            return value.unsqueeze(self.random.randrange(value.ndim + 1))
        if choice == 2 and value.ndim and value.shape[0]:
            return value[0]
        if choice == 3:
            return value[:0]
        return torch.cat((value, value), dim=self.random.randrange(max(value.ndim, 1)))

    def strange(self, value: Tensor) -> Tensor:
        """The same numbers (or some of them repeated) in another layout."""
        choice = self.random.randrange(6)
        if value.ndim == 0 or choice < 2:
            return value.clone()
        if choice == 2:  # transposed storage
            order = list(range(value.ndim))
            self.random.shuffle(order)
            back = [order.index(axis) for axis in range(value.ndim)]
            return value.permute(order).contiguous().permute(back)
        if choice == 3:  # every other one of a wider tensor, from an offset on
            wide = value.new_zeros([2 * size + 3 for size in value.shape])
            part = wide[tuple(slice(1, 2 * size + 1, 2) for size in value.shape)]
            part.copy_(value)
            return part
        axis = self.random.randrange(value.ndim)
        if choice == 4:  # one slice for all
            return value.narrow(axis, 0, min(1, value.shape[axis])).expand(value.shape)
        flat = value.flatten()  # rows that overlap
        strides = [self.random.choice([0, 1, 2]) for _ in value.shape]
        reach = sum(s * max(n - 1, 0) for s, n in zip(strides, value.shape, strict=True))
        return flat.as_strided(value.shape, strides) if reach < flat.numel() else value

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def dtype(self) -> torch.dtype:
        return self.random.choice([torch.float32] * 6 + [torch.float64, *HALF])

    def spec(self, **changes: Any) -> FieldSpec:
        pick = self.random.choice
        values: dict[str, Any] = {
            "coord_dim": pick([1, 2, 3, 6]),
            "out_dim": pick([1, 2, 4, 9]),
            "hidden_dim": pick([1, 2, 5, 7, 16, 33, 64]),
            "hidden_layers": pick([0, 0, 1, 2, 3]),
            "activation": pick(["relu", "sine", "none"]),
            "w0": pick([0.5, 5.0, 30.0]),
            "bias": pick([True, True, False]),
            "out_activation": pick(["none", "none", "relu", "sine"]),
            "encoding": pick([None, None, FourierEncoding((1.0, 9.5, 33.0))]),
            **changes,
        }
        spec = FieldSpec(**values)
        self.log.append(str(spec))
        return spec


def field_mlp(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    view = case.chance(0.15)
    spec = case.spec(**({"view_dim": 3, "out_dim": 4} if view else {}))
    batch, count = case.random.choice([0, 1, 2, 3, 20]), case.size()
    weights = case.tensor("weights", make_weights(spec, batch).to(case.dtype()))
    shape = case.random.choice(
        [(batch, count, spec.coord_dim), (1, count, spec.coord_dim), (count, spec.coord_dim)]
    )
    coords = case.tensor("coords", case.randn(*shape))
    if not view:
        return lambda v, w: ginr_fast.field_mlp(v, w, spec), [coords, weights]
    directions = case.tensor("directions", case.randn(*shape[:-1], 3))
    return lambda v, w, d: ginr_fast.field_mlp(v, w, spec, d), [coords, weights, directions]


def convention_of(case: Case) -> str | RenderConvention:
    if case.chance(0.5):
        return case.random.choice(list(CONVENTIONS))
    pick = case.random.choice
    rule = RenderConvention(
        color=pick(["none", "sigmoid"]),
        density=pick(["relu", "shifted_elu"]),
        last_interval=pick([0.0, 1e-3, 0.5, 1e10]),
        scale_by_norm=pick([True, False]),
        white_background=pick([True, False]),
        epsilon=pick([0.0, 1e-10, 1e-3]),
        jitter=pick(["midpoints", "forward"]),
    )
    case.log.append(str(rule))
    return rule


def rays_of(case: Case, spec: FieldSpec) -> tuple[list[Tensor], dict[str, Any]]:
    batch = case.random.choice([0, 1, 2, 3, 20])
    between = case.random.choice([(case.size(),), (), (2, 3)])
    origins = case.tensor("origins", case.randn(batch, *between, 3))
    directions = case.tensor("directions", case.randn(batch, *between, 3))
    weights = case.tensor("weights", make_weights(spec, batch).to(case.dtype()))
    settings = {
        "near": case.random.choice([0.0, 0.8, -1.0]),
        "far": case.random.choice([1.0, 2.5]),
        "samples": case.random.choice([1, 2, 3, 7, 32, 65]),
        "convention": convention_of(case),
        "seed": case.random.choice([None, 0, 12, (1 << 63) - 1]),
    }
    if case.chance(0.3):
        first = [case.random.choice([0, 7, (1 << 32) - 2, (1 << 63) - 1]) for _ in range(batch)]
        settings["seed"] = RaySeed(5, torch.tensor(first, dtype=torch.int64))
    if case.chance(0.1):
        case.wrong = True
        settings.update(
            case.random.choice(
                [
                    {"near": math.nan},
                    {"far": -7.0},
                    {"samples": 0},
                    {"samples": 1 << 70},
                    {"samples": 2.0},
                    {"seed": -1},
                    {"seed": 1 << 64},
                    {"seed": RaySeed(5, torch.zeros(batch + 1, dtype=torch.int64))},
                    {"convention": "nothing"},
                    {"near": 1e300, "far": 1e301},
                ]
            )
        )
    case.log.append(str(settings))
    return [origins, directions, weights], settings


def volume_render(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    spec = case.spec(coord_dim=3, out_dim=case.random.choice([2, 4, 6]))
    tensors, settings = rays_of(case, spec)
    return lambda o, d, w: ginr_fast.volume_render(o, d, w, spec, **settings), tensors


def composite(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    rays = case.random.choice([(), (case.size(),), (2, 5), (0, 3)])
    samples, channels = case.random.choice([1, 2, 7, 32, 65, 130]), case.random.choice([1, 3, 5])
    values = case.tensor("values", case.randn(*rays, samples, channels + 1).to(case.dtype()))
    positions = (0.02 + case.randn(*rays, samples).abs() / samples).cumsum(-1)
    if case.chance(0.3):
        positions = positions.new_tensor([0.1 * k for k in range(samples)])
    positions = case.tensor("t", positions)
    directions = case.tensor("directions", case.randn(*rays, 3))
    rule = convention_of(case)
    return lambda v, t, d: ginr_fast.composite(v, t, d, rule), [values, positions, directions]


def mixture_average(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    spec, dtype = case.spec(), case.dtype()
    batch, mixtures = case.random.choice([0, 1, 2, 8, 17]), case.random.choice([1, 2, 5, 33])
    coefficients = case.tensor("coefficients", case.randn(batch, spec.layers, mixtures).to(dtype))
    bases = [
        case.tensor(f"bases[{index}]", case.randn(mixtures, *slot.shape).to(dtype))
        for index, slot in enumerate(spec.slots)
    ]
    return lambda a, *b: ginr_fast.mixture_average(a, b, spec), [coefficients, *bases]


def group_weights(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    spec, dtype, pick = case.spec(), case.dtype(), case.random.choice
    batch, layers, layout = pick([0, 1, 2, 8]), spec.layers, pick(["blocks", "tiled"])
    counts = [pick([n for n in range(1, r + 1) if r % n == 0]) for r, _ in spec.layer_shapes]
    shapes = [(batch, n, fan) for n, (_, fan) in zip(counts, spec.layer_shapes, strict=True)]
    shapes += [*spec.layer_shapes, *((rows,) for rows, _ in spec.layer_shapes if spec.bias)]
    case.log.append(layout)
    tensors = [case.tensor(str(i), case.randn(*s).to(dtype)) for i, s in enumerate(shapes)]

    def call(*given: Tensor) -> Tensor:
        biases = given[2 * layers :] if spec.bias else None
        groups, bases = given[:layers], given[layers : 2 * layers]
        return ginr_fast.group_weights(groups, bases, spec, biases=biases, layout=layout)

    return call, tensors


def low_rank_weights(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    spec, dtype, pick = case.spec(), case.dtype(), case.random.choice
    batch, rank, layer = pick([0, 1, 2, 8]), pick([1, 2, 7, 33]), pick(range(spec.layers))
    settings = {"layer": layer, "normalize": pick([True, False])}
    rows, fan_in = spec.layer_shapes[layer]
    shared = [slot.shape for slot in spec.slots if (slot.layer, slot.kind) != (layer, "weight")]
    shapes = [(batch, rank, fan_in), (rows, rank), *shared]
    case.log.append(str(settings))
    tensors = [case.tensor(str(i), case.randn(*s).to(dtype)) for i, s in enumerate(shapes)]
    return lambda v, u, *p: ginr_fast.low_rank_weights(v, u, p, spec, **settings), tensors


OPERATORS = [
    field_mlp,
    volume_render,
    composite,
    mixture_average,
    group_weights,
    low_rank_weights,
]


@contextmanager
def products(precision: str) -> Iterator[None]:
    """PyTorch's precision of float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def outcome(
    function: Callable[..., Any], tensors: Sequence[Tensor], name: str, gradients: bool
) -> list[Tensor]:
    """Outputs, and perhaps the gradients of all tensors that can have one."""
    leaves = [t.detach() for t in tensors]
    for leaf in leaves:
        leaf.requires_grad_(gradients and leaf.is_floating_point())
    with engine(name) if name else threads(torch.get_num_threads()):
        out = function(*leaves)
        outputs = [out] if isinstance(out, Tensor) else list(out)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not wanted or not any(o.requires_grad for o in outputs):
            return outputs
        generator = torch.Generator().manual_seed(0)
        cotangents = [
            torch.randn(o.shape, generator=generator).bfloat16().to(o.dtype) for o in outputs
        ]
        grads = torch.autograd.grad(outputs, wanted, cotangents, materialize_grads=True)
    return [*(o.detach() for o in outputs), *grads]


def run_case(number: int) -> str:
    """Make one call; what became of it."""
    case = Case(random.Random(number), torch.Generator().manual_seed(number))
    operator = case.random.choice(OPERATORS)
    function, tensors = operator(case)
    name = case.random.choice([*ENGINES, *[""] * 6])
    gradients, count = case.chance(0.5), case.random.choice([1, 2, 3, 8])
    high = case.chance(0.3)
    told = "\n".join(
        [
            f"case {number}: {operator.__name__}, engine {name!r}, {count} threads, high: {high}",
            *case.log,
        ]
    )
    try:
        with threads(count), products("high" if high else "highest"):
            got = outcome(function, tensors, name, gradients)
    except BackendError:
        assert name, f"{told}\nrefused by every backend"
        return "refused"
    except (TypeError, ValueError) as error:
        assert case.wrong, f"{told}\nrefused: {error}"
        return "wrong"
    except Exception as error:
        raise AssertionError(f"{told}\nan unnamed error: {error!r}") from error
    plain = [t.contiguous() for t in tensors]
    exact = [t.double() if t.is_floating_point() else t for t in plain]
    want = outcome(function, exact, "reference", gradients)
    assert all(a.shape == b.shape for a, b in zip(got, want, strict=True)), told
    coarse = any(t.dtype in HALF for t in tensors)
    own = outcome(function, plain, "reference", gradients)
    if not all(w.isfinite().all() and w.abs().max() < 1e20 for w in [*want, *own] if w.numel()):
        return "not finite"
    scale = max(w.norm().item() for w in want) if want else 0.0
    for index, (result, own_result, expected) in enumerate(zip(got, own, want, strict=True)):
        assert result.isfinite().all(), told
        # Gradients at the kink of a ReLU may go either way.
        limit = 8e-2 if coarse else 1e-4 if index < len(got) - len(tensors) * gradients else 5e-3
        limit = max(limit, 4 * relative_error(own_result, expected))
        near = (result.double() - expected).norm().item() <= limit * max(1e-3 * scale, 1e-12)
        error = relative_error(result, expected)
        assert near or error <= limit, f"{told}\noutput {index} is off by {error:.2g}"
    return "right"


@pytest.mark.parametrize("part", range(PARTS))
def test_an_error_or_a_right_answer(part):
    seen = [run_case(number) for number in range(part, CASES, PARTS)]
    if len(seen) >= 20:  # most calls are good ones
        assert seen.count("right") > len(seen) / 4 and seen.count("wrong") > 0


@pytest.mark.parametrize("part", range(PARTS))
def test_occupancy_grids(part):
    """Grids made by hand are checked like any other argument; those that fit are honoured."""
    for number in range(part, CASES // 4, PARTS):
        case = Case(random.Random(-1 - number), torch.Generator().manual_seed(number))
        spec = case.spec(coord_dim=3, out_dim=4)
        tensors, settings = rays_of(case, spec)
        resolution = case.random.choice([1, 2, 3, 7, 16])
        words = -(-(resolution**3) // 32)
        batch = tensors[2].shape[0] if tensors[2].ndim else 1
        bits = torch.full((batch, words), -1, dtype=torch.int32)
        if case.chance(0.4):
            bits = case.random.choice(
                [bits[:, :-1], bits[:1], bits.long(), bits.float(), bits[0:0], bits.flatten(), None]
            )
        elif case.chance(0.5):
            bits = case.strange(bits)
        corners = case.random.choice([(-1.0, 1.0), (-0.1, 0.1), (1.0, 1.0 + 1e-12), (-1e38, 1e38)])
        told = f"case {number}: R = {resolution}\n" + "\n".join(case.log)
        try:
            low, high = ((corner,) * 3 for corner in corners)
            grid = OccupancyGrid(bits, resolution, low, high, case.random.choice([0.0, 0.0, 1e-3]))
            with torch.no_grad():
                got = ginr_fast.volume_render(*tensors, spec, **settings, occupancy=grid)
        except (TypeError, ValueError, BackendError):
            continue
        except Exception as error:
            raise AssertionError(f"{told}\nan unnamed error: {error!r}") from error
        if grid.stop == 0.0 and not case.wrong:
            with torch.no_grad():
                want = ginr_fast.volume_render(*tensors, spec, **settings)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True, msg=told)
