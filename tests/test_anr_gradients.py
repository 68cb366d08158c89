"""anr_decode: gradients of every order, and only those that are needed."""

from __future__ import annotations

import pytest
import torch
from anr_cases import SMALL, make_decoder
from locality_cases import make_coords, make_tokens, run

import ginr_fast
from ginr_fast import AnrWeights, anr_decode
from ginr_fast.ops import features, gemm
from ginr_fast.ops.anr_decode import attention, op


def tiny_problem(depth):
    """Leaf tensors of the operator, as small as they come, and a function of them."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    width, heads, key, value, attended = 3, 2, 2, 1, 4
    tensors = {
        "coords": random(2, 3, 2),
        "keys": random(2, heads, 4, key),
        "values": random(2, heads, 4, value),
        "query_weight": random(heads * key, 4),
        "attention_output_weight": random(attended, heads * value),
        "attention_output_bias": random(attended),
        "first_weight": random(width, attended),
        "first_bias": random(width),
        "hidden_weight": random(max(depth - 2, 0), width, width),
        "hidden_bias": random(max(depth - 2, 0), width),
        "output_weight": random(2, attended if depth == 1 else width),
        "output_bias": random(2),
    }
    if depth == 1:
        del tensors["first_weight"], tensors["first_bias"]

    def decode(backend, threshold, activation, grid=None):
        names = list(tensors)

        def function(*arguments):
            named = dict(zip(names, arguments, strict=True))
            coords, keys, values = (named.pop(n) for n in ("coords", "keys", "values"))
            weights = AnrWeights(
                frequencies=torch.tensor([0.7], dtype=torch.float64),
                first_weight=named.pop("first_weight", None),
                first_bias=named.pop("first_bias", None),
                **named,
            )
            with ginr_fast.backend(backend):
                return anr_decode(
                    coords if grid is None else grid,
                    keys,
                    values,
                    weights,
                    threshold=threshold,
                    activation=activation,
                )

        return function

    return tensors, decode


@pytest.mark.parametrize(
    ("depth", "threshold", "activation"),
    [(1, 0.2, "relu"), (2, 0.2, "mish"), (3, 0.0, "relu"), (3, 0.35, "mish")],
)
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_gradcheck(backend, depth, threshold, activation):
    tensors, decode = tiny_problem(depth)
    function = decode(backend, threshold, activation)
    assert torch.autograd.gradcheck(function, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_gradcheck_on_a_grid(threshold):
    tensors, decode = tiny_problem(3)
    function = decode("blocked", threshold, "mish", ginr_fast.grid(2, 3))
    tensors = (tensors["coords"].detach(), *list(tensors.values())[1:])
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_axes_of_a_grid_are_differentiable():
    decoder = make_decoder(torch.float64, **SMALL)
    tokens = make_tokens(2, 3, 11, torch.float64)
    axes = [torch.linspace(-0.9, 0.8, n, dtype=torch.float64).requires_grad_() for n in (2, 3)]

    def function(*axes):
        return decoder(ginr_fast.CoordinateGrid(axes), tokens)

    assert torch.autograd.gradcheck(function, axes)
    assert torch.autograd.gradgradcheck(function, axes)


@pytest.mark.parametrize("kind", ["points", "expanded", "grid"])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("activation", ["relu", "mish"])
def test_create_graph_does_not_change_the_gradients(kind, depth, activation):
    arguments = {**SMALL, "depth": depth, "activation": activation}
    decoder = make_decoder(torch.float64, **arguments)
    coords, tokens = make_coords(kind, 2, 9, 2), make_tokens(2, 4, 11, torch.float64)
    _, want = run(decoder, coords, tokens, "reference", coords_grad=True)
    _, got = run(decoder, coords, tokens, "blocked", coords_grad=True, create_graph=True)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-11, msg=name)


def test_one_tensor_in_two_places_with_create_graph():
    tensors, decode = tiny_problem(3)
    tensors["hidden_bias"] = tensors["first_bias"][None]
    leaf = tensors["first_bias"]
    grads = {}
    for create_graph in (False, True):
        out = decode("blocked", 0.2, "relu")(*tensors.values())
        (grad,) = torch.autograd.grad(out.sum(), leaf, create_graph=create_graph, retain_graph=True)
        grads[create_graph] = grad.detach()
    torch.testing.assert_close(grads[True], grads[False])


def test_a_penalty_on_the_gradient_of_coordinates_trains():
    decoder = make_decoder(torch.float64, **SMALL)
    tokens = make_tokens(2, 4, 11, torch.float64)

    def penalty_gradient(backend):
        coords = make_coords("points", 2, 9, 2).double().requires_grad_()
        with ginr_fast.backend(backend):
            out = decoder(coords, tokens)
        (slope,) = torch.autograd.grad(out.square().sum(), coords, create_graph=True)
        weight = decoder.layers[0].weight
        (grad,) = torch.autograd.grad(slope.square().sum(), weight)
        return grad

    want = penalty_gradient("reference")
    assert want.norm() > 0
    torch.testing.assert_close(penalty_gradient("blocked"), want)


def watched(monkeypatch):
    """The lists of gradients asked for, and the shapes of weight gradients computed."""
    asked, products = [], []
    backward, product = op._backward_op, gemm.transposed_product
    batched = attention._transposed_product

    def spy_backward(*arguments):
        asked.append(list(arguments[-1]))
        return backward(*arguments)

    def spy_product(x, y):
        products.append(tuple(sorted((x.shape[1], y.shape[1]))))
        return product(x, y)

    def spy_batched(x, y):
        products.append(tuple(sorted((x.shape[-1], y.shape[-1]))))
        return batched(x, y)

    monkeypatch.setattr(op, "_backward_op", spy_backward)
    monkeypatch.setattr(gemm, "transposed_product", spy_product)
    monkeypatch.setattr(attention, "_transposed_product", spy_batched)
    return asked, products


@pytest.mark.parametrize("kind", ["points", "one set", "grid"])
def test_only_needed_gradients_are_computed(kind, monkeypatch):
    decoder = make_decoder(**SMALL)
    coords = make_coords(kind, 2, 30, 2)
    for kept in (features.PointFeatures, features.GridFeatures):
        monkeypatch.setattr(kept, "backward", lambda *a: pytest.fail("features are not needed"))
    asked, products = watched(monkeypatch)
    tokens = make_tokens(2, 7, 11).requires_grad_()
    decoder.requires_grad_(False)
    torch.autograd.grad(decoder(coords, tokens).sum(), tokens)
    assert asked == [["keys", "values"]]
    assert set(products) == {(decoder.head_dim, 7)}


@pytest.mark.parametrize(
    ("layer", "names", "shapes"),
    [
        ("layers.3", ["output_weight", "output_bias"], {(3, 18)}),
        ("layers.2", ["hidden_weight", "hidden_bias"], {(18, 18)}),
        ("layers.0", ["first_weight", "first_bias"], {(15, 18)}),
    ],
)
def test_training_one_layer_stops_there(layer, names, shapes, monkeypatch):
    decoder = make_decoder(**{**SMALL, "depth": 4})
    coords, tokens = make_coords("grid", 2, 30, 2), make_tokens(2, 7, 11)
    decoder.requires_grad_(False)
    decoder.get_submodule(layer).requires_grad_()
    inputs = list(decoder.get_submodule(layer).parameters())
    with ginr_fast.backend("reference"):
        want = torch.autograd.grad(decoder(coords, tokens).sum(), inputs)
    asked, products = watched(monkeypatch)
    monkeypatch.setattr(
        attention.Attention, "backward", lambda *a: pytest.fail("attention is not needed")
    )
    got = torch.autograd.grad(decoder(coords, tokens).sum(), inputs)
    assert asked == [names] and set(products) == shapes
    for grad, other in zip(got, want, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-4)


def test_no_backward_without_a_gradient_and_no_grad_works():
    decoder = make_decoder(**SMALL).requires_grad_(False)
    coords, tokens = make_coords("grid", 2, 30, 2), make_tokens(2, 7, 11)
    out = decoder(coords, tokens)
    assert not out.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(decoder(coords, tokens), out)


@pytest.mark.parametrize("kind", ["points", "one set", "grid"])
@pytest.mark.parametrize("tiles", ["one head", "some rows", "some instances"])
def test_tiles_of_any_shape_give_the_same(kind, tiles, monkeypatch):
    """One head of one instance, some rows of an instance, several instances."""
    monkeypatch.setattr(gemm, "one_at_a_time", lambda x: tiles == "one head")
    monkeypatch.setattr(attention, "_FEW_LOGITS", 0)
    rows = {"one head": 1, "some rows": 64, "some instances": 200}[tiles]
    decoder = make_decoder(**SMALL)
    monkeypatch.setattr(attention, "CPU_TILE_ELEMENTS", rows * decoder.heads * 7)
    coords = make_coords(kind, 5, 90, 2)
    tokens = make_tokens(5, 7, 11).requires_grad_()

    def gradients():
        loss = decoder(coords, tokens).square().sum()
        return torch.autograd.grad(loss, [tokens, *decoder.parameters()])

    with ginr_fast.backend("reference"):
        wanted = gradients()
    shapes = []
    tiles_of = attention.Attention._tiles
    monkeypatch.setattr(
        attention.Attention,
        "_tiles",
        lambda *of: (shapes.append(tile) or tile for tile in tiles_of(*of)),
    )
    torch.testing.assert_close(gradients(), wanted)
    one = slice(0, 1)
    assert {"one head": one, "some rows": one, "some instances": slice(0, 2)}[tiles] == shapes[0][0]
    assert (shapes[0][2] == one) == (tiles == "one head")
