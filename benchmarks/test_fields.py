"""Fields and their rendering at published sizes against the published formulation.

The rivals run what a published training script runs: a chain of batched matrix products over all
samples at once, in float32.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

import pytest
import torch
from car import trained_car
from measure import contest
from torch import Tensor

import ginr_fast
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops.field_mlp.reference import field_mlp as published_field
from ginr_fast.ops.volume_render.convention import CONVENTIONS, Rendering
from ginr_fast.ops.volume_render.reference import composite as published_composite
from ginr_fast.ops.volume_render.reference import volume_render as published_render
from ginr_fast.systems.mnif import MNIF_SIZES, Mnif

MNIF_S = FieldSpec(coord_dim=3, out_dim=4, hidden_dim=64, hidden_layers=4, activation="sine")
TRANS_INR = FieldSpec(
    coord_dim=2,
    out_dim=3,
    hidden_dim=256,
    hidden_layers=3,
    encoding=FourierEncoding.log_spaced(64, 1024.0),
)
NEAR, FAR, SAMPLES = 0.8, 1.8, 32
MNIF = Rendering(CONVENTIONS["mnif"], NEAR, FAR, SAMPLES)


def multiply_adds(spec: FieldSpec) -> int:
    """Of one evaluation."""
    return sum(rows * columns for rows, columns in spec.layer_shapes)


def random_weights(spec: FieldSpec, batch: int, device: str) -> Tensor:
    """Weights with which activations keep their size from layer to layer."""
    parameters = []
    for slot in spec.slots:
        fan_in = slot.shape[-1]
        bound = (6 / fan_in) ** 0.5
        if spec.activation == "sine":
            bound = 1 / fan_in if slot.layer == 0 else bound / spec.w0
        value = (torch.rand(batch, *slot.shape, device=device) * 2 - 1) * bound
        parameters.append(value if slot.kind == "weight" else torch.zeros_like(value))
    return spec.pack(parameters)


def rays(batch: int, count: int, device: str) -> tuple[Tensor, Tensor]:
    """Rays from a sphere of radius 1.3 towards the middle."""
    origins = torch.randn(batch, count, 3, device=device)
    origins = 1.3 * origins / origins.norm(dim=-1, keepdim=True)
    return origins, -origins / 1.3 + 0.2 * torch.randn(batch, count, 3, device=device)


def without_gradients(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            function()

    return run


def with_gradients(function: Callable[[], Tensor], leaf: Tensor) -> Callable[[], None]:
    def run() -> None:
        leaf.grad = None
        function().float().square().mean().backward()

    return run


def compiled_or_not(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch.compiler.reset()
    return torch.compile(function)


def views_at_once(device: str) -> int:
    """A GPU is filled with several views; a CPU with one."""
    return 1 if device == "cpu" else 32


def record_rate(benchmark, views: int) -> None:
    if benchmark.stats is not None:  # None: --benchmark-disable
        benchmark.extra_info["views_per_second"] = views / benchmark.stats.stats.median


def test_view(benchmark, device: str) -> None:
    """mNIF (S): 128² views with 32 samples a ray, every sample evaluated."""
    torch.manual_seed(0)
    views = views_at_once(device)
    weights = random_weights(MNIF_S, 1, device)
    origins, directions = rays(1, views * 128 * 128, device)
    compiled = compiled_or_not(published_render)

    def ours() -> Tensor:
        return ginr_fast.volume_render(
            origins, directions, weights, MNIF_S, near=NEAR, far=FAR, samples=SAMPLES
        ).color

    benchmark.group = "volume_render mnif-S view"
    contest(
        benchmark,
        without_gradients(ours),
        {
            "eager": without_gradients(
                lambda: published_render(origins, directions, weights, MNIF_S, MNIF)
            ),
            "compiled": without_gradients(
                lambda: compiled(origins, directions, weights, MNIF_S, MNIF)
            ),
        },
        rounds=5,
        flops=2 * views * 128 * 128 * SAMPLES * multiply_adds(MNIF_S),
        traffic=4 * (weights.numel() + 11 * views * 128 * 128),
        dtype=torch.float32,
        device=device,
        memory=True,
    )
    record_rate(benchmark, views)


def test_view_with_occupancy(benchmark, device: str) -> None:
    """The same of a trained car, skipping what an occupancy grid shows to be empty."""
    car = trained_car(device, steps=500 if benchmark.enabled else 20)
    grid = ginr_fast.OccupancyGrid.build(car.weights, MNIF_S, low=-1.3, high=1.3)
    settings = dict(near=NEAR, far=FAR, samples=SAMPLES)

    views = views_at_once(device)
    origins, directions = car.origins.repeat(1, views, 1), car.directions.repeat(1, views, 1)

    def render(occupancy: ginr_fast.OccupancyGrid | None) -> Tensor:
        return ginr_fast.volume_render(
            origins, directions, car.weights, MNIF_S, **settings, occupancy=occupancy
        ).color

    with torch.no_grad():
        error = (render(grid) - render(None)).abs().max().item()
    assert error < 1 / 255
    benchmark.group = "volume_render mnif-S view, occupancy grid"
    benchmark.extra_info["largest_difference_from_dense"] = error
    benchmark.extra_info["psnr"] = car.psnr
    benchmark.extra_info["occupied"] = grid.occupied.item()
    contest(
        benchmark,
        without_gradients(lambda: render(grid)),
        {
            "eager": without_gradients(
                lambda: published_render(origins, directions, car.weights, MNIF_S, MNIF)
            ),
            "dense": without_gradients(lambda: render(None)),
        },
        rounds=7,
        flops=2 * views * 128 * 128 * SAMPLES * multiply_adds(MNIF_S),
        traffic=4 * (car.weights.numel() + 11 * views * 128 * 128),
        dtype=torch.float32,
        device=device,
    )
    record_rate(benchmark, views)


def test_scene_training_step(benchmark, device: str) -> None:
    """mNIF (S): 8 scenes × 512 rays × 32 samples, forward and gradients of the packed weights."""
    torch.manual_seed(0)
    weights = random_weights(MNIF_S, 8, device).requires_grad_()
    rival = weights.detach().clone().requires_grad_()
    origins, directions = rays(8, 512, device)
    jittered = Rendering(CONVENTIONS["mnif"], NEAR, FAR, SAMPLES, seed=1)

    def ours() -> Tensor:
        return ginr_fast.volume_render(
            origins, directions, weights, MNIF_S, near=NEAR, far=FAR, samples=SAMPLES, seed=1
        ).color

    benchmark.group = "volume_render mnif-S training step"
    contest(
        benchmark,
        with_gradients(ours, weights),
        {
            "eager": with_gradients(
                lambda: published_render(origins, directions, rival, MNIF_S, jittered)[..., :3],
                rival,
            )
        },
        rounds=5,
        flops=6 * 8 * 512 * SAMPLES * multiply_adds(MNIF_S),
        traffic=8 * (weights.numel() + 8 * 512 * 11),
        dtype=torch.float32,
        device=device,
        memory=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("train", [False, True], ids=["forward", "train"])
def test_trans_inr_image(benchmark, train: bool, dtype: torch.dtype, device: str) -> None:
    """TransINR's image field: 178² coordinates, 4 instances."""
    torch.manual_seed(0)
    full = random_weights(TRANS_INR, 4, device)
    weights = full.to(dtype).requires_grad_(train)
    rival = full.clone().requires_grad_(train)
    coords = ginr_fast.grid(178, 178, device=device).tensor().reshape(1, -1, 2)
    measured = with_gradients if train else lambda function, leaf: without_gradients(function)
    rivals = {"eager": measured(lambda: published_field(coords, rival, TRANS_INR), rival)}
    if not train and dtype == torch.float32:
        compiled = compiled_or_not(published_field)
        rivals["compiled"] = measured(lambda: compiled(coords, rival, TRANS_INR), rival)
    benchmark.group = f"field_mlp trans-inr {'train' if train else 'forward'}"
    work = 2 * 4 * coords.shape[1] * multiply_adds(TRANS_INR)
    contest(
        benchmark,
        measured(lambda: ginr_fast.field_mlp(coords, weights, TRANS_INR), weights),
        rivals,
        rounds=3,
        flops=work * (3 if train else 1),
        traffic=weights.element_size() * (weights.numel() + 4 * 3 * coords.shape[1]),
        dtype=dtype,
        device=device,
        memory=train,
    )


def _composite_rivals(
    values: Tensor, t: Tensor, directions: Tensor
) -> dict[str, Callable[[], object]]:
    scale = directions.norm(dim=-1)
    rivals: dict[str, Callable[[], object]] = {
        "eager": lambda: published_composite(values, t, scale, CONVENTIONS["nerf"])
    }
    if values.is_cuda and importlib.util.find_spec("nerfacc") is not None:
        import nerfacc

        ends = torch.cat((t[:, 1:], t[:, -1:] + 1e10), dim=1)

        def by_nerfacc() -> object:
            colors, sigmas = values[..., :3].sigmoid(), values[..., 3].relu()
            length = scale.unsqueeze(-1)
            weights, *_ = nerfacc.render_weight_from_density(t * length, ends * length, sigmas)
            return nerfacc.accumulate_along_rays(weights, colors)

        rivals["nerfacc"] = by_nerfacc
    return rivals


def test_composite(benchmark, device: str) -> None:
    """Values that are there already: 128² rays of 32 samples (32 views on a GPU)."""
    torch.manual_seed(0)
    count = 128 * 128 * views_at_once(device)
    values = torch.randn(count, SAMPLES, 4, device=device)
    t = torch.linspace(NEAR, FAR, SAMPLES, device=device).expand(count, -1).contiguous()
    directions = torch.randn(count, 3, device=device)
    benchmark.group = "composite"
    contest(
        benchmark,
        without_gradients(lambda: ginr_fast.composite(values, t, directions, "nerf")),
        {
            name: without_gradients(rival)
            for name, rival in _composite_rivals(values, t, directions).items()
        },
        rounds=7,
        flops=20 * count * SAMPLES,
        traffic=4 * count * (5 * SAMPLES + 8),
        dtype=torch.float32,
        device=device,
    )


def test_inner_loop(benchmark, device: str) -> None:
    """mNIF (S) images: CAVIA's inner loop, three steps, second order, 8 images of 64²."""
    torch.manual_seed(0)
    # As the recipes start: the average of the bases is a SIREN, and latents are close to 0.
    config = dataclasses.replace(MNIF_SIZES["images-s"], initial_gain=16.0)
    model = Mnif(config).to(device)
    coords = ginr_fast.grid(64, 64, device=device).tensor().reshape(1, -1, 2)
    target = torch.rand(8, 64 * 64, 3, device=device) * 2 - 1
    start = 1e-4 * torch.randn(8, config.context_dim, device=device)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        latent = start.clone().requires_grad_()
        for _ in range(3):
            loss = (model.decode(coords, latent) - target).square().mean((1, 2)).sum()
            (gradient,) = torch.autograd.grad(loss, latent, create_graph=True)
            latent = latent - 1e-4 * gradient
        (model.decode(coords, latent) - target).square().mean().backward()

    def eager() -> None:
        with ginr_fast.backend("reference"):
            run()

    spec = config.spec
    field = 8 * coords.shape[1] * multiply_adds(spec)
    mixing = 8 * config.mixtures * spec.parameter_count
    benchmark.group = "mnif-S images, second-order inner loop"
    contest(
        benchmark,
        run,
        {"eager": eager},
        rounds=3,
        # Fields: four forwards, four gradients, three gradients of gradients. Averages: four
        # forwards, four gradients for the coefficients, and for each of these three more products.
        flops=2 * (field * (4 + 4 * 2 + 3 * 6) + mixing * (4 + 4 + 3 * 3)),
        traffic=4 * 11 * sum(parameter.numel() for parameter in model.parameters()),
        dtype=torch.float32,
        device=device,
        memory=True,
    )
