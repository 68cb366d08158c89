"""Forward-mode derivatives of the operators: those of their formulas, never a silent zero."""

from __future__ import annotations

from collections.abc import Callable

import anr_cases
import locality_cases
import pytest
import torch
from field_cases import make_spec, make_weights
from torch import Tensor
from torch.autograd import forward_ad
from weight_cases import group_counts, randn

import ginr_fast
from ginr_fast import BackendError
from ginr_fast.decoders.squared_error import decoding_errors

DOUBLE = torch.float64
FIELD = make_spec(activation="sine", w0=2.0)
SCENE = make_spec(coord_dim=3, out_dim=4)
COORDS, RAYS = torch.rand(7, 2), torch.rand(2, 3, 3, dtype=DOUBLE)
BASES = randn(*([3, *slot.shape] for slot in FIELD.slots), dtype=DOUBLE)
GROUPS = group_counts(FIELD, 4)
LOCALITY = locality_cases.make_decoder(**locality_cases.SMALL).double()
TARGETS = torch.linspace(0, 1, 2 * 7 * LOCALITY.out_dim, dtype=DOUBLE).view(2, 7, -1)
ANR = anr_cases.make_decoder(
    DOUBLE, coord_dim=2, out_dim=3, **{**anr_cases.SMALL, "threshold": 0.0}
)


def rendered(weights: Tensor) -> Tensor:
    settings = {"near": 0.5, "far": 2.0, "samples": 5}
    return ginr_fast.volume_render(RAYS, RAYS - 0.5, weights, SCENE, **settings).color


def grouped(first: Tensor) -> Tensor:
    bases = [torch.ones(slot.shape, dtype=DOUBLE) for slot in FIELD.slots if slot.kind == "weight"]
    shapes = [slot.shape for slot in FIELD.slots if slot.kind == "weight"]
    rest = [
        torch.linspace(1, 2, 2 * count * shape[1], dtype=DOUBLE).view(2, count, shape[1])
        for count, shape in zip(GROUPS[1:], shapes[1:], strict=True)
    ]
    biases = [torch.zeros(slot.shape, dtype=DOUBLE) for slot in FIELD.slots if slot.kind == "bias"]
    return ginr_fast.group_weights([first, *rest], bases, FIELD, biases=biases)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "field_mlp": (
        lambda weights: ginr_fast.field_mlp(COORDS, weights, FIELD),
        make_weights(FIELD, 2, DOUBLE),
    ),
    "volume_render": (rendered, make_weights(SCENE, 2, DOUBLE)),
    "mixture_average": (
        lambda coefficients: ginr_fast.mixture_average(coefficients, BASES, FIELD),
        torch.rand(2, FIELD.layers, 3, dtype=DOUBLE),
    ),
    "group_weights": (grouped, torch.rand(2, GROUPS[0], FIELD.layer_shapes[0][1], dtype=DOUBLE)),
    "locality_decode": (
        lambda tokens: LOCALITY(COORDS, tokens),
        locality_cases.make_tokens(2, 7, 11).double(),
    ),
    "locality_error": (
        lambda tokens: decoding_errors(LOCALITY, COORDS, tokens, TARGETS),
        locality_cases.make_tokens(2, 7, 11).double(),
    ),
    "anr_decode": (
        lambda tokens: ANR(COORDS, tokens),
        torch.rand(2, 7, 11, dtype=DOUBLE),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_the_formula(name: str) -> None:
    function, at = FUNCTIONS[name]
    along = torch.rand(at.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) - 0.5
    values, found = torch.func.jvp(function, (at,), (along,))
    step = 1e-6
    wanted = (function(at + step * along) - function(at - step * along)) / (2 * step)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(values, function(at))


def test_the_backend_is_the_formula_for_as_long() -> None:
    weights = make_weights(FIELD, 2)

    def used() -> str:
        return ginr_fast.explain(ginr_fast.field_mlp, COORDS, weights, FIELD).plans[0].backend

    with forward_ad.dual_level():
        assert used() == "reference"
        with ginr_fast.backend("blocked"), pytest.raises(BackendError, match="forward-mode"):
            used()
    assert used() != "reference"
