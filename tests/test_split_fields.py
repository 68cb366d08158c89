"""Wide float32 fields on AMX's tiles, as products of three bfloat16 parts."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from field_cases import engine, make_spec, make_weights, relative_error, threads
from torch import Tensor

import ginr_fast
from ginr_fast import FieldSpec, FourierEncoding
from ginr_fast.ops import native

pytestmark = pytest.mark.skipif(
    "amx" not in native.build_info()["cpu_paths_usable"],
    reason="needs a processor with AMX, and an extension built for it",
)

ENCODING = FourierEncoding.log_spaced(40, 64.0)  # 160 features of two coordinates
SPECS = {
    "encoded": make_spec(hidden_dim=128, hidden_layers=2, encoding=ENCODING),
    "plain": make_spec(hidden_dim=112, hidden_layers=2),
    "padded": make_spec(hidden_dim=150, hidden_layers=1, encoding=ENCODING, bias=False),
    "sine": make_spec(hidden_dim=128, hidden_layers=2, activation="sine", w0=30.0),
    "linear": make_spec(hidden_dim=130, hidden_layers=1, activation="none"),
    "wide output": make_spec(hidden_dim=160, hidden_layers=1, out_dim=100, out_activation="sine"),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def run(
    path: str,
    spec: FieldSpec,
    coords: Tensor,
    weights: Tensor,
    wanted: Sequence[str] = ("weights", "coords"),
) -> list[Tensor]:
    """Values, and gradients of a weighted sum of them, on a vector path or ("") by the formula."""
    named = {"coords": coords.clone(), "weights": weights.clone()}
    inputs = [named[name].requires_grad_() for name in wanted]
    with engine(f"native {path}" if path else "reference"):
        values = ginr_fast.field_mlp(named["coords"], named["weights"], spec)
        cotangent = random(*values.shape[1:], seed=5).to(values).expand_as(values)
        return [values.detach(), *torch.autograd.grad(values, inputs, cotangent)]


@pytest.mark.parametrize("count", [512, 700])
@pytest.mark.parametrize("name", SPECS)
def test_more_exact_than_the_vector_units(name: str, count: int) -> None:
    spec = SPECS[name]
    coords, weights = random(2, count, 2), make_weights(spec, 2)
    exact = run("", spec, coords.double(), weights.double())
    tiles, vectors = (run(path, spec, coords, weights) for path in ("amx", "avx512"))
    assert not any(torch.equal(a, b) for a, b in zip(tiles, vectors, strict=True))
    for found, rival, wanted in zip(tiles, vectors, exact, strict=True):
        error = relative_error(found, wanted)
        # A unit near 0 may fall on the other side of a ReLU, at any precision.
        assert error <= max(relative_error(rival, wanted), 5e-6)
        if spec.activation != "relu":
            assert error <= 5e-6


def test_what_stays_with_the_vector_units() -> None:
    narrow = make_spec(hidden_dim=100, hidden_layers=2)
    for spec, count in ((narrow, 2048), (SPECS["encoded"], 511)):
        coords, weights = random(1, count, 2), make_weights(spec, 1)
        tiles, vectors = (run(path, spec, coords, weights) for path in ("amx", "avx512"))
        assert all(torch.equal(a, b) for a, b in zip(tiles, vectors, strict=True))


@pytest.mark.parametrize("wanted", ["weights", "coords"])
def test_gradients_apart(wanted: str) -> None:
    spec = SPECS["encoded"]
    coords, weights = random(2, 600, 2), make_weights(spec, 2)
    both = dict(zip(("weights", "coords"), run("amx", spec, coords, weights)[1:], strict=True))
    assert torch.equal(run("amx", spec, coords, weights, [wanted])[1], both[wanted])


@pytest.mark.parametrize("count", [2, 3])
def test_results_do_not_depend_on_the_number_of_threads(count: int) -> None:
    spec = SPECS["encoded"]
    coords, weights = random(1, 3000, 2), make_weights(spec, 3)
    with threads(1):
        alone = run("amx", spec, coords, weights)
    with threads(count):
        for _ in range(3):
            together = run("amx", spec, coords, weights)
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_more_instances_than_are_packed_at_a_time(shared: bool) -> None:
    # Five matrices of 256² in two orders and three parts: 21 instances are 64 MB.
    spec = make_spec(hidden_dim=256, hidden_layers=4, encoding=FourierEncoding.log_spaced(64, 64.0))
    coords, weights = random(1 if shared else 23, 512, 2), make_weights(spec, 23)
    together = run("amx", spec, coords, weights, ["weights"])
    for b in (0, 16, 20, 21, 22):
        alone = run("amx", spec, coords if shared else coords[b : b + 1], weights[b : b + 1])
        assert torch.equal(together[0][b : b + 1], alone[0])
        assert relative_error(together[1][b : b + 1], alone[1]) <= 1e-6  # cut into other parts


def test_nan_and_infinities() -> None:
    spec = make_spec(hidden_dim=128, hidden_layers=1, encoding=ENCODING)
    coords, weights = random(1, 600, 2), make_weights(spec, 2)
    coords[0, 37, 1] = math.nan
    weights[1, 5] = math.inf
    with engine("native amx"):
        values = ginr_fast.field_mlp(coords, weights, spec)
    assert values[0, 37].isnan().all() and not values[1].isfinite().all()
    others = torch.cat((values[0, :37], values[0, 38:]))
    assert others.isfinite().all()


def test_what_overflows_is_not_a_number_or_as_on_the_vector_units() -> None:
    spec = SPECS["encoded"]
    coords, weights = random(1, 600, 2), 1e25 * make_weights(spec, 1)
    found = {}
    for path in ("amx", "avx512"):
        with engine(f"native {path}"):
            found[path] = ginr_fast.field_mlp(coords, weights, spec)
    assert not found["avx512"].isfinite().any()
    assert not found["amx"].isfinite().any()


def test_the_path_may_change_during_a_backward() -> None:
    spec = SPECS["sine"]
    coords, weights = random(1, 4096, 2), make_weights(spec, 2)
    wanted = run("avx512", spec, coords, weights, ["weights"])[1]
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for path in ("avx512", "amx"):
                native.force_cpu_path(path)
                time.sleep(1e-4)

    other = threading.Thread(target=change)
    other.start()
    try:
        leaf = weights.clone().requires_grad_()
        for _ in range(20):
            with ginr_fast.backend("native"):
                values = ginr_fast.field_mlp(coords, leaf, spec)
                cotangent = random(*values.shape[1:], seed=5).expand_as(values)
                (found,) = torch.autograd.grad(values, leaf, cotangent)
            assert relative_error(found, wanted) <= 1e-4
    finally:
        done.set()
        other.join()
        native._force_from_environment()


def test_the_gradients_own_gradient() -> None:
    spec = SPECS["sine"]
    coords, weights = random(1, 600, 2), make_weights(spec, 2)

    def second(path: str, coords: Tensor, weights: Tensor) -> list[Tensor]:
        weights = weights.clone().requires_grad_()
        with engine(path):
            values = ginr_fast.field_mlp(coords, weights, spec)
            (of_weights,) = torch.autograd.grad(values.square().sum(), weights, create_graph=True)
            return list(torch.autograd.grad(of_weights.square().sum(), [weights]))

    exact = second("reference", coords.double(), weights.double())
    for found, wanted in zip(second("native amx", coords, weights), exact, strict=True):
        assert relative_error(found, wanted) <= 5e-5


@pytest.mark.parametrize("settings", [{}, {"seed": 3}], ids=["", "jitter"])
def test_rendering(settings: dict[str, Any]) -> None:
    spec = make_spec(coord_dim=3, out_dim=4, hidden_dim=128, hidden_layers=2, activation="sine")
    origins = random(2, 20, 3)
    directions, weights = random(2, 20, 3, seed=1), make_weights(spec, 2)

    def rendered(path: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = [t.to(dtype).requires_grad_() for t in (origins, directions, weights)]
        with engine(path):
            out = ginr_fast.volume_render(
                *inputs, spec, near=0.5, far=2.0, samples=40, convention="mnif", **settings
            )
            grads = torch.autograd.grad(out.color.square().sum(), inputs)
        return [out.color.detach(), out.opacity.detach(), *grads]

    exact = rendered("reference", torch.float64)
    tiles, vectors = (rendered(f"native {path}", torch.float32) for path in ("amx", "avx512"))
    assert not torch.equal(tiles[0], vectors[0])
    for found, wanted in zip(tiles, exact, strict=True):
        assert relative_error(found, wanted) <= 2e-5
