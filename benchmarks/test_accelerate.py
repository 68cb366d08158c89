"""TransINR's and IPC's published modules through ``accelerate``, at published sizes.

The rivals are the untouched modules in eager mode, in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measure import Contestant, contest
from torch import Tensor, nn

import ginr_fast
from ginr_fast.adapters.trans_inr import volume_rendering

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import adapter_models as published  # noqa: E402

BATCH, SIDE, POINTS = 4, 178, 65_536
RAYS, SAMPLES, NEAR, FAR = 512, 128, 2.0, 6.0


def set_field(
    kind: Callable[[], nn.Module], device: str
) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A published module, an accelerated one, and the weights of a batch that both have."""
    torch.manual_seed(0)
    own, fast = kind().to(device), kind().to(device)
    weights = {
        name: (torch.randn(BATCH, *shape, device=device) * (2 / shape[0]) ** 0.5).requires_grad_()
        for name, shape in own.param_shapes.items()
    }
    assert ginr_fast.accelerate(fast).replaced
    for module in (own, fast):
        module.set_params(weights)
    return own, fast, list(weights.values())


def call(function: Callable[[], Tensor], weights: list[Tensor], train: bool) -> Contestant:
    def step() -> None:
        for weight in weights:
            weight.grad = None
        function().square().mean().backward()

    def evaluate() -> None:
        with torch.no_grad():
            function()

    return step if train else evaluate


def flops_of(function: Callable[[], Tensor]) -> int:
    return sum(plan.flops for plan in ginr_fast.explain(function).plans)


def image_coords(device: str) -> Tensor:
    return ginr_fast.grid(SIDE, SIDE, device=device).tensor().repeat(BATCH, 1, 1, 1)


def hypo_mlp() -> nn.Module:
    return published.HypoMlp(5, 2, 3, 256, True, 128, 0.5)


def hypo_nerf() -> nn.Module:
    return published.HypoNerf(False, 6, 256, True, 40)


FIELDS = {
    "HypoMlp 178²": (hypo_mlp, image_coords),
    "HypoNerf 65,536 points": (
        hypo_nerf,
        lambda device: torch.rand(BATCH, POINTS, 3, device=device) * 2 - 1,
    ),
}


@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_trans_inr(benchmark, name: str, train: bool, device: str) -> None:
    """Batch 4, coordinates of each instance on their own; with gradients of all weights."""
    kind, made = FIELDS[name]
    own, fast, weights = set_field(kind, device)
    coords = made(device)
    benchmark.group = f"accelerated {name}, {'step' if train else 'forward'}"
    contest(
        benchmark,
        call(lambda: fast(coords), weights, train),
        {"eager": call(lambda: own(coords), weights, train)},
        rounds=3,
        flops=(3 if train else 1) * flops_of(lambda: fast(coords)),
        traffic=4 * sum(weight.numel() for weight in weights) + 4 * coords.numel(),
        dtype=torch.float32,
        device=device,
        memory=True,
    )


def test_volume_rendering_of_trans_inr(benchmark, device: str) -> None:
    """512 rays of 128 points, batch 4: the published function and module against ours."""
    own, fast, weights = set_field(hypo_nerf, device)
    origins = torch.tensor([0.0, 0.0, 4.0], device=device).expand(BATCH, RAYS, 3)
    directions = torch.randn(BATCH, RAYS, 3, device=device) * 0.2 - origins / 4
    rays = (origins, directions, NEAR, FAR, SAMPLES, False, False)
    benchmark.group = "accelerated volume_rendering"
    contest(
        benchmark,
        call(lambda: volume_rendering(fast, *rays), weights, train=False),
        {"eager": call(lambda: published.volume_rendering(own, *rays), weights, train=False)},
        rounds=3,
        flops=flops_of(lambda: volume_rendering(fast, *rays)),
        traffic=4 * sum(weight.numel() for weight in weights) + 4 * 9 * BATCH * RAYS,
        dtype=torch.float32,
        device=device,
    )


@pytest.mark.parametrize("encoding", ["deterministic_transinr", "random_gaussian"])
def test_hyponet_of_ipc(benchmark, encoding: str, device: str) -> None:
    """178², batch 4, the second layer from the instance; gradients of it and of what is shared."""
    torch.manual_seed(0)
    config = published.hyponet_config(
        encoding, layers=5, hidden_dim=(256,), ff_dim=128, ff_sigma=1024
    )
    own = published.HypoNet(config).to(device)
    own.ignore_base_param_dict["linear_wb1"] = True
    fast = published.HypoNet(config).to(device)
    fast.load_state_dict(own.state_dict())
    fast.ignore_base_param_dict["linear_wb1"] = True
    assert ginr_fast.accelerate(fast).replaced
    pattern = (torch.randn(BATCH, 256, 256, device=device) / 16).requires_grad_()
    coords, given = image_coords(device), {"linear_wb1": pattern}
    benchmark.group = f"accelerated HypoNet, {encoding}, step"
    contest(
        benchmark,
        call(lambda: fast(coords, given), [*fast.parameters(), pattern], train=True),
        {"eager": call(lambda: own(coords, given), [*own.parameters(), pattern], train=True)},
        rounds=3,
        flops=3 * flops_of(lambda: fast(coords, given)),
        traffic=4 * (sum(p.numel() for p in own.parameters()) + pattern.numel() + coords.numel()),
        dtype=torch.float32,
        device=device,
        memory=True,
    )
