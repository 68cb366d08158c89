"""Tokenizer and Transformer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ginr_fast.encoders import LatentEncoder, PatchTokenizer, TransformerBlock
from ginr_fast.encoders.transformer import attention


@pytest.mark.parametrize(
    ("size", "patch", "tokens"), [(178, 9, 400), (256, 16, 256), (512, 32, 256), (1024, 48, 484)]
)
def test_published_token_counts(size: int, patch: int, tokens: int) -> None:
    tokenizer = PatchTokenizer(size, patch, dim=4)
    assert tokenizer.side**2 == tokens
    assert tokenizer(torch.zeros(1, 3, size, size)).shape == (1, tokens, 4)


def test_178_is_padded_by_one_pixel_a_side() -> None:
    tokenizer = PatchTokenizer(178, 9, dim=4)
    images = torch.rand(2, 3, 178, 178)
    by_unfold = F.unfold(images, 9, stride=9, padding=1).transpose(1, 2)
    assert torch.equal(tokenizer.patches(images), by_unfold)


def test_patches_of_several_channels_hold_every_pixel_once() -> None:
    images = torch.arange(2 * 8 * 8.0).reshape(1, 2, 8, 8)
    patches = PatchTokenizer(8, 4, channels=2, dim=4).patches(images)
    assert torch.equal(patches[0, 1].reshape(2, 4, 4), images[0, :, :4, 4:])
    assert torch.equal(patches.flatten().sort().values, images.flatten())


def test_replicate_padding_repeats_the_border() -> None:
    tokenizer = PatchTokenizer(3, 2, channels=1, dim=2, padding="replicate")
    assert tokenizer.pad == (0, 1)
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert tokenizer.patches(image)[0, 3].tolist() == [8, 8, 8, 8]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"image_size": 0, "patch_size": 4}, "image_size"),
        ({"image_size": 8, "patch_size": 0}, "patch_size"),
        ({"image_size": 8, "patch_size": 4, "dim": 1.5}, "dim"),
        ({"image_size": 8, "patch_size": 4, "padding": "mirror"}, "padding"),
    ],
)
def test_tokenizer_names_bad_arguments(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        PatchTokenizer(**arguments)


def test_tokenizer_names_a_wrong_image() -> None:
    tokenizer = PatchTokenizer(8, 4, dim=4)
    with pytest.raises(
        ValueError, match=r"images: expected shape \(B, 3, 8, 8\), got \(1, 3, 9, 8\)"
    ):
        tokenizer(torch.zeros(1, 3, 9, 8))
    with pytest.raises(TypeError, match="images: expected a tensor, got list"):
        tokenizer([1, 2])


def test_block_is_the_pre_norm_formula() -> None:
    block = TransformerBlock(dim=12, heads=3, head_dim=5, mlp_dim=20).double()
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    normed = block.attention_norm(tokens)
    query, key, value = (normed @ part.T for part in block.qkv.weight.chunk(3))
    heads = []
    for head in range(3):
        columns = slice(5 * head, 5 * head + 5)
        scores = query[..., columns] @ key[..., columns].mT / 5**0.5
        heads.append(scores.softmax(-1) @ value[..., columns])
    expected = tokens + block.attention_out(torch.cat(heads, -1))
    expected = expected + block.mlp(block.mlp_norm(expected))
    assert torch.allclose(block(tokens), expected, atol=1e-12)


def test_short_bfloat16_attention_agrees_with_pytorch() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 20, 16, generator=generator) for _ in range(3)]
    query, key, value = (part.bfloat16().requires_grad_() for part in exact)
    expected = F.scaled_dot_product_attention(
        *(part.detach().float() for part in (query, key, value))
    )
    found = attention(query, key, value)
    assert found.dtype == torch.bfloat16
    error = (found.float() - expected).norm() / expected.norm()
    assert error < 1e-2
    found.float().square().sum().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in (query, key, value))


def test_encoder_returns_the_outputs_of_the_latent_tokens() -> None:
    encoder = LatentEncoder(
        dim=16, depth=2, heads=2, head_dim=4, mlp_dim=32, latents=5, token_dim=6
    ).double()
    tokens = torch.randn(3, 9, 16, dtype=torch.float64)
    found = encoder(tokens)
    assert found.shape == (3, 5, 6)
    # Self-attention knows no order: data tokens may come in any.
    assert torch.allclose(encoder(tokens[:, torch.randperm(9)]), found, atol=1e-12)
    # Instances of a batch do not see each other.
    assert torch.allclose(encoder(tokens[1:2]), found[1:2], atol=1e-12)
    # They do depend on the data, on all of it.
    (gradient,) = torch.autograd.grad(encoder(tokens.requires_grad_()).square().sum(), tokens)
    assert (gradient.abs().sum(-1) > 0).all()


def test_encoder_takes_empty_batches() -> None:
    encoder = LatentEncoder(dim=8, depth=1, heads=1, head_dim=8, mlp_dim=8, latents=3, token_dim=4)
    assert encoder(torch.zeros(0, 5, 8)).shape == (0, 3, 4)


def test_encoder_names_bad_arguments() -> None:
    with pytest.raises(ValueError, match="^latents: expected a positive integer, got 0"):
        LatentEncoder(latents=0)
    with pytest.raises(ValueError, match="^depth: expected a non-negative integer, got -1"):
        LatentEncoder(depth=-1)
    encoder = LatentEncoder(dim=8, depth=0, heads=1, head_dim=8, mlp_dim=8, latents=3, token_dim=4)
    with pytest.raises(ValueError, match=r"tokens: expected shape \(B, T, 8\)"):
        encoder(torch.zeros(1, 5, 7))
