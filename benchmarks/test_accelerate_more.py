"""mNIF's, ANR's and LA-GINR's published modules through ``accelerate``, against themselves.

The rivals are the untouched modules in eager mode, in float32: stand-ins for the published classes,
which compute line by line what those do.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from measure import contest
from torch import Tensor, nn

from ginr_fast.adapters import accelerate
from ginr_fast.adapters.mnif_rendering import nerf_volume_rendering

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from adapter_decoders import ANR, LAINRDecoder, LinearMixtureINR, published_rendering

Call = Callable[[nn.Module], Tensor]


def run(
    benchmark,
    group: str,
    module: nn.Module,
    call: Call,
    device: str,
    flops: int,
    *,
    rival: Call | None = None,
    train: bool = False,
    leaves: list[Tensor] | None = None,
    rounds: int = 3,
) -> None:
    """Time ``call`` of the accelerated module against the same of the untouched one."""
    own = module.to(device)
    fast = copy.deepcopy(own)
    report = accelerate(fast)
    assert report.replaced and not report.left
    benchmark.extra_info["runs_on"] = report.replaced[0].runs_on

    def timed(net: nn.Module, function: Call) -> Callable[[], None]:
        def step() -> None:
            for leaf in (*net.parameters(), *(leaves or ())):
                leaf.grad = None
            function(net).square().mean().backward()

        def evaluate() -> None:
            with torch.no_grad():
                function(net)

        return step if train else evaluate

    benchmark.group = f"accelerate {group}"
    parameters = sum(parameter.numel() for parameter in own.parameters())
    contest(
        benchmark,
        timed(fast, call),
        {"eager": timed(own, rival or call)},
        rounds=rounds,
        flops=flops * (3 if train else 1),
        traffic=4 * parameters * (2 if train else 1),
        dtype=torch.float32,
        device=device,
    )


def grid(batch: int, side: int, device: str) -> Tensor:
    """Every instance's coordinates written out, ``(B, side, side, 2)``."""
    axis = (torch.arange(side, device=device) + 0.5) / side * 2 - 1
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    return points.expand(batch, -1, -1, -1).contiguous()


def layers_of(net: nn.Module) -> int:
    """Multiply-adds of the linear maps of one network of a mixture."""
    return sum(
        layer.in_features * layer.out_features
        for layer in net.modules()
        if isinstance(layer, nn.Linear)
    )


@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
def test_anr(benchmark, train: bool, device: str) -> None:
    """At the published size, 4 images of 128²."""
    torch.manual_seed(0)
    model = ANR(5, 2, 3, 512, 6, 64, pe_dim=256, pe_sigma=1024, att_threshold=0.0015)
    tokens = torch.randn(4, 256, 512, device=device, requires_grad=train)
    side = 128 if benchmark.enabled else 8
    coords = grid(4, side, device)

    def call(net: nn.Module) -> Tensor:
        net.params = {"dtoken": tokens}
        return net(coords)

    width = 512 * 384 + 2 * 256 * 384 + 384 * 512 + 4 * 512 * 512 + 512 * 3
    flops = 2 * 4 * side**2 * width
    group = f"ANR 128² {'train' if train else 'forward'}"
    run(benchmark, group, model, call, device, flops, train=train, leaves=[tokens])


@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
def test_la_ginr(benchmark, train: bool, device: str) -> None:
    """The decoder of public research code at the paper's size, 4 images of 128²."""
    torch.manual_seed(0)
    model = LAINRDecoder(256, 2, 3, 16, (128, 32), 256, 256, heads=2, dim_head=64)
    tokens = torch.randn(4, 256, 256, device=device, requires_grad=train)
    side = 128 if benchmark.enabled else 8
    coords = grid(4, side, device)
    width = 3 * 256 * 256 + 2 * 256 * 128 + 2 * 256 * 128 + 3 * 256 * 256 + 2 * 256 * 3
    run(
        benchmark,
        f"LA-GINR 128² {'train' if train else 'forward'}",
        model,
        lambda net: net(coords, tokens),
        device,
        2 * 4 * side**2 * width,
        train=train,
        leaves=[tokens],
    )


def mixture(width: int, depth: int, mixtures: int, latent: int, scene: bool) -> LinearMixtureINR:
    torch.manual_seed(0)
    return LinearMixtureINR(
        width,
        depth,
        in_channels=3 if scene else 2,
        out_channels=4 if scene else 3,
        k_mixtures=mixtures,
        latent_channels=latent,
        pred_type="scene" if scene else "image",
    )


@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
def test_mnif_averaging(benchmark, train: bool, device: str) -> None:
    """mNIF (L) for images: 8 networks averaged out of 384, and evaluated at one coordinate."""
    networks = 384 if benchmark.enabled else 8
    model = mixture(128, 5, networks, 512, scene=False)
    latents = 0.01 * torch.randn(8, 512, device=device)
    coords = torch.rand(8, 1, 2, device=device)
    size = layers_of(model.model_param)
    run(
        benchmark,
        f"mNIF averaging {'train' if train else 'forward'}",
        model,
        lambda net: net({"coords": coords}, latents)["model_out"],
        device,
        2 * 8 * networks * size,
        train=train,
        rounds=5,
    )


@pytest.mark.parametrize("train", [False, True], ids=["view", "train"])
def test_mnif_scene(benchmark, train: bool, device: str) -> None:
    """mNIF (S) for scenes, 32 samples a ray: a view of 128², or a step of 8 scenes of 256 rays."""
    model = mixture(64, 4, 256, 128, scene=True)
    batch, count = (8, 256) if train else (1, 128 * 128)
    count = count if benchmark.enabled else 8
    latents = 0.01 * torch.randn(batch, 128, device=device)
    rays = torch.randn(batch * count, 3, device=device)
    t = torch.linspace(0.8, 1.8, 32, device=device).expand(batch * count, 32)
    origin = torch.tensor([0.0, 0.0, 1.3], device=device)
    directions = torch.tensor([0.0, 0.0, -1.0], device=device) + 0.2 * rays
    coords = (origin + t[..., None] * directions[:, None]).reshape(batch, count * 32, 3)
    inputs = {"coords": coords, "t_vals": t, "rays_d": directions}
    opt = SimpleNamespace(
        num_samples_per_ray=31,
        rgb_activation="no_use",
        density_activation="elu",
        rendering_type="nerf",
        white_bkgd=True,
    )

    def rendered_by(function: Callable) -> Call:
        return lambda net: function(net(dict(inputs), latents), opt)["model_out"]

    run(
        benchmark,
        f"mNIF (S) scenes {'train' if train else 'view'}",
        model,
        rendered_by(nerf_volume_rendering),
        device,
        2 * batch * count * 32 * layers_of(model.model),
        rival=rendered_by(published_rendering),
        train=train,
    )


def test_mnif_cavia(benchmark, device: str) -> None:
    """mNIF (S) for images: one second-order CAVIA step of three inner steps, 4 images of 32²."""
    model = mixture(64, 4, 256, 1024, scene=False)
    side = 32 if benchmark.enabled else 4
    coords, target = grid(4, side, device).flatten(1, 2), torch.rand(4, side**2, 3, device=device)

    def call(net: nn.Module) -> Tensor:
        latents = torch.zeros(4, 1024, device=device, requires_grad=True)
        for _ in range(3):
            loss = (net({"coords": coords}, latents)["model_out"] - target).square().mean()
            (step,) = torch.autograd.grad(loss, latents, create_graph=True)
            latents = latents - 1e-3 * step  # 1 makes the phases explode
        return net({"coords": coords}, latents)["model_out"] - target

    size = layers_of(model.model_param)
    flops = 2 * 4 * 4 * size * (side**2 + 256)
    run(benchmark, "mNIF (S) CAVIA step", model, call, device, flops, train=True)
