"""What tokens do: zeroed tokens, attention over tokens, attention over patches, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import MNIF, RECIPE

import ginr_fast
from ginr_fast import cli
from ginr_fast.analysis.attention import (
    block_attention,
    effective_tokens,
    latent_attention,
    patch_attention,
    patch_masks,
    token_attention,
)
from ginr_fast.analysis.encoded import encoded, held_out_count, token_names
from ginr_fast.analysis.locality import (
    evenly_chosen,
    locality,
    some_tokens,
    zeroed_differences,
)
from ginr_fast.encoders import LatentEncoder, TransformerBlock
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.ipc import IpcConfig
from ginr_fast.systems.light_fields import LaGinrLightFieldConfig
from ginr_fast.systems.radiance_views import TransInrViewsConfig
from ginr_fast.systems.trans_inr import TransInrConfig
from ginr_fast.training.checkpoints import load_model, load_saved, write_export
from ginr_fast.training.recipes import (
    ImagesRecipe,
    IpcRecipe,
    LaGinrLightFieldRecipe,
    TransInrRecipe,
    TransInrViewsRecipe,
    ViewsRecipe,
    as_plain,
)
from ginr_fast.training.tasks import DataOptions, open_data, restored, task_for
from ginr_fast.training.tasks.made import CACHE_VARIABLE
from ginr_fast.training.tasks.views import ViewsTask

_ENCODER: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "encoder_dim": 32,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_head_dim": 16,
    "encoder_mlp_dim": 48,
}
_FIELD: dict[str, Any] = {"hidden_dim": 16, "hidden_layers": 1, "frequencies": 8, "bandwidth": 8.0}
RECIPES: dict[str, ImagesRecipe] = {
    "la-ginr": RECIPE,
    "ipc": IpcRecipe(model=IpcConfig(**_ENCODER, **_FIELD, latents=9), views=RECIPE.views, steps=1),
    "trans-inr": TransInrRecipe(
        model=TransInrConfig(**_ENCODER, **_FIELD, groups=4), views=RECIPE.views, steps=1
    ),
}


@pytest.fixture(autouse=True)
def _seeded(one_thread: None) -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> ImagesRecipe:
    return RECIPES[request.param]


def model_of(recipe: ImagesRecipe) -> ImageInr:
    model = recipe.build().eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # outputs start near zero
            parameter.mul_(1.5)
    return model


# Numbers of locality


def test_locality_of_known_changes() -> None:
    change = torch.zeros(4, 16, 16, 3)
    change[0, 5, 9, 1] = -2.0  # one pixel
    change[1] = 0.1  # everywhere
    change[2, 4:8, 8:12] = 0.5  # a square the size of the window
    found = locality(change)  # the fourth changes nothing
    assert (found.window, found.even, found.tokens, found.silent) == (4, 1 / 16, 3, 1)
    assert found.area == pytest.approx((1 / 256 + 1 + 16 / 256) / 3)
    assert found.concentration == pytest.approx((1 + 1 / 16 + 1) / 3)
    two = torch.zeros(1, 16, 16, 3)
    two[0, 0, 0] = two[0, 15, 15] = 1.0  # far from their centre of mass
    assert locality(two).concentration == 0.0
    assert locality(two).area == pytest.approx(2 / 256)
    corner = torch.zeros(1, 9, 16, 1)
    corner[0, :2, -2:] = 1.0
    assert locality(corner, window=3).concentration == pytest.approx(1.0)


def test_locality_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="none of them"):
        locality(torch.zeros(2, 4, 4, 3))
    with pytest.raises(ValueError, match="window"):
        locality(torch.ones(2, 4, 4, 3), window=5)
    with pytest.raises(ValueError, match="differences"):
        locality(torch.ones(2, 4, 3))


def test_evenly_chosen_numbers() -> None:
    assert evenly_chosen(256, 4) == [32, 96, 160, 224]
    assert evenly_chosen(3, 8) == [0, 1, 2]
    with pytest.raises(ValueError, match="count"):
        evenly_chosen(3, 0)


def test_zeroed_tokens_change_what_they_should(recipe: ImagesRecipe) -> None:
    model = model_of(recipe)
    where = ginr_fast.grid(7, 5)
    with torch.no_grad():
        tokens = model.encode(torch.rand(1, 3, 16, 16))
        kept = tokens.clone()
        found = zeroed_differences(lambda t: model.decode(where, t), tokens, [3, 0, 5], at_once=2)
        assert torch.equal(tokens, kept)
        for change, token in zip(found, [3, 0, 5], strict=True):
            without = tokens.clone()
            without[0, token] = 0
            expected = model.decode(where, without) - model.decode(where, tokens)
            torch.testing.assert_close(change, expected[0], rtol=1e-3, atol=1e-6)
            assert expected.abs().max() > 1e-4
    with pytest.raises(ValueError, match="tokens: expected 0 to"):
        zeroed_differences(lambda t: t, tokens, [tokens.shape[1]])
    with pytest.raises(ValueError, match="at least one"):
        zeroed_differences(lambda t: t, tokens, [])
    with pytest.raises(ValueError, match="expected shape"):
        zeroed_differences(lambda t: t, tokens[0], [0])


# Attention of coordinates over tokens


def probing_decoder(dtype: torch.dtype = torch.float32, **options) -> tuple:
    """A decoder whose output is its own modulation vector m_v, and nothing else."""
    decoder = ginr_fast.LocalityAwareDecoder(
        out_dim=8,
        token_dim=6,
        hidden_dim=8,
        feature_dim=16,
        bandwidths=(4,),
        query_bandwidth=8,
        modulation_relu=False,
        **options,
    )
    with torch.no_grad():
        for parameter in decoder.query_projection.parameters():
            parameter.mul_(8)  # far from even
        for layer in (decoder.band_features[0], decoder.modulations[0], decoder.outputs[0]):
            layer.weight.zero_()
            layer.bias.zero_()
        for layer in (decoder.modulations[0], decoder.outputs[0]):
            torch.nn.init.eye_(layer.weight)
    return decoder.to(dtype), torch.randn(2, 11, 6, dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [{}, {"heads": 1}, {"head_dim": 3}, {"query_linear": True}, {"share_key_value": True}],
)
def test_attention_gives_the_decoder_s_modulation_vector(options: dict) -> None:
    decoder, tokens = probing_decoder(**options)
    where = ginr_fast.grid(6, 5)
    found = token_attention(decoder, where, tokens)
    assert found.shape == (2, decoder.heads, 6, 5, 11)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, decoder.heads, 6, 5))
    assert found.max() > 0.3
    with torch.no_grad():
        values = decoder.keys_and_values(tokens)[1]
        mixed = torch.einsum("bhijr,bhrd->bijhd", found, values).flatten(-2)
        expected = decoder.output_projection(mixed)
        torch.testing.assert_close(decoder(where, tokens), expected, rtol=1e-4, atol=1e-5)


def test_attention_by_hand() -> None:
    decoder, tokens = probing_decoder(torch.float64, heads=2)
    point = [0.3, -0.7]
    found = token_attention(decoder, torch.tensor([point], dtype=torch.float64), tokens)
    assert found.dtype == torch.float64 and found.shape == (2, 2, 1, 11)
    frequencies = decoder.query_frequencies.tolist()
    phases = [math.pi * w * v for v in point for w in frequencies]
    gamma = np.array([math.cos(p) for p in phases] + [math.sin(p) for p in phases])
    feature, projection, key = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in (decoder.query_feature, decoder.query_projection, decoder.key_projection)
    )
    query = projection[0] @ np.maximum(feature[0] @ gamma + feature[1], 0) + projection[1]
    for instance in range(2):
        keys = [key[0] @ token + key[1] for token in tokens[instance].numpy()]
        for head in range(2):
            own = slice(4 * head, 4 * head + 4)
            scores = [math.exp(query[own] @ k[own] / 2) for k in keys]
            expected = np.array(scores) / sum(scores)
            np.testing.assert_allclose(found[instance, head, 0], expected, rtol=1e-9)


def test_attention_of_chosen_tokens_and_of_many_points() -> None:
    decoder, tokens = probing_decoder()
    where = ginr_fast.grid(100, 90)  # more than a block
    found = token_attention(decoder, where, tokens, [7, 2])
    assert found.shape == (2, 2, 100, 90, 2)
    row = token_attention(decoder, where.tensor()[97, :3], tokens)
    torch.testing.assert_close(found[:, :, 97, :3], row[..., [7, 2]], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="tokens"):
        token_attention(decoder, where, tokens, [11])
    with pytest.raises(ValueError, match="coords"):
        token_attention(decoder, torch.rand(4, 3), tokens)
    with pytest.raises(TypeError, match="LocalityAwareDecoder"):
        token_attention(model_of(RECIPES["ipc"]).decoder, where, tokens)


# Attention of latent tokens over patches


def test_block_attention_is_what_the_block_does() -> None:
    block = TransformerBlock(dim=12, heads=3, head_dim=5, mlp_dim=8)
    with torch.no_grad():
        block.qkv.weight.mul_(3)
        stream = torch.randn(2, 9, 12)
        attention = block_attention(block, stream)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 9))
        value = block.qkv(block.attention_norm(stream)).chunk(3, -1)[2].unflatten(-1, (3, 5))
        mixed = torch.einsum("bhqk,bkhd->bqhd", attention, value).flatten(-2)
        after = stream + block.attention_out(mixed)
        after = after + block.mlp(block.mlp_norm(after))
        torch.testing.assert_close(block(stream), after, rtol=1e-5, atol=1e-5)


def test_latent_attention_is_of_the_last_block() -> None:
    encoder = LatentEncoder(12, 2, 3, 4, 8, latents=5, token_dim=None)
    data = torch.randn(2, 7, 12)
    found = latent_attention(encoder, data)
    assert found.shape == (2, 3, 5, 7)
    with torch.no_grad():
        stream = torch.cat([encoder.latents.expand(2, -1, -1), data], 1)
        full = block_attention(encoder.blocks[1], encoder.blocks[0](stream))
    torch.testing.assert_close(found, full[:, :, :5, 5:])
    assert not encoder.blocks[1]._forward_pre_hooks
    with pytest.raises(ValueError, match="at least one block"):
        latent_attention(LatentEncoder(12, 0, 3, 4, 8, latents=5), data)
    with pytest.raises(ValueError, match="tokens"):
        latent_attention(encoder, data[0])
    assert not encoder.blocks[1]._forward_pre_hooks


def test_patch_masks_lie_over_the_image(recipe: ImagesRecipe) -> None:
    # 16 pixels in patches of 5: padded to 20, two on each side.
    model = model_of(replace(recipe, model=replace(recipe.model, patch_size=5)))
    images = torch.rand(2, 3, 16, 16)
    attention = patch_attention(model, images)
    tokens = model.encode(images).shape[1]
    assert attention.shape == (2, tokens, 4, 4)
    share = attention.sum((2, 3))
    assert (attention > 0).all() and (share < 1).all()
    each = latent_attention(model.encoder, model.tokenizer(images * 2 - 1)).mean(1)
    torch.testing.assert_close(attention.flatten(2), each)
    masks = patch_masks(model.tokenizer, attention)
    assert masks.shape == (2, tokens, 16, 16) and (masks >= 0).all()
    torch.testing.assert_close(masks.amax((2, 3)), torch.ones(2, tokens))
    # All attention on one patch: its part of the image is bright, with soft edges, no more.
    single = torch.zeros(1, 1, 4, 4)
    single[0, 0, 1, 3] = 0.4  # rows 5..9 and columns 15..19 of the padded image
    mask = patch_masks(model.tokenizer, single)[0, 0]
    assert mask[3:8, 13:].min() > 0.3 and mask[5, 15] == mask.max()
    assert mask[11:].max() == 0 and mask[:, :10].max() == 0
    with pytest.raises(ValueError, match="images"):
        patch_attention(model, images[0])


# The command


def exported(recipe: Any, path: Path) -> Path:
    model = recipe.build()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(1.5)
    write_export(path, recipe.system, {"recipe": as_plain(recipe)}, model.state_dict())
    return path


def run(*arguments: object) -> object:
    try:
        return cli.main(["analyse", *map(str, arguments)])
    except SystemExit as stopped:  # what the parser finds wrong, or --help
        return stopped.code


def test_analyse_tokens(
    recipe: ImagesRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = exported(recipe, tmp_path / "model.safetensors")
    assert run(weights, "tokens", "--count", 2, "--shown", 3) == 0
    text = capsys.readouterr().out
    folder = tmp_path / "analysis"
    content = json.loads((folder / "tokens.json").read_text())
    assert content["instances"] == [1, 4] and len(content["tokens shown"]) == 3
    assert f"differences x {content['factor']:g}" in text
    areas = [figures["area"] for figures in content["figures"].values()]
    assert content["mean area"] == pytest.approx(sum(areas) / 2) and 0 < areas[0] <= 1
    assert f"{100 * areas[0]:.1f}" in text and "4x4 pixels" in text
    width, height = Image.open(folder / "tokens.png").size
    assert width > 5 * 96 and height > 2 * 96
    # The picture shows what zeroing the tokens changes.
    model = load_model(weights)
    task = restored(load_saved(weights), DataOptions(), torch.device("cpu"))
    image = task.held_out[4][None].float() / 255
    found = encoded(task, [4])[0]
    assert torch.equal(found.image, image[0]) and found.count == found.tokens.shape[1]
    torch.testing.assert_close(found.tokens, model.encode(image))
    shown = found.decode(found.tokens)[0].permute(2, 0, 1).clamp(0, 1)
    torch.testing.assert_close(shown, model.reconstruct(image)[0])


def test_analyse_patches(recipe: ImagesRecipe, tmp_path: Path) -> None:
    weights = exported(recipe, tmp_path / "model.safetensors")
    assert run(weights, "patches", "--instances", 5, 0, 2, "--tokens", 0, 8) == 0
    content = json.loads((tmp_path / "analysis" / "patches.json").read_text())
    assert content["tokens shown"] == [0, 8] and len(content["attention to patches"]) == 3
    assert all(0 < share < 1 for share in content["attention to patches"].values())
    assert Image.open(tmp_path / "analysis" / "patches.png").height > 3 * 96


def test_analyse_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = exported(RECIPE, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    options = ("--instances", 3, "--out", out, "--points", 0, 0, 15, 9)
    assert run(weights, "attention", *options) == 0
    figures = json.loads((out / "attention.json").read_text())["figures"]
    (figure,) = figures.values()
    assert figure["points"] == [[0, 0], [15, 9]] and len(figure["effective tokens"]) == 2
    assert all(1 <= number <= 16 for number in figure["effective tokens"])
    assert Image.open(out / "attention-3-maps.png").width > 9 * 96
    assert Image.open(out / "attention-3-points.png").width > 300
    assert "of 16" in capsys.readouterr().out


_VIEWS: dict[str, Any] = {
    "data_format": "srn",
    "training_views": None,
    "made_scenes": 1,
    "made_views": 3,
    "made_held_out": 2,
    "steps": 1,
}
_SMALL_VIEWS: dict[str, Any] = {**_ENCODER, "image_size": 12, "camera_distance": 1.3}
VIEWS: dict[str, ViewsRecipe] = {
    "light field": LaGinrLightFieldRecipe(
        model=LaGinrLightFieldConfig(
            **_SMALL_VIEWS, latents=8, token_dim=24, hidden_dim=24, feature_dim=36
        ),
        **_VIEWS,
    ),
    "radiance": TransInrViewsRecipe(
        model=TransInrViewsConfig(**_SMALL_VIEWS, **_FIELD, samples=8, groups=4, near=0.8, far=1.8),
        **_VIEWS,
    ),
}


@pytest.mark.parametrize("kind", sorted(VIEWS))
def test_analyses_of_view_synthesis(
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    weights = exported(VIEWS[kind], tmp_path / "model.safetensors")
    assert run(weights, "tokens", "--shown", 3, "--factor", 2.5) == 0
    assert "held-out scene" in capsys.readouterr().out
    content = json.loads((tmp_path / "analysis" / "tokens.json").read_text())
    assert content["instances"] == [0, 1] and content["factor"] == 2.5
    assert Image.open(tmp_path / "analysis" / "tokens.png").width > 5 * 96
    task = restored(load_saved(weights), DataOptions(), torch.device("cpu"))
    assert isinstance(task, ViewsTask)
    (found,) = encoded(task, [1])
    scene, known = task.held_out.scene(1), task.known(1, 1)
    view = known.targets[len(known.targets) // 2]
    expected = task.predicted(found.tokens, scene, [view])[0]
    shown = found.decode(found.tokens)[0].detach().permute(2, 0, 1)
    torch.testing.assert_close(shown.clamp(0, 1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.image, task.truth(scene, [view])[0])
    assert run(weights, "patches") == 2
    assert "expected a model of images" in capsys.readouterr().err
    if kind == "light field":
        assert run(weights, "attention", "--instances", 1) == 0
        assert (tmp_path / "analysis" / "attention-1-maps.png").is_file()
    else:
        assert found.coords is None and run(weights, "attention") == 2


def test_other_systems_are_refused() -> None:
    recipe = MNIF["images"]
    with pytest.raises(ValueError, match="expected an LA-GINR, TransINR or IPC"):
        held_out_count(task_for(recipe, open_data(recipe)))


def test_mistakes_of_the_command_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = exported(RECIPE, tmp_path / "model.safetensors")
    trans_inr = exported(RECIPES["trans-inr"], tmp_path / "trans-inr.safetensors")
    for arguments, message in (
        ((weights, "tokens", "--tokens", 16), "tokens: expected 0 to 15, got 16"),
        ((weights, "tokens", "--instances", 6), "instances: expected 0 to 5"),
        ((weights, "tokens", "--count", 0), "count: expected a positive integer"),
        ((weights, "tokens", "--window", 17), "window: expected 1 to 16, got 17"),
        ((weights, "tokens", "--factor", -1), "factor: expected a positive number"),
        ((weights, "attention", "--points", 16, 0), "points: expected rows to 15"),
        ((trans_inr, "attention"), "expected an LA-GINR"),
        ((tmp_path / "absent.pt", "tokens"), "does not exist"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    assert run("x", "tokens", "--help") == 0
    assert "--measured" in capsys.readouterr().out


def test_tokens_are_called_by_their_layer() -> None:
    decoder = RECIPES["trans-inr"].build().decoder
    assert decoder.groups == (4, 4, 3)
    assert token_names(decoder, [0, 4, 10]) == ["0 (layer 0)", "4 (layer 1)", "10 (layer 2)"]
    assert token_names(RECIPE.build().decoder, [0, 4]) == ["0", "4"]


def test_effective_tokens() -> None:
    decoder, tokens = probing_decoder()
    where = ginr_fast.grid(3, 4)
    attention = token_attention(decoder, where, tokens).double()
    entropy = -(attention * attention.log()).sum(-1)
    expected = entropy.mean((2, 3)).exp().float()
    torch.testing.assert_close(effective_tokens(decoder, where, tokens), expected)
    even = effective_tokens(decoder, where, tokens[:, :1].expand(-1, 11, -1))
    torch.testing.assert_close(even, torch.full((2, 2), 11.0))


def test_some_tokens_are_always_the_same() -> None:
    assert some_tokens(256, 8) == some_tokens(256, 8) == sorted(set(some_tokens(256, 8)))
    assert some_tokens(5, 8) == [0, 1, 2, 3, 4]
