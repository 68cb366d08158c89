"""FieldSpec and the packed layout."""

from __future__ import annotations

import math

import pytest
import torch

from ginr_fast.fields import FieldSpec, FourierEncoding

SPEC = {"coord_dim": 2, "out_dim": 3, "hidden_dim": 8, "hidden_layers": 2}


def test_layers_shapes_and_count():
    spec = FieldSpec(**SPEC)
    assert spec.layers == 4
    assert spec.layer_shapes == ((8, 2), (8, 8), (8, 8), (3, 8))
    assert spec.parameter_count == (8 * 2 + 8) + 2 * (8 * 8 + 8) + (3 * 8 + 3)
    assert [slot.kind for slot in spec.slots] == ["weight", "bias"] * 4
    assert [slot.layer for slot in spec.slots] == [0, 0, 1, 1, 2, 2, 3, 3]
    ends = [slot.offset + slot.size for slot in spec.slots]
    assert [slot.offset for slot in spec.slots] == [0, *ends[:-1]]
    assert ends[-1] == spec.parameter_count


def test_without_bias_and_hidden_layers():
    spec = FieldSpec(**{**SPEC, "hidden_layers": 0}, bias=False)
    assert spec.layer_shapes == ((8, 2), (3, 8))
    assert [slot.kind for slot in spec.slots] == ["weight", "weight"]
    assert all(bias is None for _, bias in spec.unpack(torch.zeros(1, spec.parameter_count)))


def test_encoding_widens_the_first_layer():
    encoding = FourierEncoding.log_spaced(64, 1024)
    spec = FieldSpec(**SPEC, encoding=encoding)
    assert spec.input_dim == 256
    assert spec.layer_shapes[0] == (8, 256)
    assert encoding.frequencies[0] == pytest.approx(math.pi)
    assert encoding.frequencies[-1] == pytest.approx(math.pi * 1024)
    ratios = [b / a for a, b in zip(encoding.frequencies, encoding.frequencies[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * 63)
    assert FourierEncoding.log_spaced(9, 256, scale=1.0).frequencies == pytest.approx(
        tuple(2.0**j for j in range(9))
    )
    assert FourierEncoding.log_spaced(1, 8).frequencies == (math.pi,)


def test_equal_specs_are_one_dictionary_key():
    first, second = FieldSpec(**SPEC, w0=30.0), FieldSpec(**SPEC, w0=30.0)
    assert first == second and hash(first) == hash(second)
    assert first != FieldSpec(**SPEC, w0=20.0)
    assert {first: 1}[second] == 1
    assert "_slots" not in repr(first)


@pytest.mark.parametrize("bias", [True, False])
def test_view_branch(bias):
    """View, density, the colour's hidden layer, colour, in the place of the last layer."""
    spec = FieldSpec(**{**SPEC, "coord_dim": 3, "out_dim": 4}, view_dim=5, bias=bias)
    assert spec.layers == 3 + 4
    assert spec.layer_shapes == ((8, 3), (8, 8), (8, 8), (5, 3), (1, 8), (8, 13), (3, 8))
    assert spec.parameter_count == sum(r * (c + bias) for r, c in spec.layer_shapes)
    assert sum(slot.size for slot in spec.slots) == spec.parameter_count
    packed = torch.randn(2, spec.parameter_count)
    flat = [part for pair in spec.unpack(packed) for part in pair if part is not None]
    assert torch.equal(spec.pack(flat), packed)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "sine", "w0": 1 / 3, "out_activation": "sine", "bias": False},
        {"encoding": FourierEncoding.log_spaced(5, 1024)},
        {"out_dim": 4, "view_dim": 6},
    ],
    ids=str,
)
def test_a_spec_survives_its_key(changes):
    spec = FieldSpec(**{**SPEC, **changes})
    again = FieldSpec.from_key(spec.key)
    assert again == spec and again.key == spec.key
    assert again.slots == spec.slots
    other = FieldSpec(**{**SPEC, **changes, "hidden_dim": 9})
    assert other.key != spec.key


@pytest.mark.parametrize("bias", [True, False])
def test_pack_and_unpack_are_inverse(bias):
    spec = FieldSpec(**SPEC, bias=bias)
    parameters = [torch.randn(5, *slot.shape) for slot in spec.slots]
    packed = spec.pack(parameters)
    assert packed.shape == (5, spec.parameter_count)
    # The layout, spelled out for one instance.
    expected = torch.cat([parameter[3].flatten() for parameter in parameters])
    assert torch.equal(packed[3], expected)
    flat = [part for pair in spec.unpack(packed) for part in pair if part is not None]
    assert len(flat) == len(parameters)
    assert all(torch.equal(a, b) for a, b in zip(flat, parameters, strict=True))
    assert all(view.data_ptr() >= packed.data_ptr() for view in flat)
    flat[0].zero_()
    assert not packed[:, : spec.slots[0].size].any()


def test_unpack_of_a_row_slice_and_gradients():
    spec = FieldSpec(**SPEC)
    rows = torch.randn(4, 2 * spec.parameter_count, dtype=torch.float64)
    weights = rows[:, ::2].requires_grad_()
    (weight, bias), *_ = spec.unpack(weights)
    (weight.sum() + 2 * bias.sum()).backward()
    expected = torch.zeros(spec.parameter_count, dtype=torch.float64)
    expected[:16], expected[16:24] = 1, 2
    assert torch.equal(weights.grad, expected.expand(4, -1))
    assert spec.unpack(torch.zeros(0, spec.parameter_count))[0][0].shape == (0, 8, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"coord_dim": 0}, ValueError, "coord_dim: expected at least 1, got 0"),
        ({"coord_dim": 2.0}, TypeError, "coord_dim: expected an integer, got 2.0"),
        ({"out_dim": True}, TypeError, "out_dim: expected an integer, got True"),
        ({"hidden_dim": -4}, ValueError, "hidden_dim: expected at least 1, got -4"),
        ({"hidden_layers": -1}, ValueError, "hidden_layers: expected at least 0, got -1"),
        ({"activation": "gelu"}, ValueError, "activation: expected one of relu, sine, none"),
        ({"out_activation": None}, ValueError, "out_activation: expected one of"),
        ({"w0": 0.0}, ValueError, "w0: expected a positive number, got 0.0"),
        ({"w0": math.inf}, ValueError, "w0: expected a positive number, got inf"),
        ({"w0": "30"}, TypeError, "w0: expected a number, got '30'"),
        ({"bias": 1}, TypeError, "bias: expected True or False, got 1"),
        ({"encoding": (1.0,)}, TypeError, "encoding: expected a FourierEncoding or None"),
        ({"view_dim": -1}, ValueError, "view_dim: expected at least 0, got -1"),
        ({"view_dim": 2.0}, TypeError, "view_dim: expected an integer, got 2.0"),
        ({"view_dim": True}, TypeError, "view_dim: expected an integer, got True"),
        ({"view_dim": 4, "out_dim": 1}, ValueError, "out_dim: expected a colour and a density"),
    ],
)
def test_bad_specs_are_named(change, error, message):
    with pytest.raises(error, match=message):
        FieldSpec(**{**SPEC, **change})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FourierEncoding(()), ValueError, "frequencies: expected finite numbers"),
        (lambda: FourierEncoding((math.nan,)), ValueError, "frequencies: expected finite"),
        (lambda: FourierEncoding(3.0), TypeError, "frequencies: expected a sequence"),
        (lambda: FourierEncoding.log_spaced(0, 8), ValueError, "count: expected at least 1"),
        (lambda: FourierEncoding.log_spaced(4, -1), ValueError, "highest: expected a positive"),
        (lambda: FourierEncoding.log_spaced(4, 2, 0), ValueError, "scale: expected a positive"),
    ],
)
def test_bad_encodings_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_parameters_are_named():
    spec = FieldSpec(**SPEC)
    good = [torch.randn(5, *slot.shape) for slot in spec.slots]
    with pytest.raises(ValueError, match="parameters: expected 8 tensors, got 7"):
        spec.pack(good[:-1])
    with pytest.raises(TypeError, match="parameters: expected a sequence of tensors, got Tensor"):
        spec.pack(good[0])
    with pytest.raises(ValueError, match=r"parameters\[0\]: expected shape \(B, 8, 2\)"):
        spec.pack([good[0][0], *good[1:]])
    with pytest.raises(ValueError, match=r"parameters\[1\]: expected shape \(5, 8\), got \(4, 8\)"):
        spec.pack([good[0], good[1][:4], *good[2:]])
    with pytest.raises(TypeError, match=r"parameters\[2\]: expected dtype float32, got float64"):
        spec.pack([*good[:2], good[2].double(), *good[3:]])
    with pytest.raises(ValueError, match=r"parameters\[7\]: expected device cpu, got meta"):
        spec.pack([*good[:-1], good[-1].to("meta")])
    with pytest.raises(ValueError, match=r"weights: expected shape \(B, 195\), got \(2, 194\)"):
        spec.unpack(torch.zeros(2, 194))
    with pytest.raises(TypeError, match="weights: expected a tensor, got list"):
        spec.unpack([1.0])
