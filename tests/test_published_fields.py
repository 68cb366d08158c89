"""Parameters of published code, packed and back; and what that code computes with them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

import ginr_fast
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.published_fields import layer_names, pack_published, unpack_published

IMAGE = FieldSpec(
    coord_dim=2,
    out_dim=3,
    hidden_dim=16,
    hidden_layers=2,
    encoding=FourierEncoding.log_spaced(4, 64.0),
)
NERF = FieldSpec(
    coord_dim=3,
    out_dim=4,
    hidden_dim=16,
    hidden_layers=1,
    encoding=FourierEncoding.log_spaced(5, 2.0**8, scale=1.0),
)
VIEWS = dataclasses.replace(NERF, view_dim=8)
CASES = [
    (IMAGE, "trans_inr"),
    (IMAGE, "ginr_ipc"),
    (NERF, "trans_inr_nerf"),
    (VIEWS, "trans_inr_nerf"),
]


def parameters(spec, layout, batch=2):
    torch.manual_seed(0)
    return {
        name: 0.3 * torch.randn(batch, columns + 1, rows, dtype=torch.float64)
        for name, (rows, columns) in zip(layer_names(spec, layout), spec.layer_shapes, strict=True)
    }


def through(x, wb):
    """A layer as those code bases compute it: the bias is the last row."""
    return x @ wb[:, :-1] + wb[:, -1:]


@pytest.mark.parametrize(("spec", "layout"), CASES)
@pytest.mark.parametrize("out_bias", [0.0, 0.5])
def test_round_trip(spec, layout, out_bias):
    given = parameters(spec, layout)
    packed = pack_published(given, spec, layout, out_bias)
    assert packed.shape == (2, spec.parameter_count)
    back = unpack_published(packed, spec, layout, out_bias)
    assert back.keys() == given.keys()
    for name in given:
        torch.testing.assert_close(back[name], given[name], rtol=0, atol=1e-15)


@pytest.mark.parametrize("layout", ["trans_inr", "ginr_ipc"])
def test_an_image_field_computes_what_published_code_does(layout):
    given = parameters(IMAGE, layout)
    x = torch.rand(2, 30, 2, dtype=torch.float64) * 2 - 1
    w = torch.exp(torch.linspace(0, math.log(64.0), 4, dtype=torch.float64))
    phase = (x.unsqueeze(-1) * w * math.pi).flatten(-2)
    h = torch.cat((phase.cos(), phase.sin()), dim=-1)
    *hidden, last = given.values()
    for wb in hidden:
        h = through(h, wb).relu()
    want = through(h, last) + 0.5
    got = ginr_fast.field_mlp(x, pack_published(given, IMAGE, layout, out_bias=0.5), IMAGE)
    torch.testing.assert_close(got, want)


def test_a_radiance_field_with_views_computes_what_published_code_does():
    given = parameters(VIEWS, "trans_inr_nerf")
    x = torch.rand(2, 30, 3, dtype=torch.float64) * 2 - 1
    directions = torch.randn(2, 30, 3, dtype=torch.float64)
    w = 2 ** torch.linspace(0, 8, 5, dtype=torch.float64)
    phase = (x.unsqueeze(-1) * w).flatten(-2)
    h = torch.cat((phase.cos(), phase.sin()), dim=-1)
    view = through(F.normalize(directions, dim=-1), given["viewdirs_fc"]).relu()
    for name in ("wb0", "wb1"):
        h = through(h, given[name]).relu()
    density = through(h, given["density_fc"])
    rgb = through(torch.cat((h, view), dim=-1), given["rgb_fc1"]).relu()
    want = torch.cat((through(rgb, given["rgb_fc2"]), density), dim=-1)
    packed = pack_published(given, VIEWS, "trans_inr_nerf")
    torch.testing.assert_close(ginr_fast.field_mlp(x, packed, VIEWS, directions), want)


def test_what_does_not_fit_is_named():
    given = parameters(IMAGE, "trans_inr")
    with pytest.raises(ValueError, match="layout: expected one of trans_inr"):
        layer_names(IMAGE, "siren")
    with pytest.raises(ValueError, match="trans_inr has no view branch"):
        layer_names(VIEWS, "trans_inr")
    with pytest.raises(ValueError, match="layers with a bias only"):
        layer_names(FieldSpec(2, 3, 16, 1, bias=False), "trans_inr")
    with pytest.raises(KeyError, match="expected 'wb3'"):
        pack_published({k: v for k, v in given.items() if k != "wb3"}, IMAGE, "trans_inr")
    with pytest.raises(ValueError, match=r"parameters\['wb1'\]: expected shape"):
        pack_published({**given, "wb1": given["wb1"][:, :-1]}, IMAGE, "trans_inr")
