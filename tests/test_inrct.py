"""INRCT of images: the model, and its training."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import QUIET, same, weights_of

import ginr_fast
from ginr_fast.data.icons import SHAPES, IconsConfig, icons
from ginr_fast.data.views import ViewConfig
from ginr_fast.encoders.lattice import lattice_places
from ginr_fast.encoders.noise_level import AdaptiveBlock, NoiseLevelEmbedding, TokenDecoderBlock
from ginr_fast.generation.consistency import ConsistencySchedule, Objective
from ginr_fast.generation.sampling import SamplingOptions, noise
from ginr_fast.systems.image_rendering import jitter_within
from ginr_fast.systems.inrct import Inrct, InrctConfig
from ginr_fast.training.checkpoints import load_saved
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import InrctRecipe, recipe
from ginr_fast.training.tasks import DataOptions, open_data, restored, task_for

SMALL = InrctConfig(
    dim=32,
    encoder_depth=1,
    decoder_depth=1,
    hyper_heads=2,
    hyper_head_dim=16,
    mlp_dim=48,
    image_size=8,
    tokens=9,
    token_dim=16,
    hidden_dim=24,
    heads=2,
    head_dim=8,
    depth=2,
    max_frequency=4.0,
    # A stage of two steps, so that a handful of steps has all kinds of targets.
    schedule=ConsistencySchedule(doubling=2),
)
RECIPE = InrctRecipe(
    model=SMALL,
    views=ViewConfig(kind="whole", held_out_views=6),
    made_images=24,
    made_held_out=6,
    steps=6,
    reconstruction_steps=2,
    batch_size=4,
    coordinates=40,
    learning_rate=1e-3,
    samples=6,
)


@pytest.fixture
def model() -> Inrct:
    torch.manual_seed(0)
    found = Inrct(SMALL).eval()
    with torch.no_grad():  # zero gates would hide what the encoder blocks do
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found


# Parts


def test_adaptive_blocks_start_as_the_identity() -> None:
    block = AdaptiveBlock(dim=16, heads=2, head_dim=8, mlp_dim=32)
    tokens, condition = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(block(tokens, condition), tokens)
    with torch.no_grad():
        block.modulation.weight.add_(0.1)
    assert not torch.allclose(block(tokens, condition), block(tokens, -condition))


def test_an_adaptive_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = AdaptiveBlock(dim=8, heads=2, head_dim=4, mlp_dim=16).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, condition = torch.randn(1, 3, 8).double(), torch.randn(1, 8).double()
    found = block(x, condition)

    def normed(values: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(values, -1, correction=0, keepdim=True)
        return (values - mean) / (variance + 1e-5).sqrt()

    swish = condition / (1 + (-condition).exp())
    modulation = swish @ block.modulation.weight.T + block.modulation.bias
    gate, scale, shift, gate2, scale2, shift2 = modulation[0].view(6, 8)
    inner = (normed(x) * (1 + scale) + shift)[0]
    attention = block.attention
    q = (inner @ attention.query.weight.T + attention.query.bias).view(3, 2, 4)
    kv = inner @ attention.key_value.weight.T + attention.key_value.bias
    k, v = kv[:, :8].view(3, 2, 4), kv[:, 8:].view(3, 2, 4)
    heads = [torch.softmax(q[:, h] @ k[:, h].T / 2, -1) @ v[:, h] for h in range(2)]
    x = x + gate * (torch.cat(heads, -1) @ attention.out.weight.T + attention.out.bias)
    x = x + gate2 * block.mlp(normed(x) * (1 + scale2) + shift2)
    assert torch.allclose(found, x, atol=1e-12)


def test_level_zero_is_the_smallest_level() -> None:
    torch.manual_seed(0)
    embed = NoiseLevelEmbedding(dim=8, floor=0.003)
    found = embed(torch.tensor([0.0, 0.001, 0.003, 0.0031, 80.0]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert found.isfinite().all()
    assert (found[3] - found[2]).norm() < 0.2 * (found[4] - found[2]).norm()
    with pytest.raises(ValueError, match="^floor: expected above 0"):
        NoiseLevelEmbedding(dim=8, floor=0.0)


@pytest.mark.parametrize("self_attention", [False, True])
def test_tokens_read_features(self_attention: bool) -> None:
    block = TokenDecoderBlock(16, 2, 8, 32, self_attention)
    tokens, features = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    found = block(tokens, features)
    changed = block(tokens, features.index_fill(1, torch.tensor([3]), 2.0))
    assert found.shape == (2, 5, 16) and not torch.allclose(found, changed)
    alone = block(tokens[:, :1], features)
    assert torch.allclose(alone, found[:, :1], atol=1e-5) != self_attention


def test_coordinates_attend_to_the_tokens_around_them_at_first() -> None:
    torch.manual_seed(0)
    model = Inrct(replace(SMALL, tokens=16, head_dim=16, max_frequency=2.0))
    decoder, tokens = model.decoder, model.hyper_network.first_tokens()
    keys, _ = decoder.keys_and_values(tokens[None])
    places = lattice_places(16)
    phases = torch.pi * places[:, :, None] * decoder.frequencies
    features = torch.cat([phases.cos().flatten(1), phases.sin().flatten(1)], -1)
    queries = decoder.query_projection(features).view(16, 2, 16).transpose(0, 1)
    logits = queries @ keys[0].transpose(-1, -2)
    assert (logits.argmax(-1) == torch.arange(16)).float().mean() > 0.9


# The model


def test_the_published_sizes_are_the_defaults() -> None:
    config = InrctConfig()

    def millions(encoder: int, decoder: int) -> float:
        model = Inrct(replace(config, encoder_depth=encoder, decoder_depth=decoder))
        return sum(parameter.numel() for parameter in model.parameters()) / 1e6

    least = millions(1, 1)
    encoder, decoder = millions(2, 1) - least, millions(1, 2) - least
    assert least + 7 * encoder + 5 * decoder == pytest.approx(145, abs=1)  # Table 7
    sizes = (config.dim, config.encoder_depth, config.decoder_depth, config.mlp_dim)
    assert sizes == (768, 8, 6, 3072)
    anr = (config.tokens, config.hidden_dim, config.heads, config.head_dim, config.depth)
    assert anr == (256, 512, 6, 64, 5)
    assert config.threshold == 0.0015 and config.patch_size == 4


def test_encode_is_g_at_level_zero(model: Inrct) -> None:
    images = torch.rand(3, 3, 8, 8)
    tokens = model.encode(images)
    assert tokens.shape == (3, 9, 16)
    assert torch.equal(tokens, model.hyper(images * 2 - 1, torch.zeros(3)))
    assert not torch.allclose(tokens, model.hyper(images * 2 - 1, torch.ones(3)), atol=1e-3)
    shown = model.reconstruct(images, scale=1.5)
    values = model.decode(ginr_fast.grid(12, 12), tokens).permute(0, 3, 1, 2)
    assert torch.allclose(shown, values.clamp(0, 1), atol=1e-6)


def test_denoise_is_the_consistency_function(model: Inrct) -> None:
    noisy, t = torch.randn(2, 3, 8, 8), torch.tensor([0.0, 2.0])
    found = model.denoise(noisy, t)
    assert torch.allclose(found[0], noisy[0], atol=1e-6)  # the boundary condition
    tokens = model.hyper(noisy, t)
    shown = model.decode(ginr_fast.grid(8, 8), tokens)[1].permute(2, 0, 1) * 2 - 1
    expected = 0.5 / 4.5 * noisy[1] + 2 / 4.5**0.5 * shown
    assert torch.allclose(found[1], expected, atol=1e-5)


def test_a_sample_of_one_step_is_its_own_inr(model: Inrct) -> None:
    shown = model.render(model.draw(range(4)), ginr_fast.grid(8, 8))
    clean = model.generate(range(4))
    assert clean.shape == shown.shape == (4, 3, 8, 8)
    assert (shown - clean).abs().max() < 0.02  # 0.003·z, and 1 − 4e-5 of the image


def test_a_sample_of_more_steps_is_encoded(model: Inrct) -> None:
    options = SamplingOptions(steps=2, seed=3)
    found = model.draw([5, 1], options)
    start = 80 * noise((3, 8, 8), [5, 1], 3, 0)
    first = model.denoise(start, torch.full((2,), 80.0)).clamp(-1, 1)
    again = first + 0.821 * noise((3, 8, 8), [5, 1], 3, 1)
    last = model.denoise(again, torch.full((2,), 0.821)).clamp(-1, 1)
    assert torch.allclose(found, model.encode((last + 1) / 2), atol=1e-4)
    assert [model.evaluations(SamplingOptions(steps=steps)) for steps in (None, 1, 2, 3)] == [
        1,
        1,
        3,
        4,
    ]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_sample_is_the_same_in_any_batch(model: Inrct, steps: int) -> None:
    options = SamplingOptions(steps=steps, seed=1)
    whole = model.draw(range(5), options)
    parts = torch.cat([model.draw([index], options) for index in range(5)])
    assert torch.allclose(whole, parts, atol=1e-4)
    assert torch.equal(whole, model.draw(range(5), options))
    other = model.draw(range(5), replace(options, seed=2))
    assert not torch.allclose(whole, other, atol=1e-2)


def test_render_at_any_resolution(model: Inrct, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = model.draw(range(2))
    whole, moved = (model.render(tokens, ginr_fast.grid(11, 7), jitter) for jitter in (0.0, 1.0))
    assert whole.shape == (2, 3, 11, 7) and not torch.allclose(whole, moved, atol=1e-4)
    monkeypatch.setattr("ginr_fast.systems.image_rendering._POINTS_AT_ONCE", 30)
    for jitter, wanted in ((0.0, whole), (1.0, moved)):
        found = model.render(tokens, ginr_fast.grid(11, 7), jitter)
        assert torch.allclose(found, wanted, atol=1e-5)
    with pytest.raises(ValueError, match=r"where: expected a grid of \(H, W\) points"):
        model.render(tokens, ginr_fast.grid(4, 4, 4))
    moves = jitter_within(1000, 0.5, 0)
    assert moves.abs().max() <= 0.25 and moves.abs().max() > 0.24
    assert model.render(tokens, ginr_fast.grid(0, 7)).shape == (2, 3, 0, 7)


def test_bad_input_is_named(model: Inrct) -> None:
    with pytest.raises(ValueError, match=r"^images: expected shape \(B, 3, 8, 8\)"):
        model.encode(torch.rand(1, 3, 8, 9))
    with pytest.raises(TypeError, match="^images: expected floating point"):
        model.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="^label: this model has no classes, got 3"):
        model.draw([0], SamplingOptions(label=3))
    with pytest.raises(ValueError, match="^guidance: this model has no classes"):
        model.evaluations(SamplingOptions(guidance=2.0))
    with pytest.raises(ValueError, match="^steps: expected at least 1, got 0"):
        SamplingOptions(steps=0)
    with pytest.raises(ValueError, match="^jitter: expected from 0 to 1, got 2"):
        model.render(model.draw([0]), ginr_fast.grid(2, 2), 2.0)
    with pytest.raises(ValueError, match="^tokens: expected a positive integer, got 0"):
        Inrct(replace(SMALL, tokens=0))
    for name, value in (("coordinates", 65), ("jitter", 1.5), ("samples", 1), ("averaging", 1.0)):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            replace(RECIPE, **{name: value})
    with pytest.raises(ValueError, match="^reconstruction_steps: expected"):
        replace(RECIPE, reconstruction_steps=-1)


# Data


def test_icons_are_numbered() -> None:
    few, many = icons(IconsConfig(train=5, held_out=2), 16), icons(IconsConfig(train=20), 16)
    assert few.classes == SHAPES and [one.label for one in few.train] == [0, 1, 2, 3, 4]
    for left, right in zip(few.train, many.train, strict=False):
        assert (left.pixels == right.pixels).all()
    different = [one.pixels.tobytes() for one in (*many.train, *many.held_out)]
    assert len(set(different)) == len(different)
    assert few.fingerprint() != many.fingerprint()
    with pytest.raises(ValueError, match="^train: expected a positive integer"):
        IconsConfig(train=0)


# Training


def test_the_published_recipes() -> None:
    cifar, faces = recipe("inrct-cifar10"), recipe("inrct-celebahq")
    assert isinstance(cifar, InrctRecipe) and isinstance(faces, InrctRecipe)
    assert (cifar.epochs, cifar.reconstruction_epochs) == (1725, 125)
    assert (faces.epochs, faces.reconstruction_epochs) == (2125, 125)
    assert (cifar.model.image_size, faces.model.image_size) == (32, 64)
    for chosen in (cifar, faces):
        assert (chosen.batch_size, chosen.learning_rate) == (128, 1e-4)
        assert replace(chosen.model.schedule, doubling=25_000) == ConsistencySchedule()
    assert cifar.first_steps(390) == 125 * 390


def _stepped(chosen: InrctRecipe, first: int, last: int) -> list[float]:
    task = task_for(chosen, open_data(chosen, DataOptions()))
    torch.manual_seed(0)
    model = task.build()
    task.place(torch.device("cpu"))
    optimizer = task.optimizer(task.parameter_groups())
    slots, found = range(chosen.batch_size), []
    batches = task.batches(first, last, slots, 0, False)
    for step, batch in zip(range(first, last), batches, strict=True):
        loss = task.loss(model, batch, step, slots)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        task.after_step(step)
        found.append(loss.total.item())
    return found


def test_reconstruction_is_learned_in_a_few_steps() -> None:
    chosen = replace(RECIPE, reconstruction_steps=40, steps=40, learning_rate=5e-3, batch_size=8)
    found = _stepped(chosen, 0, 40)
    assert sum(found[-10:]) < 0.8 * sum(found[:10])


def test_a_step_is_the_same_on_any_number_of_processes() -> None:
    """Of the mean over the batch, each process has its part; every kind of level is among them."""
    chosen = replace(RECIPE, batch_size=32, model=replace(SMALL, threshold=0.0))
    task = task_for(chosen, open_data(chosen, DataOptions()))
    torch.manual_seed(0)
    model = task.build()
    task.place(torch.device("cpu"))
    for step in (0, 3, 5, 20):
        parts = []
        for slots in (range(32), range(16), range(16, 32)):
            batch = next(iter(task.batches(step, step + 1, slots, 0, False)))
            parts.append(task.loss(model, batch, step, slots).total.item())
        assert parts[0] == pytest.approx((parts[1] + parts[2]) / 2, rel=1e-4)


@pytest.mark.parametrize("name", ["generation", "reconstruction", "diffusion"])
def test_losses_and_scheduler_are_switches(name: str) -> None:
    off = replace(RECIPE, objective=Objective(**{name: 0.0}), reconstruction_steps=0)
    assert all(value >= 0 for value in _stepped(off, 0, 2))
    alone = replace(RECIPE, objective=Objective(generation=0, diffusion=0), reconstruction_steps=0)
    assert _stepped(alone, 0, 2) == _stepped(replace(alone, reconstruction_steps=2), 0, 2)


def test_only_the_twin_learns_and_the_average_follows() -> None:
    task = task_for(RECIPE, open_data(RECIPE, DataOptions()))
    torch.manual_seed(0)
    model = task.build()
    task.place(torch.device("cpu"))
    batch = next(iter(task.batches(8, 9, range(4), 0, False)))
    task.loss(model, batch, 8, range(4)).total.backward()
    twin = dict(model.twin().named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not name.startswith("online."))
    # The blocks' gates start closed: nothing behind them has a gradient in the first step.
    assert sum(value.grad.abs().sum() > 0 for value in twin.values()) > len(twin) / 2
    with torch.no_grad():
        model.twin().tokenizer.position.add_(1)
    task.after_step(0)  # in the first stage there is no average
    assert torch.equal(model.tokenizer.position, model.twin().tokenizer.position)
    with torch.no_grad():
        model.twin().tokenizer.position.add_(1)
    task.after_step(2)
    gap = model.twin().tokenizer.position - model.tokenizer.position
    assert torch.allclose(gap, torch.full_like(gap, 0.1), atol=1e-5)


def test_a_run_resumes_exactly_and_its_average_is_exported(tmp_path: Path) -> None:
    data = open_data(RECIPE, DataOptions())
    whole = train(RECIPE, data, tmp_path / "whole", QUIET)
    steps = itertools.count()

    def stop(*_: object) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, data, tmp_path / "broken", QUIET, stop)
    train(RECIPE, data, tmp_path / "broken", QUIET)
    weights = weights_of(tmp_path / "whole")
    assert same(weights, weights_of(tmp_path / "broken"))
    assert not any(name.startswith("online.") for name in weights)
    assert set(whole.scores.values()) == {"psnr", "ssim", "distance_1", "distance_2"}

    # The export and the checkpoint give the same model, which is the average.
    grid = ginr_fast.grid(8, 8)
    pictures = []
    for path in (tmp_path / "whole", tmp_path / "whole/checkpoints/step-000000006.pt"):
        task = restored(load_saved(path), DataOptions(), torch.device("cpu"))
        assert isinstance(task.model, Inrct)
        assert same(task.model.own_state(), weights)
        pictures.append(task.model.render(task.model.draw(range(3)), grid))
    assert torch.equal(*pictures)
