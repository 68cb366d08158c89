"""Ablations: LA-GINR's decoder with parts replaced, and runs under one budget side by side."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from small_training import MODEL, QUIET, RECIPE

import ginr_fast
from ginr_fast import cli
from ginr_fast.analysis.ablation import Over, variants
from ginr_fast.data import ViewConfig
from ginr_fast.decoders.locality_ablation import LocalityAblationDecoder
from ginr_fast.generation.consistency import Objective
from ginr_fast.systems.inrct import InrctConfig
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.systems.trans_inr import TransInrConfig
from ginr_fast.training.checkpoints import CheckpointError, load_model
from ginr_fast.training.comparison import Entry, compare
from ginr_fast.training.comparison_shown import draw, draw_reconstructions, table, write_csv
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import (
    ImagesRecipe,
    InrctRecipe,
    LaGinrRecipe,
    TransInrRecipe,
    as_plain,
    differences,
)
from ginr_fast.training.tasks import open_data

CHOICES = [("attention", "stack"), ("patterns", "multi_band"), ("patterns", "stack")]
TOKENS = 7
LOSSES = ("generation", "reconstruction", "diffusion")
INRCT = InrctRecipe(
    model=InrctConfig(
        image_size=12,
        dim=32,
        encoder_depth=1,
        decoder_depth=1,
        hyper_heads=2,
        hyper_head_dim=16,
        mlp_dim=48,
        tokens=8,
        token_dim=16,
        hidden_dim=16,
        heads=2,
        head_dim=8,
        depth=2,
    ),
    views=ViewConfig(kind="whole"),
    made_images=40,
    made_held_out=4,
    objective=Objective(2.0, 3.0, 5.0),
    samples=8,
    steps=3,
    reconstruction_steps=2,
    batch_size=4,
)


@pytest.fixture(autouse=True)
def _seeded(one_thread: None) -> None:
    torch.manual_seed(0)


def decoder_of(aggregation: str, modulation: str, **options) -> LocalityAblationDecoder:
    decoder = LocalityAblationDecoder(
        **{
            "token_dim": 10,
            "tokens": TOKENS,
            "hidden_dim": 12,
            "feature_dim": 16,
            "bandwidths": (8.0, 3.0),
            "query_bandwidth": 4.0,
            "heads": 2,
            **options,
        },
        aggregation=aggregation,
        modulation=modulation,
    )
    with torch.no_grad():  # biases that start at zero would hide mistakes
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder.double()


# The formula, one coordinate and one number at a time


def gamma(point, frequencies) -> np.ndarray:
    phases = [math.pi * w * v for v in point for w in frequencies]
    return np.array([math.cos(p) for p in phases] + [math.sin(p) for p in phases])


def affine(layer, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def attended(part, query: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    q = affine(part.query, query)
    width = len(q) // part.heads
    mixed = []
    for head in range(part.heads):
        own = slice(head * width, (head + 1) * width)
        keys = [affine(part.key, token)[own] for token in tokens]
        values = [affine(part.value, token)[own] for token in tokens]
        weights = [math.exp(q[own] @ key / math.sqrt(width)) for key in keys]
        mixed.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return affine(part.output, np.concatenate(mixed))


def composed(part, query: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    norm, linear = part.head
    scores = []
    for token in tokens:
        centred = token - token.mean()
        normal = centred / math.sqrt((centred**2).mean() + norm.eps)
        normal = normal * norm.weight.detach().numpy() + norm.bias.detach().numpy()
        scores.append(affine(linear, normal) @ query)
    return part.mixing.detach().numpy() @ np.array(scores)


def by_hand(decoder: LocalityAblationDecoder, point, tokens: np.ndarray) -> np.ndarray:
    query = relu(affine(decoder.query_feature, gamma(point, decoder.query_frequencies.numpy())))
    mix = attended if decoder.aggregation == "attention" else composed
    mixed = mix(decoder.aggregate, query, tokens)
    part = decoder.modulate
    if decoder.modulation == "stack":
        hidden = relu(mixed + part.bias.detach().numpy())
        for layer in part.hidden:
            hidden = relu(affine(layer, hidden))
        return affine(part.output, hidden)
    total = np.zeros(decoder.out_dim)
    for level in range(part.levels):
        features = gamma(point, part.band_frequencies[level].numpy())
        feature = relu(affine(part.features[level], features))
        modulated = relu(feature + affine(part.modulations[level], mixed))
        if level == 0:
            hidden = modulated
        else:
            hidden = relu(affine(part.hidden[level - 1], modulated + hidden))
        total = total + affine(part.outputs[level], hidden)
    return total


@pytest.mark.parametrize(("aggregation", "modulation"), [*CHOICES, ("attention", "multi_band")])
@pytest.mark.parametrize("coord_dim", [2, 3])
def test_the_formula(aggregation: str, modulation: str, coord_dim: int) -> None:
    decoder = decoder_of(
        aggregation, modulation, coord_dim=coord_dim, head_dim=5, bandwidths=(8.0, 3.0, 5.0)
    )
    coords = torch.rand(2, 5, coord_dim, dtype=torch.float64) * 2 - 1
    tokens = torch.randn(2, TOKENS, 10, dtype=torch.float64)
    found = decoder(coords, tokens).detach().numpy()
    for instance in range(2):
        for index in range(5):
            point = coords[instance, index].tolist()
            expected = by_hand(decoder, point, tokens[instance].numpy())
            np.testing.assert_allclose(found[instance, index], expected, rtol=1e-9, atol=1e-12)


def test_both_of_its_own_parts_are_the_fast_decoder() -> None:
    slow = decoder_of("attention", "multi_band")
    fast = ginr_fast.LocalityAwareDecoder(
        token_dim=10,
        hidden_dim=12,
        feature_dim=16,
        bandwidths=(8.0, 3.0),
        query_bandwidth=4.0,
        heads=2,
    ).double()
    parts = {
        "query_projection": slow.aggregate.query,
        "key_projection": slow.aggregate.key,
        "value_projection": slow.aggregate.value,
        "output_projection": slow.aggregate.output,
        "query_feature": slow.query_feature,
        "band_features": slow.modulate.features,
        "modulations": slow.modulate.modulations,
        "hidden": slow.modulate.hidden,
        "outputs": slow.modulate.outputs,
    }
    for name, part in parts.items():
        getattr(fast, name).load_state_dict(part.state_dict())
    # The slow one's frequencies are float32 numbers, as the fast one's.
    tokens = torch.randn(2, TOKENS, 10, dtype=torch.float64)
    where = ginr_fast.grid(4, 6)
    torch.testing.assert_close(slow(where, tokens), fast(where, tokens), rtol=1e-9, atol=1e-12)


def test_both_parts_replaced_are_ipc() -> None:
    """Five layers, the second modulated: the field of instance pattern composers."""
    ours = decoder_of("patterns", "stack")
    spec = ginr_fast.FieldSpec(
        coord_dim=2,
        out_dim=3,
        hidden_dim=12,
        hidden_layers=3,
        encoding=ginr_fast.FourierEncoding.log_spaced(4, 4.0),
    )
    ipc = ginr_fast.PatternFieldDecoder(spec, token_dim=10, tokens=TOKENS).double()
    ipc.head.load_state_dict(ours.aggregate.head.state_dict())
    stack = ours.modulate
    layers = [ours.query_feature, None, *stack.hidden, stack.output]
    shared = [stack.bias if layer is None else layer for layer in layers]
    flat = []
    for layer in shared:
        flat += [layer] if isinstance(layer, torch.Tensor) else [layer.weight, layer.bias]
    with torch.no_grad():
        ipc.mixing.copy_(ours.aggregate.mixing)
        for theirs, mine in zip(ipc.shared, flat, strict=True):
            theirs.copy_(mine)
    tokens = torch.randn(2, TOKENS, 10, dtype=torch.float64)
    where = ginr_fast.grid(5, 4)
    torch.testing.assert_close(ours(where, tokens), ipc(where, tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("aggregation", "modulation"), CHOICES)
def test_gradients_reach_everything(aggregation: str, modulation: str) -> None:
    decoder = decoder_of(aggregation, modulation)
    coords = torch.rand(2, 3, 2, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, TOKENS, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decoder, (coords, tokens))
    decoder(coords, tokens).square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("aggregation", "modulation"), CHOICES)
def test_coordinates_may_come_in_any_shape(aggregation: str, modulation: str) -> None:
    decoder = decoder_of(aggregation, modulation).float()
    tokens = torch.randn(2, TOKENS, 10)
    where = ginr_fast.grid(130, 129)  # more than a block
    found = decoder(where, tokens)
    assert found.shape == (2, 130, 129, 3)
    torch.testing.assert_close(found, decoder(where.tensor(), tokens))
    points = where.tensor()[:3, :4]
    each = torch.stack([points, points.flip(0)])
    both = decoder(each, tokens)
    torch.testing.assert_close(both[0], decoder(points, tokens)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], decoder(points.flip(0), tokens)[1], rtol=1e-4, atol=1e-5)
    assert decoder(torch.empty(0, 2), tokens).shape == (2, 0, 3)
    assert decoder(points, tokens[:0]).shape == (0, 3, 4, 3)


def test_half_precision_keeps_its_frequencies() -> None:
    decoder = decoder_of("patterns", "multi_band").bfloat16()
    assert decoder.query_frequencies.dtype == decoder.modulate.band_frequencies.dtype
    assert decoder.query_frequencies.dtype.itemsize >= 4
    assert decoder(ginr_fast.grid(3, 3), torch.randn(1, TOKENS, 10).bfloat16()).isfinite().all()


def test_mistakes_are_named() -> None:
    good = {"aggregation": "patterns", "modulation": "stack"}
    for name, value in (
        ("aggregation", "mean"),
        ("modulation", "film"),
        ("tokens", 0),
        ("hidden_dim", 2.5),
        ("feature_dim", 3),
        ("bandwidths", ()),
        ("bandwidths", (8.0, -1.0)),
        ("query_bandwidth", 0),
    ):
        with pytest.raises(ValueError, match=name):
            decoder_of(**{**good, name: value})
    with pytest.raises(ValueError, match="heads"):
        decoder_of("attention", "stack", heads=5)
    decoder = decoder_of("patterns", "stack").float()
    with pytest.raises(ValueError, match="tokens"):
        decoder(ginr_fast.grid(2, 2), torch.randn(1, TOKENS + 1, 10))
    with pytest.raises(ValueError, match="coords"):
        decoder(torch.rand(4, 3), torch.randn(1, TOKENS, 10))


# Switches of the recipe


def test_the_recipe_chooses_the_decoder() -> None:
    whole = LaGinr(MODEL)
    assert isinstance(whole.decoder, ginr_fast.LocalityAwareDecoder)
    count = sum(p.numel() for p in whole.parameters())
    for aggregation, modulation in CHOICES:
        model = LaGinr(replace(MODEL, aggregation=aggregation, modulation=modulation))
        assert isinstance(model.decoder, LocalityAblationDecoder)
        assert (model.decoder.aggregation, model.decoder.modulation) == (aggregation, modulation)
        assert model.decoder.levels == 2
        assert 0.6 * count < sum(p.numel() for p in model.parameters()) <= 1.05 * count
        found = model.reconstruct(torch.rand(1, 3, 16, 16))
        assert found.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    "model",
    [
        *({"bandwidths": b} for b in ((8.0,), (4.0, 8.0), (8.0, 5.0, 2.0), (8.0, 5.0, 4.0, 2.0))),
        {"bandwidths": (8.0, 8.0), "query_bandwidth": 8.0},
        *({"aggregation": a, "modulation": m} for a, m in CHOICES),
    ],
    ids=str,
)
def test_every_switch_trains(model: dict) -> None:
    """One image again and again: it must become better known than by its mean colour."""
    torch.manual_seed(1)
    found = LaGinr(replace(MODEL, **model))
    assert found.decoder.levels == len(model.get("bandwidths", MODEL.bandwidths))
    rows, columns = torch.meshgrid(*[torch.linspace(0, 1, 16)] * 2, indexing="ij")
    image = torch.stack([rows, columns, 0.5 + 0.5 * torch.sin(6 * rows)])[None]
    optimizer = torch.optim.Adam(found.parameters(), lr=3e-3)
    where = ginr_fast.grid(16, 16)
    for _ in range(40):
        loss = (found(image, where) - image.permute(0, 2, 3, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 * image.var((2, 3)).mean()


def test_a_run_keeps_its_switches(tmp_path: Path) -> None:
    recipe = replace(RECIPE, model=replace(MODEL, aggregation="patterns", bandwidths=(8.0,) * 3))
    train(recipe, open_data(recipe), tmp_path, QUIET)
    model = load_model(tmp_path)
    assert model.config == recipe.model
    assert isinstance(model.decoder, LocalityAblationDecoder) and model.decoder.levels == 3


# The variants of an ablation


def models_of(over: Over, recipe: ImagesRecipe = RECIPE) -> dict:
    return {entry.name: entry.recipe.model for entry in variants(recipe, over)}


def test_the_variants_are_those_of_the_papers() -> None:
    paper = LaGinrRecipe(steps=1)
    bandwidths = {
        (m.bandwidths, m.query_bandwidth) for m in models_of("bandwidths", paper).values()
    }
    assert bandwidths == {
        ((128.0, 32.0), 16.0),
        ((32.0, 128.0), 16.0),
        ((128.0, 128.0), 16.0),
        ((128.0, 32.0), 128.0),
    }
    assert [m.bandwidths for m in models_of("levels", paper).values()] == [
        (128.0,),
        (128.0, 32.0),
        (128.0, 64.0, 32.0),
        (128.0, 90.0, 64.0, 32.0),
    ]
    modules = models_of("modules", paper)
    assert [(m.aggregation, m.modulation, m.query_bandwidth) for m in modules.values()] == [
        ("attention", "multi_band", 16.0),
        ("patterns", "multi_band", 16.0),
        ("attention", "stack", 128.0),
        ("patterns", "stack", 128.0),
    ]
    assert {m.aggregation for m in models_of("aggregation").values()} == {"attention", "patterns"}
    stacks = [m.query_bandwidth for m in models_of("modulation").values()]
    assert stacks == [4.0, 4.0, 8.0]
    groups = [m.groups for m in models_of("groups", TransInrRecipe(steps=1)).values()]
    assert groups == [1, 4, 16, 64]
    narrow = TransInrRecipe(model=TransInrConfig(hidden_dim=24), steps=1)
    assert [m.groups for m in models_of("groups", narrow).values()] == [1, 4]


def test_variants_share_everything_else() -> None:
    for over in ("modules", "aggregation", "modulation", "bandwidths", "levels"):
        for entry in variants(RECIPE, over):
            changed = differences(as_plain(RECIPE), as_plain(entry.recipe))
            assert all(name.startswith("model.") for name in changed)
            entry.recipe.build()


def test_ablations_of_other_systems_are_refused() -> None:
    cases: list[tuple[Over, Any]] = [
        ("groups", RECIPE),
        ("levels", TransInrRecipe(steps=1)),
        ("losses", RECIPE),
        ("groups", INRCT),
    ]
    for over, recipe in cases:
        with pytest.raises(ValueError, match="over"):
            variants(recipe, over)
    with pytest.raises(ValueError, match="over: expected one of modules"):
        variants(RECIPE, "colour")


def test_the_losses_are_switched_as_in_the_paper() -> None:
    rows = variants(INRCT, "losses")
    found = [
        (
            tuple(vars(entry.recipe.objective)[name] for name in LOSSES),
            entry.recipe.first_steps(1),
            entry.published_fid,
            entry.published,
        )
        for entry in rows
        if isinstance(entry.recipe, InrctRecipe)
    ]
    assert found == [
        ((0, 3, 0), 0, 389, 49.2),
        ((2, 0, 0), 0, 15.93, 10.7),
        ((2, 3, 0), 0, 19.31, 45.1),
        ((2, 3, 5), 0, 9.30, 37.4),
        ((2, 3, 5), 2, 7.88, 40.9),
    ]
    for entry in rows:
        changed = differences(as_plain(INRCT), as_plain(entry.recipe))
        switches = ("objective.", "reconstruction_")
        assert all(name.startswith(switches) for name in changed)
    for changes, named in (
        ({"reconstruction_steps": 0}, "reconstruction_steps, .* switched off here"),
        ({"objective": Objective(diffusion=0)}, "objective: expected all losses on"),
    ):
        with pytest.raises(ValueError, match=named):
            variants(replace(INRCT, **changes), "losses")  # type: ignore[arg-type]


# Runs side by side


def entries() -> list[Entry]:
    short = replace(RECIPE, steps=3)
    one_band = replace(short, model=replace(MODEL, bandwidths=(8.0,)))
    return [Entry("two bands", short, 37.46), Entry("one band: 8", one_band)]


def test_a_comparison_is_resumable(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []

    def started(entry: Entry, finished: bool) -> None:
        told.append((entry.name, finished))

    first = compare(entries()[:1], None, tmp_path, QUIET, started)
    results = compare(entries(), None, tmp_path, QUIET, started)
    assert told == [("two bands", False), ("two bands", True), ("one band: 8", False)]
    assert results[0] == first[0] and compare(entries(), None, tmp_path, QUIET) == results
    alone = train(entries()[1].recipe, open_data(RECIPE), tmp_path / "alone", QUIET)
    found = results[1]
    assert found.psnr == pytest.approx(alone.scores.psnr)
    assert found.ssim == pytest.approx(alone.scores.values()["ssim"])
    assert found.parameters == sum(p.numel() for p in alone.model.parameters())
    assert found.decoder_parameters == sum(p.numel() for p in alone.model.decoder.parameters())
    assert found.steps == 3 and found.seconds is not None and 0 < found.seconds < 60
    assert (found.published, results[0].published) == (None, 37.46)
    assert found.weights == tmp_path / "one-band-8" / "model.safetensors"
    # Weights that are gone are made again, from the checkpoints.
    found.weights.unlink()
    again = compare(entries(), None, tmp_path, QUIET)[1]
    assert again.psnr == found.psnr and again.weights.is_file() and again.seconds is None


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    compare(entries()[:1], None, tmp_path, QUIET)
    entry = entries()[0]
    longer = replace(entry, recipe=replace(entry.recipe, steps=4))
    with pytest.raises(CheckpointError, match="steps: 3 against 4"):
        compare([longer], None, tmp_path, QUIET)
    result = tmp_path / "two-bands" / "result.json"
    result.write_text(result.read_text()[:50])
    with pytest.raises(CheckpointError, match="result.json: no result"):
        compare([entry], None, tmp_path, QUIET)


def test_an_unfair_comparison_is_refused(tmp_path: Path) -> None:
    first, second = entries()
    for name, recipe in (
        ("steps: 3 against 4", replace(second.recipe, steps=4)),
        ("batch_size: 4 against 2", replace(second.recipe, batch_size=2)),
        ("image_size", replace(second.recipe, model=replace(MODEL, image_size=20))),
    ):
        with pytest.raises(ValueError, match=name):
            compare([first, replace(second, recipe=recipe)], None, tmp_path, QUIET)
    with pytest.raises(ValueError, match="different names"):
        compare([first, first], None, tmp_path, QUIET)
    with pytest.raises(ValueError, match="at least one"):
        compare([], None, tmp_path, QUIET)
    with pytest.raises(ValueError, match="devices"):
        compare([first], None, tmp_path, replace(QUIET, devices=2))
    with pytest.raises(ValueError, match="name"):
        Entry("σ", RECIPE)


def test_results_are_shown(tmp_path: Path) -> None:
    results = compare(entries(), None, tmp_path, QUIET)
    printed = io.StringIO()
    Console(file=printed, width=120).print(table(results, "a title"))
    text = printed.getvalue()
    assert "a title" in text and "37.46" in text and f"{results[1].psnr:.2f}" in text
    assert "paper" not in _columns(table(results[1:]))
    with open(write_csv(results, tmp_path / "new" / "results.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["two bands", "one band: 8"]
    assert float(rows[1]["psnr"]) == results[1].psnr and rows[1]["published"] == ""
    assert Image.open(draw(results, tmp_path / "bars.png")).width > 300
    sheet = draw_reconstructions(results, RECIPE, tmp_path / "sheet.png", count=3)
    width, height = Image.open(sheet).size
    assert 3 * 96 < width < 4 * 110 and 3 * 96 < height < 4 * 116
    with pytest.raises(ValueError, match="count"):
        draw_reconstructions(results, RECIPE, tmp_path / "sheet.png", count=0)


def test_generative_models_are_compared_by_their_samples_too(tmp_path: Path) -> None:
    chosen = variants(INRCT, "losses")[-2:]
    results = compare(chosen, None, tmp_path, QUIET)
    assert compare(chosen, None, tmp_path, QUIET) == results
    alone = train(chosen[1].recipe, open_data(INRCT), tmp_path / "alone", QUIET)
    assert results[1].distance == pytest.approx(alone.scores.values()["distance_2"], rel=1e-3)
    assert results[1].published_fid == 7.88 and results[0].published == 37.4
    # Its twin in training is no part of a model.
    assert results[1].parameters == sum(p.numel() for p in INRCT.build().parameters())
    printed = io.StringIO()
    Console(file=printed, width=140).print(table(results, "a title"))
    text = printed.getvalue()
    assert "paper (FID)" in text and "7.88" in text and f"{results[0].distance:.3f}" in text
    with open(write_csv(results, tmp_path / "results.csv"), newline="") as file:
        assert float(list(csv.DictReader(file))[1]["distance"]) == results[1].distance
    assert Image.open(draw(results, tmp_path / "bars.png")).width > 1000
    sheet = draw_reconstructions(results, INRCT, tmp_path / "sheet.png", count=3)
    assert Image.open(sheet).height > Image.open(tmp_path / "bars.png").height


def _columns(drawn: Table) -> str:
    return " ".join(str(column.header) for column in drawn.columns)


SMALL = (
    "--steps 2 --batch-size 4 --coordinates 64 --views.held-out-views 3 --accelerator cpu "
    "--no-progress --no-tensorboard --model.image-size 16 --model.encoder-dim 32 "
    "--model.encoder-depth 1 --model.encoder-head-dim 16 --model.encoder-mlp-dim 48 "
    "--model.hidden-dim 32"
)


@pytest.mark.parametrize(
    ("recipe", "over", "rows"),
    [("la-ginr-tiny", "modules", 4), ("trans-inr-tiny", "groups", 3)],
)
def test_ablate_from_the_command_line(
    recipe: str, over: str, rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablation"
    command = ["ablate", recipe, "--over", over, *SMALL.split(), "--out", str(out)]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert text.count(": training\n") == rows and "paper" in text
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count(": trained before\n") == rows
    with open(out / "results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == rows
    assert (out / "psnr.png").is_file() and (out / "reconstructions.png").is_file()


def test_mistakes_of_ablate_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "recipe: expected one of"),
        (["ipc-tiny"], "recipe: expected one of la-ginr, trans-inr, inrct, got ipc-tiny"),
        (["la-ginr-tiny", "--over", "groups"], "over: groups are of trans-inr"),
        (["la-ginr-tiny", "--over", "losses"], "over: losses are of inrct"),
    ):
        assert cli.main(["ablate", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["ablate", "--help"]) == 0
    assert "trans-inr-celeba" in capsys.readouterr().out
