"""Both token decoders: wrong input gets a named error, odd input a right answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anr_cases
import locality_cases
import pytest
import torch
from locality_cases import make_coords, relative_error
from torch import Tensor

import ginr_fast
from ginr_fast import BackendError

POINTS = torch.rand(2, 5, 2)
TOKENS = torch.randn(2, 7, 11)


@dataclass
class Case:
    """A small decoder, its operator's name, and its formula."""

    decoder: Any
    operator: str
    own_formula: Callable[..., Tensor]

    def check(self, coords: Any, tokens: Tensor, points: Tensor) -> Tensor:
        """``coords`` as given against the plain formula on ``points`` (B, N, c)."""
        with torch.no_grad():
            got = self.decoder(coords, tokens)
            want = self.own_formula(self.decoder, points, tokens)
        assert relative_error(got.reshape(want.shape), want) <= 2e-5
        return got


@pytest.fixture(params=["anr_decode", "locality_decode"])
def case(request: pytest.FixtureRequest) -> Case:
    shared = anr_cases if request.param == "anr_decode" else locality_cases
    return Case(shared.make_decoder(**shared.SMALL), request.param, shared.own_formula)


@pytest.mark.parametrize(
    ("coords", "tokens", "error", "message"),
    [
        ([[0.0, 0.0]], TOKENS, TypeError, "coords: expected a tensor or CoordinateGrid, got list"),
        (None, TOKENS, TypeError, "coords: .*got NoneType"),
        (POINTS.half(), TOKENS, TypeError, "coords: .*float32 or float64, got float16"),
        (POINTS.bfloat16(), TOKENS, TypeError, "coords: .*got bfloat16"),
        (POINTS.long(), TOKENS, TypeError, "coords: .*got int64"),
        (POINTS[..., :1], TOKENS, ValueError, r"coords: expected 2 coordinates a point"),
        (torch.rand(2, 5, 3), TOKENS, ValueError, r"coords: .*\(2, 5, 3\)"),
        (torch.tensor(0.5), TOKENS, ValueError, "coords: "),
        (torch.rand(2, 5, 0), TOKENS, ValueError, "coords: "),
        (ginr_fast.grid(4, 4, 4), TOKENS, ValueError, "coords: expected 2 coordinates.*got 3"),
        (POINTS.to("meta"), TOKENS, ValueError, "coords: expected device cpu, got meta"),
        (ginr_fast.grid(3, 3, device="meta"), TOKENS, ValueError, "coords: .*cpu, got meta"),
        (POINTS, None, TypeError, "tokens: expected a tensor, got NoneType"),
        (POINTS, TOKENS.numpy(), TypeError, "tokens: expected a tensor, got ndarray"),
        (POINTS, TOKENS[0], ValueError, r"tokens: expected shape \(B, R, 11\), got \(7, 11\)"),
        (POINTS, TOKENS[None], ValueError, r"tokens: expected shape \(B, R, 11\)"),
        (POINTS, TOKENS[..., :10], ValueError, r"tokens: .*got \(2, 7, 10\)"),
        (POINTS, TOKENS[:, :0], ValueError, "tokens: expected at least one token"),
        (POINTS, TOKENS.long(), TypeError, "tokens: expected dtype .*float32, got .*int64"),
        (POINTS, TOKENS.double(), TypeError, "tokens: expected dtype .*float32, got .*float64"),
        (POINTS, TOKENS.bfloat16(), TypeError, "tokens: expected dtype .*float32, got .*bfloat16"),
        (POINTS, TOKENS.to("meta"), ValueError, "tokens: expected device cpu, got meta"),
    ],
)
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_wrong_inputs(case, coords, tokens, error, message, backend):
    with ginr_fast.backend(backend), pytest.raises(error, match=message):
        case.decoder(coords, tokens)


def test_integer_tokens_under_autocast(case):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="tokens: "):
        case.decoder(POINTS, TOKENS.long())


@pytest.mark.parametrize("name", ["native"])
def test_a_forced_backend_that_cannot_serve(case, name, monkeypatch):
    with ginr_fast.backend(name), pytest.raises(BackendError, match=f"{case.operator}.*{name}"):
        case.decoder(POINTS, TOKENS)
    monkeypatch.setenv("GINR_FAST_BACKEND", name)
    with pytest.raises(BackendError, match=f"{case.operator}.*{name}"):
        case.decoder(POINTS, TOKENS)


# --- odd input, right answers ---


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("coords", "batch", "shape"),
    [
        (torch.rand(0, 5, 2), 0, (0, 5, 3)),
        (torch.rand(5, 2), 0, (0, 5, 3)),
        (ginr_fast.grid(3, 4), 0, (0, 3, 4, 3)),
        (torch.rand(2, 0, 2), 2, (2, 0, 3)),
        (torch.rand(1, 0, 2), 2, (2, 0, 3)),
        (torch.rand(0, 2), 2, (2, 0, 3)),
        (torch.rand(2, 4, 0, 2), 2, (2, 4, 0, 3)),
        (ginr_fast.grid(0, 4), 2, (2, 0, 4, 3)),
        (ginr_fast.grid(4, 0), 2, (2, 4, 0, 3)),
        (ginr_fast.grid(0, 0), 0, (0, 0, 0, 3)),
    ],
    ids=str,
)
def test_nothing_to_decode(case, coords, batch, shape, backend, create_graph):
    tokens = torch.randn(batch, 7, 11, requires_grad=True)
    inputs = [tokens, *case.decoder.parameters()]
    if isinstance(coords, torch.Tensor):
        coords = coords.clone().requires_grad_()
        inputs.append(coords)
    with ginr_fast.backend(backend):
        out = case.decoder(coords, tokens)
    assert out.shape == shape and out.dtype == torch.float32
    grads = torch.autograd.grad(out.sum(), inputs, create_graph=create_graph)
    for grad, tensor in zip(grads, inputs, strict=True):
        assert grad.shape == tensor.shape and not grad.any()


def test_non_contiguous_inputs(case):
    coords = torch.rand(2, 2, 9).transpose(1, 2)[:, ::2]
    tokens = torch.randn(11, 14, 2).permute(2, 1, 0)[:, ::2]
    assert not coords.is_contiguous() and not tokens.is_contiguous()
    case.check(coords, tokens, coords)


def test_tokens_of_zeros(case):
    tokens = torch.zeros(2, 7, 11)
    coords = make_coords("points", 2, 5, 2)
    case.check(coords, tokens, coords)


def test_expanded_tokens(case):
    tokens = torch.randn(1, 7, 11).expand(3, -1, -1)
    coords = make_coords("points", 3, 5, 2)
    case.check(coords, tokens, coords)
    tokens = torch.randn(2, 1, 11).expand(2, 7, 11)
    case.check(coords[:2], tokens, coords[:2])


def test_gradients_of_expanded_and_non_contiguous_inputs(case):
    decoder = case.decoder.double()
    tokens = torch.randn(1, 11, 7).double().requires_grad_()
    coords = torch.rand(1, 2, 5).double().requires_grad_()
    grads = {}
    for backend in ("blocked", "reference"):
        with ginr_fast.backend(backend):
            out = decoder(coords.mT.expand(3, -1, -1), tokens.mT.expand(3, -1, -1))
        grads[backend] = torch.autograd.grad(out.square().sum(), (tokens, coords))
    for got, want in zip(grads["blocked"], grads["reference"], strict=True):
        assert relative_error(got, want) <= 1e-12


def test_one_coordinate(case):
    point = torch.tensor([0.3, -0.4])
    got = case.check(point, TOKENS, point.expand(2, 1, 2))
    assert got.shape == (2, 3)
    got = case.check(point[None], TOKENS, point.expand(2, 1, 2))
    assert got.shape == (2, 1, 3)


def test_one_set_and_unbatched_images_of_coordinates(case):
    coords = torch.rand(2, 2)  # two dimensions are shared even with as many points as instances
    got = case.check(coords, TOKENS, coords.expand(2, 2, 2))
    assert got.shape == (2, 2, 3)
    coords = torch.rand(1, 6, 2)
    got = case.check(coords, TOKENS, coords.expand(2, 6, 2))
    assert got.shape == (2, 6, 3)
    image = torch.rand(4, 5, 2)  # the first dimension is neither 2 nor 1
    got = case.check(image, TOKENS, image.view(1, 20, 2).expand(2, -1, -1))
    assert got.shape == (2, 4, 5, 3)
    images = torch.rand(2, 4, 5, 2)
    got = case.check(images, TOKENS, images.view(2, 20, 2))
    assert got.shape == (2, 4, 5, 3)


def test_a_float64_grid_and_coordinates_with_float32_parameters(case):
    grid = ginr_fast.grid(4, 5, dtype=torch.float64)
    points = grid.tensor().float().view(1, 20, 2).expand(2, -1, -1)
    assert case.check(grid, TOKENS, points).dtype == torch.float32
    case.check(grid.tensor(), TOKENS, points)


def test_on_the_meta_device(case):
    decoder = case.decoder.to("meta")
    out = decoder(torch.rand(2, 5, 2, device="meta"), TOKENS.to("meta"))
    assert out.shape == (2, 5, 3) and out.device.type == "meta"
