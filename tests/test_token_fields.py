"""Fields made from latent tokens: the decoders of TransINR and IPC, and the models around them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import QUIET, RECIPE
from torch import nn

import ginr_fast
from ginr_fast.data.photos import photos
from ginr_fast.decoders.token_field import TokenFieldDecoder
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.systems.image_inr import EncoderConfig, ImageInr
from ginr_fast.systems.ipc import Ipc, IpcConfig
from ginr_fast.systems.trans_inr import TransInr, TransInrConfig
from ginr_fast.training.checkpoints import load_model
from ginr_fast.training.loop import train
from ginr_fast.training.recipes import IpcRecipe, TransInrRecipe, recipe

SPEC = FieldSpec(
    coord_dim=2,
    out_dim=3,
    hidden_dim=8,
    hidden_layers=2,
    encoding=FourierEncoding.log_spaced(3, 8.0),
)
SMALL = dict(
    image_size=16,
    patch_size=4,
    encoder_dim=32,
    encoder_depth=1,
    encoder_heads=2,
    encoder_head_dim=16,
    encoder_mlp_dim=48,
    hidden_dim=32,
    hidden_layers=2,
    frequencies=8,
    bandwidth=8.0,
)


def small(name: str) -> ImageInr:
    torch.manual_seed(0)
    if name == "trans-inr":
        return TransInr(TransInrConfig(**SMALL, groups=4))  # type: ignore[arg-type]
    return Ipc(IpcConfig(**SMALL, latents=9))  # type: ignore[arg-type]


def head(layer: nn.Module, token: torch.Tensor) -> torch.Tensor:
    """LayerNorm and Linear by hand, in float64."""
    norm, linear = layer  # type: ignore[misc]
    mean, variance = token.mean(), token.var(unbiased=False)
    normed = (token - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    return linear.weight @ normed + linear.bias


@pytest.mark.parametrize("layout", ["blocks", "tiled"])
@pytest.mark.parametrize("groups", [4, (8, 2, 1, 3)])
def test_grouped_weights_are_normalised_products(groups: object, layout: str) -> None:
    torch.manual_seed(0)
    decoder = ginr_fast.GroupedFieldDecoder(SPEC, 5, groups, layout).double()  # type: ignore[arg-type]
    tokens = torch.randn(2, decoder.tokens, 5, dtype=torch.float64)
    with torch.no_grad():
        found = SPEC.unpack(decoder.weights(tokens))
        first = 0
        for layer, (weight, bias) in enumerate(found):
            count = decoder.groups[layer]
            rows = weight.shape[1]
            for instance in range(2):
                for row in range(rows):
                    group = row // (rows // count) if layout == "blocks" else row % count
                    u = head(decoder.heads[layer], tokens[instance, first + group])
                    product = u * decoder.bases[layer][row]
                    wanted = product / product.square().sum().sqrt()
                    torch.testing.assert_close(weight[instance, row], wanted)
                assert bias is not None
                torch.testing.assert_close(bias[instance], decoder.biases[layer])
            first += count
    assert first == decoder.tokens


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_patterns_modulate_one_layer(layer: int, normalize: bool) -> None:
    torch.manual_seed(0)
    decoder = ginr_fast.PatternFieldDecoder(SPEC, 5, 6, layer, normalize).double()
    tokens = torch.randn(2, 6, 5, dtype=torch.float64)
    shared = iter(decoder.shared)
    with torch.no_grad():
        for index, (weight, bias) in enumerate(SPEC.unpack(decoder.weights(tokens))):
            plain = None if index == layer else next(shared)
            for instance in range(2):
                wanted = plain
                if wanted is None:
                    rows = torch.stack([head(decoder.head, token) for token in tokens[instance]])
                    wanted = decoder.mixing @ rows
                if normalize:
                    wanted = wanted / wanted.square().sum(1, keepdim=True).sqrt()
                torch.testing.assert_close(weight[instance], wanted)
            assert bias is not None
            torch.testing.assert_close(bias, next(shared).expand_as(bias))


@pytest.mark.parametrize("kind", [ginr_fast.GroupedFieldDecoder, ginr_fast.PatternFieldDecoder])
def test_values_and_rays_are_those_of_the_field(kind: type[TokenFieldDecoder]) -> None:
    torch.manual_seed(0)
    spec = replace(SPEC, coord_dim=3, out_dim=4, view_dim=4)
    decoder = kind(spec, 5)
    tokens = torch.randn(2, decoder.tokens, 5)
    coords, directions = torch.randn(2, 7, 3), torch.randn(2, 7, 3)
    weights = decoder.weights(tokens)
    torch.testing.assert_close(
        decoder(coords, tokens, directions),
        ginr_fast.field_mlp(coords, weights, spec, directions),
    )
    settings = dict(near=0.5, far=2.0, samples=5)
    found = decoder.render(coords, directions, tokens, **settings)  # type: ignore[arg-type]
    wanted = ginr_fast.volume_render(
        coords,
        directions,
        weights,
        spec,
        **settings,  # type: ignore[arg-type]
        convention="trans_inr",
    )
    torch.testing.assert_close(found.color, wanted.color)


def test_bad_arguments_are_named() -> None:
    for groups in (3, (4, 4, 4), (4, 4, 4, 2), 0):
        with pytest.raises(ValueError, match="groups: expected"):
            ginr_fast.GroupedFieldDecoder(SPEC, 5, groups)
    with pytest.raises(ValueError, match="layout: expected"):
        ginr_fast.GroupedFieldDecoder(SPEC, 5, 4, "rows")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="spec: expected a FieldSpec"):
        ginr_fast.GroupedFieldDecoder(None, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer: expected 0 to 3"):
        ginr_fast.PatternFieldDecoder(SPEC, 5, layer=4)
    with pytest.raises(ValueError, match="tokens: expected a positive"):
        ginr_fast.PatternFieldDecoder(SPEC, 5, tokens=0)
    with pytest.raises(ValueError, match="token_dim: expected a positive"):
        ginr_fast.PatternFieldDecoder(SPEC, 0)
    decoder = ginr_fast.PatternFieldDecoder(SPEC, 5, 6)
    with pytest.raises(ValueError, match="tokens: expected shape"):
        decoder(torch.rand(3, 2), torch.rand(2, 7, 5))


# Models


def test_published_sizes_are_the_defaults() -> None:
    tokens = torch.rand(1, 3, 178, 178)
    trans_inr, ipc = (
        TransInr(TransInrConfig(encoder_depth=1)),
        Ipc(IpcConfig(encoder_depth=1)),
    )
    with torch.no_grad():
        assert trans_inr.encode(tokens).shape == (1, 4 * 64 + 3, 768)
        assert ipc.encode(tokens).shape == (1, 256, 768)
    assert trans_inr.decoder.spec.layer_shapes[0] == (256, 256)
    assert EncoderConfig().encoder_depth == 6


@pytest.mark.parametrize("name", ["trans-inr", "ipc"])
def test_every_parameter_learns(name: str) -> None:
    model = small(name)
    images = torch.rand(2, 3, 16, 16)
    model(images, ginr_fast.grid(16, 16)).square().mean().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None and value.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", ["trans-inr", "ipc"])
def test_reconstruct_is_decode_on_pixel_centres(name: str) -> None:
    model = small(name)
    images = torch.rand(2, 3, 16, 16)
    wanted = model(images, ginr_fast.grid(32, 32)).permute(0, 3, 1, 2).clamp(0, 1)
    torch.testing.assert_close(model.reconstruct(images, 2), wanted)


@pytest.mark.parametrize("kind", [TransInrRecipe, IpcRecipe])
def test_training_learns_and_is_exported(kind: type, tmp_path: Path) -> None:
    model = small(kind.system).config
    chosen = kind(model=model, **{**_plain(RECIPE), "steps": 60, "learning_rate": 3e-3})
    losses: list[float] = []
    result = train(chosen, photos(), tmp_path, QUIET, lambda step, loss: losses.append(loss.item()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    again = load_model(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(again.reconstruct(images), result.model.reconstruct(images))


def _plain(chosen: object) -> dict[str, object]:
    return {name: value for name, value in vars(chosen).items() if name != "model"}


def test_recipes_have_the_published_values() -> None:
    for name in ("trans-inr-celeba", "trans-inr-imagenette"):
        chosen = recipe(name)
        assert isinstance(chosen, TransInrRecipe)
        assert chosen.model == TransInrConfig()
        assert (chosen.learning_rate, chosen.batch_size, chosen.schedule) == (1e-4, 16, "step")
    ipc = recipe("ipc-imagenette")
    assert isinstance(ipc, IpcRecipe)
    assert (ipc.model.bandwidth, ipc.epochs, ipc.schedule) == (128.0, 4000, "constant")
    assert recipe("ipc-celeba").model == IpcConfig()  # type: ignore[attr-defined]


def test_the_step_schedule_drops_to_a_tenth() -> None:
    chosen = recipe("trans-inr-celeba")
    rates = [chosen.learning_rate_at(step, 100) for step in (0, 79, 80, 99)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
