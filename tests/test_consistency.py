"""Consistency training and sampling, apart from any system."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ginr_fast.generation.averaging import AveragedModel, average_decay, without_twins
from ginr_fast.generation.consistency import (
    ConsistencySchedule,
    Objective,
    consistency_function,
    losses,
    sample,
)

SCHEDULE = ConsistencySchedule(doubling=100)


def test_scales_are_those_of_the_paper() -> None:
    t = torch.tensor([0.0, 0.003, 0.821, 1.0, 80.0], dtype=torch.float64)
    skip, out, scale = SCHEDULE.c_skip(t), SCHEDULE.c_out(t), SCHEDULE.c_in(t)
    for index, level in enumerate(t.tolist()):
        assert skip[index].item() == pytest.approx(0.5 / (level**2 + 0.5), rel=1e-12)
        wanted = level * math.sqrt(0.5) / math.sqrt(level**2 + 0.5)
        assert out[index].item() == pytest.approx(wanted, rel=1e-12)
        assert scale[index].item() == pytest.approx(1 / math.sqrt(level**2 + 0.5), rel=1e-12)
    x, output = torch.randn(5, 3, 2, dtype=torch.float64), torch.randn(5, 3, 2).double()
    found = consistency_function(SCHEDULE, x, t, output)
    assert torch.equal(found[0], x[0])  # the boundary condition
    expected = skip[2] * x[2] + out[2] * output[2]
    assert torch.allclose(found[2], expected, atol=1e-12)


def test_r_follows_the_stages() -> None:
    t = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    for step, stage in ((0, 0), (99, 0), (100, 1), (250, 2), (399, 3), (1000, 10)):
        found = SCHEDULE.earlier(t, step)
        for level, r in zip(t.tolist(), found.tolist(), strict=True):
            nearness = 1 + 8 / (1 + math.exp(level))
            assert r == pytest.approx(max(0.0, level * (1 - nearness / 2**stage)), abs=1e-12)
            assert 0 <= r < level
    assert not SCHEDULE.earlier(t, 0).any()  # at first the target is the data
    assert (SCHEDULE.earlier(t, 100) > 0).tolist() == [False, False, True]
    late = SCHEDULE.earlier(t, 5000 * SCHEDULE.doubling)  # 2⁵⁰⁰⁰ is no float
    assert torch.equal(late, t)


def test_drawn_levels_do_not_depend_on_the_split() -> None:
    whole = SCHEDULE.draw(3, 7, range(4000))
    parts = [SCHEDULE.draw(3, 7, range(first, first + 1000)) for first in range(0, 4000, 1000)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, SCHEDULE.draw(3, 8, range(4000)))
    assert whole.min().item() >= 0.003 and whole.max().item() <= 80
    inner = whole[(whole > 0.003) & (whole < 80)]
    assert len(inner) < 4000  # the ends are clamped, at 2.35 and 2.74 deviations
    # Standard errors: 2/√4000 = 0.032 of the median's kin, about 0.03 of the spread.
    assert whole.log().median().item() == pytest.approx(-1.1, abs=0.15)
    assert whole.log().quantile(0.841).item() == pytest.approx(0.9, abs=0.2)
    near = SCHEDULE.draw(3, 7, range(2000), below=True)
    assert near.min() >= 0 and near.max() < 0.007
    assert near.mean().item() == pytest.approx(0.0035, abs=0.0002)


@pytest.mark.parametrize("distance", ["l2", "squared"])
@pytest.mark.parametrize("weighting", [0.0, 1.0, 2.0])
def test_losses_are_a_loop_over_instances(distance: str, weighting: float) -> None:
    torch.manual_seed(0)
    t = torch.tensor([0.003, 0.006, 0.007, 0.05, 0.0865, 0.2, 80.0])
    denoised, followed, signal, clean = (torch.randn(7, 5, 3) for _ in range(4))
    objective = Objective(0.5, 2.0, 3.0, distance, weighting)  # type: ignore[arg-type]
    found = losses(objective, SCHEDULE, t, denoised, followed, signal, clean)
    sums = [0.0, 0.0, 0.0]
    for row, level in enumerate(t.double().tolist()):
        scale = level * math.sqrt(0.5) / math.sqrt(level**2 + 0.5)

        def d(left: torch.Tensor, right: torch.Tensor, at: int = row) -> float:
            square = float((left[at].double() - right[at].double()).square().mean())
            return square if distance == "squared" else math.sqrt(square)

        weight = scale**-weighting
        sums[0] += weight * d(denoised, followed)
        sums[1] += weight * d(signal, clean) if level < 0.007 - 1e-6 else 0.0
        sums[2] += weight * d(denoised, clean) if level < 0.0865 - 1e-6 else 0.0
    means = [value / 7 for value in sums]
    for value, wanted in zip(found[1:], means, strict=True):
        assert value.item() == pytest.approx(wanted, rel=1e-3)
    total = 0.5 * means[0] + 2 * means[1] + 3 * means[2]
    assert found.total.item() == pytest.approx(total, rel=1e-3)


def test_losses_are_switched_off_one_by_one() -> None:
    t, ones, none = torch.tensor([0.004, 0.004]), torch.ones(2, 4), torch.zeros(2, 4)
    for name in ("generation", "reconstruction", "diffusion"):
        off = replace(Objective(), **{name: 0.0})
        found = losses(off, SCHEDULE, t, ones, none, ones, none)
        assert getattr(found, name).item() == 0
        assert found.total.item() == pytest.approx(2, rel=1e-3)
        assert not off.reconstructs_only
    alone = Objective(weighting=1.0).reconstruction_alone()
    assert alone.reconstructs_only and alone.weighting == 1.0


def test_equal_values_have_a_gradient() -> None:
    values = torch.ones(2, 4, requires_grad=True)
    Objective().each(values, torch.ones(2, 4)).sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()


def test_sampling_adds_noise_of_each_level() -> None:
    seen = []

    def predict(noisy: torch.Tensor, level: float) -> torch.Tensor:
        seen.append((noisy.clone(), level))
        return torch.full_like(noisy, level)

    noises = torch.randn(3, 2, 4)
    found = sample(predict, lambda step: noises[step], (80.0, 8.0, 0.8))
    assert [level for _, level in seen] == [80.0, 8.0, 0.8]
    assert torch.equal(seen[0][0], 80 * noises[0])
    assert torch.allclose(seen[1][0], 80 + 8 * noises[1])
    assert torch.allclose(seen[2][0], 8 + 0.8 * noises[2])
    assert (found == 0.8).all()
    assert SCHEDULE.levels(1) == (80.0,)
    assert SCHEDULE.levels(2) == pytest.approx((80.0, 0.821))
    assert SCHEDULE.levels(3) == pytest.approx((80.0, math.sqrt(80 * 0.821), 0.821))


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="^steps: expected at least 1, got 0"):
        SCHEDULE.levels(0)
    for levels in ((), (1.0, 2.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="^levels: expected"):
            sample(lambda noisy, level: noisy, lambda step: torch.zeros(1), levels)
    for name, value in (
        ("sigma_data", 0.0),
        ("t_max", 0.001),
        ("middle", 90.0),
        ("q", 1.0),
        ("k", -1.0),
        ("doubling", 0),
        ("mean", math.nan),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            replace(SCHEDULE, **{name: value})
    for changes in ({"generation": -1.0}, {"distance": "l1"}, {"weighting": math.inf}):
        with pytest.raises(ValueError, match=f"^{next(iter(changes))}: expected"):
            replace(Objective(), **changes)
    with pytest.raises(ValueError, match="^generation, reconstruction, diffusion"):
        Objective(0, 0, 0)


# Averages of weights


class Line(AveragedModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)


def test_the_average_follows_the_twin() -> None:
    torch.manual_seed(0)
    model = Line()
    assert model.own_state().keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="^model: expected one in training"):
        model.twin()
    model.begin_training()
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        "online.layer.weight",
        "online.layer.bias",
    ]
    start = model.layer.weight.clone()
    with torch.no_grad():
        model.twin().layer.weight += 1
    model.average(0.75)
    assert torch.allclose(model.layer.weight, start + 0.25)
    model.average(0.0)
    assert torch.equal(model.layer.weight, model.twin().layer.weight)
    assert [average_decay(step, 0.9) for step in (0, 90, 1000)] == [0.1, 0.9, 0.9]
    for wrong in (3.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="^decay: expected from 0 to 1"):
            model.average(wrong)
    with pytest.raises(ValueError, match="^model: is in training already"):
        model.begin_training()


def test_weights_with_and_without_a_twin_load() -> None:
    torch.manual_seed(0)
    model = Line()
    model.begin_training()
    with torch.no_grad():
        model.twin().layer.weight += 1
    state = model.state_dict()
    again = Line()
    again.begin_training()
    again.load_state_dict(state)
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)
    plain = Line()
    plain.load_state_dict(state)  # the twin is not wanted
    assert plain.online is None and torch.equal(plain.layer.weight, model.layer.weight)
    again.load_state_dict(model.own_state())  # an export: training is over
    assert again.online is None and torch.equal(again.layer.weight, model.layer.weight)
    assert all(value.requires_grad for value in again.parameters())
    fixed = Line()
    fixed.layer.bias.requires_grad_(False)
    for _ in range(2):  # trained on after such weights, what was fixed stays so
        fixed.begin_training()
        wanted = [name for name, value in fixed.named_parameters() if value.requires_grad]
        assert wanted == ["online.layer.weight"]
        fixed.load_state_dict(model.own_state())
    # A model with another inside keeps all but the inner one's twin.
    outer = nn.Sequential(model, nn.Linear(1, 1))
    names = {"0.layer.weight", "0.layer.bias", "1.weight", "1.bias"}
    assert without_twins(outer).keys() == names


# A mixture in the plane


class Toy(AveragedModel):
    """A small network for points, with the same functions as images have."""

    schedule = ConsistencySchedule(mean=-0.4, std=1.2, t_max=8.0, middle=0.4, doubling=200)

    def __init__(self) -> None:
        super().__init__()
        widths = (7, 64, 64, 64)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.network = nn.Sequential(*layers, nn.Linear(64, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        level = t.clamp(min=self.schedule.t_min).log()[:, None] / 4
        phases = level * torch.tensor([2.0, 6.0])
        known = [x * self.schedule.c_in(t)[:, None], level, phases.cos(), phases.sin()]
        return consistency_function(self.schedule, x, t, self.network(torch.cat(known, -1)))


def test_one_and_two_steps_recover_all_modes_of_a_mixture() -> None:
    """Eight Gaussians on a circle: each gets its share of samples, and nearly all samples lie in
    one. A model that averages, drops a mode or collapses fails both."""
    angles = torch.arange(8) * math.pi / 4
    modes, spread = torch.stack([angles.cos(), angles.sin()], -1), 0.12
    torch.manual_seed(0)
    model, schedule, objective = Toy(), Toy.schedule, Objective(reconstruction=0, diffusion=0)
    model.begin_training()
    optimizer = torch.optim.Adam(model.twin().parameters(), lr=4e-3, fused=True)
    steps, batch = 1200, 256
    for step in range(steps):
        x = modes[torch.randint(8, (batch,))] + spread * torch.randn(batch, 2)
        z = torch.randn(batch, 2)
        t = (schedule.mean + schedule.std * torch.randn(batch)).exp()
        t = t.clamp(schedule.t_min, schedule.t_max)
        r = schedule.earlier(t, step)
        denoised = model.twin()(x + t[:, None] * z, t)
        with torch.no_grad():
            followed = model(x + r[:, None] * z, r)
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, 2 * (1 - step / steps))
        optimizer.zero_grad()
        losses(objective, schedule, t, denoised, followed, denoised, x).total.backward()
        optimizer.step()
        model.average(average_decay(step, 0.95))

    count = 4000
    generator = torch.Generator().manual_seed(5)

    def predict(noisy: torch.Tensor, level: float) -> torch.Tensor:
        return model(noisy, noisy.new_full((count,), level))

    def noise(step: int) -> torch.Tensor:
        return torch.randn(count, 2, generator=generator)

    near = {}
    for number in (1, 2):
        with torch.no_grad():
            points = sample(predict, noise, schedule.levels(number))
        distances, nearest = torch.cdist(points, modes).min(1)
        shares = nearest.bincount(minlength=8) / count
        # A fair share is 0.125 with a deviation of 0.005.
        assert shares.min() > 0.1 and shares.max() < 0.15
        near[number] = (distances < 4 * spread).float().mean().item()
    assert near[1] > 0.85 and near[2] > 0.93
    assert near[2] > near[1]
