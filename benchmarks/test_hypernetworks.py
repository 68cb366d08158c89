"""TransINR, IPC and test-time optimisation at published sizes against the published formulation.

The rivals run what a published training script runs: weights repeated, multiplied and normalised
for every instance, then a chain of batched matrix products over all coordinates, in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from measure import contest
from torch import Tensor, nn

import ginr_fast
from ginr_fast.decoders.squared_error import KeptFeatures, decoding_errors
from ginr_fast.decoders.token_field import TokenFieldDecoder
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops import native_gemm

WIDTH = 768  # of the published Transformers' tokens
IMAGE = FieldSpec(
    coord_dim=2,
    out_dim=3,
    hidden_dim=256,
    hidden_layers=3,
    encoding=FourierEncoding.log_spaced(64, 1024.0),
)
NERF = FieldSpec(
    coord_dim=3,
    out_dim=4,
    hidden_dim=256,
    hidden_layers=4,
    encoding=FourierEncoding.log_spaced(20, 2.0**8, scale=1.0),
)
POINTS = 128


def operator_flops(function: Callable[..., object], *arguments: object) -> int:
    """Of the operators that a forward calls; the linear maps of tokens are small beside them."""
    return sum(plan.flops for plan in ginr_fast.explain(function, *arguments).plans)


def published(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with ginr_fast.backend("reference"):
            function()

    return run


DECODERS: dict[str, Callable[[], TokenFieldDecoder]] = {
    "trans-inr": lambda: ginr_fast.GroupedFieldDecoder(IMAGE, WIDTH, groups=64),
    "ipc": lambda: ginr_fast.PatternFieldDecoder(IMAGE, WIDTH, tokens=256),
}


@pytest.mark.parametrize("name", DECODERS)
def test_image_training_step(benchmark, name: str, device: str) -> None:
    """178², batch 4: weights from tokens, values, loss, gradients of tokens and decoder."""
    torch.manual_seed(0)
    batch, side = 4, 178
    decoder = DECODERS[name]().to(device)
    tokens = torch.randn(batch, decoder.tokens, WIDTH, device=device, requires_grad=True)
    coords = ginr_fast.grid(side, side, device=device).tensor().expand(batch, -1, -1, -1)
    target = torch.rand(batch, side, side, 3, device=device)

    def step() -> None:
        decoder.zero_grad(set_to_none=True)
        tokens.grad = None
        (decoder(coords, tokens) - target).square().mean().backward()

    benchmark.group = f"{name} image training step"
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    contest(
        benchmark,
        step,
        {"eager": published(step)},
        rounds=3,
        flops=3 * operator_flops(decoder, coords, tokens),
        traffic=4 * 2 * (parameters + tokens.numel() + target.numel()),
        dtype=torch.float32,
        device=device,
        memory=True,
    )


def test_nerf_view(benchmark, device: str) -> None:
    """TransINR's radiance field: rays with 128 points; a quarter of a 128² view on a CPU, on which
    the published code too renders a view in parts of 1,024 rays; 4 views at once on a GPU."""
    torch.manual_seed(0)
    rays = 4096 if device == "cpu" else 4 * 128 * 128
    decoder = ginr_fast.GroupedFieldDecoder(NERF, WIDTH, groups=32).to(device)
    tokens = torch.randn(1, decoder.tokens, WIDTH, device=device)
    origins = torch.tensor([0.0, 0.0, 4.0], device=device).expand(1, rays, 3)
    directions = torch.randn(1, rays, 3, device=device) * 0.2 - origins / 4

    @torch.no_grad()
    def render(part: int = rays) -> list[Tensor]:
        return [
            decoder.render(
                origins[:, first : first + part],
                directions[:, first : first + part],
                tokens,
                near=2.0,
                far=6.0,
                samples=POINTS,
            ).color
            for first in range(0, rays, part)
        ]

    benchmark.group = "trans-inr nerf view"
    contest(
        benchmark,
        render,
        {"eager": published(lambda: render(1024))},
        rounds=3,
        flops=operator_flops(render),
        traffic=4 * (NERF.parameter_count + 9 * rays),
        dtype=torch.float32,
        device=device,
    )


TOKEN_DECODERS: dict[str, Callable[[], nn.Module]] = {
    "la-ginr": ginr_fast.LocalityAwareDecoder,
    "trans-inr": DECODERS["trans-inr"],
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("la-ginr", "highest"),
        pytest.param(
            "la-ginr",
            "high",
            marks=pytest.mark.skipif(
                not native_gemm.present(), reason="no processor with AMX, or not in use"
            ),
        ),
        ("trans-inr", "highest"),
    ],
)
def test_token_optimisation_step(benchmark, name: str, precision: str, device: str) -> None:
    """Test-time optimisation: one step of Adam on the tokens of one 178² image.

    ``eager`` is a script that hands the tokens to an optimiser and leaves the model as it is, so
    that gradients of its parameters are computed too; ``frozen`` has switched them off.
    """
    torch.manual_seed(0)
    decoder = TOKEN_DECODERS[name]().to(device).requires_grad_(False)
    trained = copy.deepcopy(decoder).requires_grad_(True)
    fields = isinstance(decoder, TokenFieldDecoder)
    shape = (1, decoder.tokens, WIDTH) if fields else (1, 256, 256)
    tokens = torch.randn(shape, device=device, requires_grad=True)
    adam = torch.optim.Adam([tokens], lr=1e-4, fused=True)
    where = ginr_fast.grid(178, 178, device=device)
    coords = where.tensor().unsqueeze(0)
    target = torch.rand(1, 178, 178, 3, device=device)
    kept = KeptFeatures()

    def optimise(errors: Callable[[], Tensor]) -> None:
        adam.zero_grad(set_to_none=True)
        errors().mean().backward()
        adam.step()

    def step() -> None:
        optimise(lambda: decoding_errors(decoder, where, tokens, target, kept))

    def published_step(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        optimise(lambda: (model(coords, tokens) - target).square())

    benchmark.group = f"{name} test-time optimisation of tokens"
    contest(
        benchmark,
        step,
        {
            "eager": published(lambda: published_step(trained)),
            "frozen": published(lambda: published_step(decoder)),
        },
        rounds=5,
        # Beside the values: gradients of hidden values and, for fields, of the packed weights.
        flops=(3 if fields else 2) * operator_flops(decoder, coords, tokens),
        traffic=4 * (3 * tokens.numel() + 2 * target.numel()),
        dtype=torch.float32,
        device=device,
        memory=True,
        precision=precision,
    )
