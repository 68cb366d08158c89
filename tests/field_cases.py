"""What the tests of fields and their rendering share: specs, weights, inputs, backends, bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import ginr_fast
from ginr_fast import CoordinateGrid, FieldSpec, FourierEncoding
from ginr_fast.ops import native

# On the path amx wide fields take the tiles (test_split_fields.py), others the kernels of avx512.
NATIVE = [f"native {path}" for path in native.build_info()["cpu_paths_usable"] if path != "amx"]
ENGINES = [*NATIVE, "blocked", "reference"]
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 1.5e-2}
CHANNELS = ("color", "opacity", "depth")


@contextmanager
def engine(name: str) -> Iterator[None]:
    """A backend, and for the native one a vector path: ``"native avx2"``."""
    backend, _, path = name.partition(" ")
    native.force_cpu_path(path or None)
    try:
        with ginr_fast.backend(backend):
            yield
    finally:
        native._force_from_environment()


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_spec(**changes: Any) -> FieldSpec:
    """A small field; what is given changes it."""
    small = {"coord_dim": 2, "out_dim": 3, "hidden_dim": 16, "hidden_layers": 1}
    return FieldSpec(**{**small, **changes})


def make_weights(
    spec: FieldSpec, batch: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Weights under which activations keep their size from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for slot in spec.slots:
        bound = 0.3
        if slot.kind == "weight":
            fan_in = slot.shape[1]
            bound = math.sqrt({"relu": 6, "sine": 6, "none": 3}[spec.activation] / fan_in)
            if spec.activation == "sine":
                bound = 1 / fan_in if slot.layer == 0 and not spec.encoding else bound / spec.w0
        elif spec.activation == "sine":
            bound = 1 / spec.w0
        rows.append((torch.rand(batch, slot.size, generator=generator) * 2 - 1) * bound)
    return torch.cat(rows, dim=1).to(dtype)


KINDS = ("points", "one set", "unbatched", "repeated", "expanded", "grid")


def make_coords(kind: str, batch: int, count: int, dims: int) -> Tensor | CoordinateGrid:
    """``count`` random points, or a grid of about as many, in each way the library takes them."""
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(batch, count, dims, generator=generator) * 2 - 1
    if kind == "points":
        return points
    if kind == "one set":
        return points[:1]
    if kind == "unbatched":
        return points[0]
    if kind == "repeated":
        return points[:1].repeat(batch, 1, 1)
    if kind == "expanded":
        return points[:1].expand(batch, -1, -1)
    side = max(2, round(count ** (1 / dims)))
    return ginr_fast.grid(*(side + axis for axis in range(dims)))


def relative_error(got: Tensor, want: Tensor) -> float:
    if got.numel() == 0:
        return 0.0
    return ((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)).item()


def evaluate(
    function: Callable[..., Any], inputs: Sequence[Tensor], wanted: Sequence[int], name: str
) -> list[Tensor]:
    """The outputs of a function under an engine, then the gradients of the inputs ``wanted``, for
    random gradients of its outputs that every dtype can carry."""
    leaves = [x.detach() for x in inputs]
    for index in wanted:
        leaves[index].requires_grad_()
    with engine(name):
        outputs = function(*leaves)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        generator = torch.Generator().manual_seed(4)
        cotangents = [
            torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype) for out in outputs
        ]
        grads: Sequence[Tensor] = ()
        if wanted:
            leaves_wanted = [leaves[index] for index in wanted]
            grads = torch.autograd.grad(outputs, leaves_wanted, cotangents, materialize_grads=True)
    assert all(g.dtype == leaves[i].dtype for g, i in zip(grads, wanted, strict=True))
    assert all(g.shape == leaves[i].shape for g, i in zip(grads, wanted, strict=True))
    return [*(out.detach() for out in outputs), *grads]


def check_accuracy(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    name: str,
    limit: float,
    wanted: Sequence[int] | None = None,
    as_float32: bool = False,
) -> None:
    """Outputs and gradients against the reference in float64: gradients may be off five times as
    far. With ``as_float32`` the float32 reference's own error is allowed too, where it is larger:
    what rounding the phase of a sine costs, or that of 1 - exp(-x) for a thin sample."""
    wanted = range(len(inputs)) if wanted is None else wanted
    want = evaluate(function, [x.double() for x in inputs], wanted, "reference")
    got = evaluate(function, inputs, wanted, name)
    own = got
    if as_float32:
        own = evaluate(function, [x.float() for x in inputs], wanted, "reference")
    outputs = len(want) - len(wanted)
    largest = max((grad.norm().item() for grad in want[outputs:]), default=0.0)
    for index, (result, expected) in enumerate(zip(got, want, strict=True)):
        assert result.shape == expected.shape
        bound = limit if index < outputs else 5 * limit
        if as_float32:
            bound = max(bound, 1.5 * relative_error(own[index], expected))
        if index >= outputs and expected.norm().item() <= 1e-9 * largest:  # zero in theory
            assert result.double().norm().item() <= bound * largest, index
        else:
            assert relative_error(result, expected) <= bound, index


def has_phases(spec: FieldSpec) -> bool:
    return spec.encoding is not None or "sine" in (spec.activation, spec.out_activation)


ENCODING = FourierEncoding.log_spaced(7, 64)
EDGES: list[tuple[dict[str, Any], int, int]] = [
    # what changes the small spec, B, N: every value of the lists that kernels branch on
    ({"hidden_layers": 0, "hidden_dim": 1}, 3, 1),
    ({"hidden_layers": 0, "hidden_dim": 7, "activation": "sine"}, 1, 63),
    ({"hidden_layers": 1, "hidden_dim": 16, "activation": "none"}, 3, 64),
    ({"hidden_layers": 2, "hidden_dim": 64, "activation": "sine"}, 3, 65),
    ({"hidden_layers": 3, "hidden_dim": 100, "activation": "relu"}, 1, 65),
    ({"hidden_layers": 4, "hidden_dim": 64, "activation": "sine", "out_dim": 4}, 1, 1000),
    ({"hidden_layers": 5, "hidden_dim": 128, "activation": "sine"}, 1, 63),
    ({"hidden_layers": 3, "hidden_dim": 256, "activation": "relu", "encoding": ENCODING}, 1, 130),
    ({"hidden_layers": 1, "hidden_dim": 7, "activation": "relu", "bias": False}, 100, 65),
    ({"hidden_layers": 2, "hidden_dim": 7, "activation": "sine", "bias": False}, 100, 1),
    ({"hidden_layers": 0, "hidden_dim": 100, "activation": "none", "bias": False}, 3, 1000),
    ({"hidden_layers": 1, "activation": "sine", "out_activation": "sine"}, 3, 64),
    ({"hidden_layers": 1, "activation": "relu", "out_activation": "relu"}, 3, 64),
    ({"hidden_layers": 1, "activation": "relu", "out_activation": "sine"}, 3, 63),
    ({"hidden_layers": 1, "activation": "sine", "out_activation": "relu", "bias": False}, 3, 63),
    ({"hidden_layers": 1, "activation": "none", "out_activation": "sine", "w0": 5.0}, 3, 1),
    ({"hidden_layers": 2, "activation": "sine", "encoding": ENCODING, "w0": 2.0}, 3, 1000),
    ({"hidden_layers": 0, "activation": "none", "encoding": ENCODING, "bias": False}, 3, 65),
    ({"coord_dim": 1, "out_dim": 1, "hidden_layers": 1, "encoding": ENCODING}, 3, 65),
    ({"coord_dim": 6, "out_dim": 9, "hidden_layers": 1, "activation": "sine"}, 3, 65),
    ({"coord_dim": 3, "out_dim": 40, "hidden_dim": 19, "encoding": ENCODING}, 1, 200),
]
