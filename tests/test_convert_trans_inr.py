"""``ginr-fast convert`` for checkpoints of TransINR's code: the same outputs, there and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from adapter_models import HypoMlp, HypoNerf, volume_rendering
from adapter_models import TransInr as Grouping
from torch import Tensor, nn

from ginr_fast import cli, grid
from ginr_fast.adapters.trans_inr_checkpoints import load_trans_inr, to_trans_inr
from ginr_fast.encoders import ViewTokenizer
from ginr_fast.rays import camera_rays, orbit_poses
from ginr_fast.systems.radiance_views import TransInrViews, TransInrViewsConfig
from ginr_fast.systems.trans_inr import TransInr, TransInrConfig
from ginr_fast.training.checkpoints import load_model, load_saved
from ginr_fast.training.recipes import TransInrViewsRecipe, from_plain

ENCODER = {"dim": 12, "depth": 2, "n_head": 3, "head_dim": 5, "ff_dim": 20}
SIZES: dict[str, Any] = {
    "encoder_dim": 12,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "encoder_head_dim": 5,
    "encoder_mlp_dim": 16,
    "hidden_dim": 8,
    "hidden_layers": 1,
    "frequencies": 3,
}


class Code:
    def __reduce__(self):
        return print, ("code ran",)


# Stand-ins for the published classes, of the same names and arithmetic.


class Residual(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class Attention(nn.Module):
    def __init__(self, dim: int, n_head: int, head_dim: int) -> None:
        super().__init__()
        self.n_head, self.head_dim = n_head, head_dim
        self.to_q = nn.Linear(dim, n_head * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * n_head * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(n_head * head_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.to_kv(x).chunk(2, dim=-1)
        heads = []
        for head in range(self.n_head):
            at = slice(head * self.head_dim, (head + 1) * self.head_dim)
            scores = self.to_q(x)[..., at] @ key[..., at].mT / self.head_dim**0.5
            heads.append(scores.softmax(-1) @ value[..., at])
        return self.to_out(torch.cat(heads, -1))


class FeedForward(nn.Module):
    def __init__(self, dim: int, ff_dim: int) -> None:
        super().__init__()
        layers = nn.Linear(dim, ff_dim), nn.GELU(), nn.Dropout(0.0), nn.Linear(ff_dim, dim)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerEncoder(nn.Module):
    def __init__(self, dim: int, depth: int, n_head: int, head_dim: int, ff_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Residual(dim, Attention(dim, n_head, head_dim)),
                    Residual(dim, FeedForward(dim, ff_dim)),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for attention, feed_forward in self.layers:
            x = feed_forward(attention(x))
        return x


class ImgrecTokenizer(nn.Module):
    def __init__(self, dim, input_size, patch_size, padding=0, img_channels=3):
        super().__init__()
        self.patch_size, self.padding = patch_size, padding
        self.prefc = nn.Linear(patch_size**2 * img_channels, dim)
        self.posemb = nn.Parameter(
            torch.randn(((input_size + 2 * padding) // patch_size) ** 2, dim)
        )

    def forward(self, data):
        patch = self.patch_size
        x = nn.functional.unfold(data["inp"], patch, stride=patch, padding=self.padding)
        return self.prefc(x.mT) + self.posemb


class NvsTokenizer(nn.Module):
    def __init__(self, dim, input_size, patch_size):
        super().__init__()
        self.patch_size = patch_size
        self.prefc = nn.Linear(patch_size**2 * 9, dim)

    def forward(self, data):
        images, (origins, directions) = data["support_imgs"], data["support_rays"]
        x = torch.cat([images, origins.movedim(-1, 2), directions.movedim(-1, 2)], dim=2)
        x = nn.functional.unfold(x.flatten(0, 1), self.patch_size, stride=self.patch_size)
        return self.prefc(x.mT).reshape(len(images), -1, self.prefc.out_features)


CLASSES = {
    "imgrec_tokenizer": ImgrecTokenizer,
    "nvs_tokenizer": NvsTokenizer,
    "hypo_mlp": HypoMlp,
    "hypo_nerf": HypoNerf,
}


def published(args: dict[str, Any]) -> Grouping:
    """The model of TransINR's code with these arguments, in float64."""
    dim = args["transformer_encoder"]["args"]["dim"]
    field, patches = args["hyponet"], args["tokenizer"]
    model = Grouping(CLASSES[field["name"]](**field["args"]), args["n_groups"], dim)
    model.tokenizer = CLASSES[patches["name"]](dim=dim, **patches["args"])
    model.transformer_encoder = TransformerEncoder(**args["transformer_encoder"]["args"])
    return model.double()


def image_args(**field: Any) -> dict[str, Any]:
    field = {"out_dim": 3, "hidden_dim": 16, "pe_dim": 6, "pe_sigma": 4, "out_bias": 0.2, **field}
    patches = {"input_size": 10, "patch_size": 4, "padding": 1}
    return {
        "tokenizer": {"name": "imgrec_tokenizer", "args": patches},
        "hyponet": {"name": "hypo_mlp", "args": {"depth": 4, "in_dim": 2, "use_pe": True, **field}},
        "n_groups": 4,
        "transformer_encoder": {"name": "transformer_encoder", "args": dict(ENCODER)},
    }


def views_args(use_viewdirs: bool) -> dict[str, Any]:
    field = {"use_viewdirs": use_viewdirs, "depth": 3, "hidden_dim": 16, "pe_dim": 6}
    return {
        **image_args(),
        "tokenizer": {"name": "nvs_tokenizer", "args": {"input_size": 8, "patch_size": 4}},
        "hyponet": {"name": "hypo_nerf", "args": field},
    }


def published_views(args: dict[str, Any]) -> Grouping:
    model = published(args)
    for name, matrix in model.base_params.items():
        if "density" in name:
            matrix.data[-1, -1] = 0.5  # something to see
    return model


def a_state(args: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in published(args).state_dict().items()}


def run(capsys, *arguments, status=0) -> str:
    assert cli.main(["convert", *map(str, arguments)]) == status
    printed = capsys.readouterr()
    assert "code ran" not in printed.out
    return printed.err if status else printed.out


def same(found: Tensor, wanted: Tensor) -> None:
    """Up to the rounding of what float32 files hold."""
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def decoded(model: Grouping, images: Tensor, coords: Tensor) -> Tensor:
    return model({"inp": images})(coords.expand(len(images), *coords.shape))


@pytest.mark.parametrize("beside", [False, True])
def test_images_there_and_back(beside: bool, tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    args = image_args()
    model = published(args)
    state = {name: value.float() for name, value in model.state_dict().items()}
    spec = {"name": "trans_inr", "args": args}
    theirs, ours, back = (tmp_path / name for name in ("a.pth", "b.safetensors", "c.pt"))
    if beside:  # a state dict alone, and one of the code's configurations
        torch.save({f"module.{name}": value for name, value in state.items()}, theirs)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": spec}))
    else:
        adam = {"name": "adam", "sd": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
        content = {"model": {**spec, "sd": state}, "optimizer": adam, "epoch": 3, "cfg": {}}
        torch.save(content, theirs)
    told = run(capsys, theirs, "--out", ours)
    assert told == f"{ours}: trans-inr, {len(state)} tensors\n"

    images, coords = torch.rand(2, 3, 10, 10, dtype=torch.float64), grid(5, 7).tensor().double()
    converted = load_model(ours).double()
    with torch.no_grad():
        wanted = decoded(model, images, coords)
        same(converted(images, coords), wanted)

    assert "a checkpoint of trans-inr" in run(capsys, ours, "--out", back)
    again = torch.load(back, weights_only=True)["model"]
    assert again["name"] == "trans_inr"
    loaded = published(again["args"])
    loaded.load_state_dict(again["sd"])
    with torch.no_grad():
        same(decoded(loaded, images, coords), wanted)


@pytest.mark.parametrize("use_viewdirs", [False, True])
def test_views_there_and_back(use_viewdirs: bool, tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    args = views_args(use_viewdirs)
    model = published_views(args)
    spec = {"name": "trans_inr", "args": args}
    theirs, ours, back = (tmp_path / name for name in ("a.pth", "b.safetensors", "c.pt"))
    state = {name: value.float() for name, value in model.state_dict().items()}
    content = {"model": {**spec, "sd": state}, "cfg": {"train_points_per_ray": 9}}
    torch.save(content, theirs)
    assert f"trans-inr-nerf, {len(state)} tensors" in run(capsys, theirs, "--out", ours)

    images = torch.rand(2, 3, 3, 8, 8, dtype=torch.float64)
    poses = orbit_poses(6, radius=4.0, elevation=20).double().unflatten(0, (2, 3))
    rays = camera_rays(poses, 8, 8, focal=9.0)
    asked = tuple(part[:, 0].flatten(1, 2) for part in rays)

    def seen(field: Grouping) -> Tensor:
        nerf = field({"support_imgs": images, "support_rays": rays})
        return volume_rendering(nerf, *asked, 2.0, 6.0, 9, use_viewdirs, rand=False)

    saved = load_saved(ours)
    converted = from_plain(TransInrViewsRecipe, saved.recipe).build()
    saved.restore(converted)
    converted.double()
    with torch.no_grad():
        wanted = seen(model)
        same(converted.color(*asked, converted.encode(images, *rays)), wanted)

    assert "a checkpoint of trans-inr" in run(capsys, ours, "--out", back)
    again = torch.load(back, weights_only=True)
    assert again["cfg"]["train_points_per_ray"] == 9
    loaded = published(again["model"]["args"])
    loaded.load_state_dict(again["model"]["sd"])
    with torch.no_grad():
        same(seen(loaded), wanted)


def test_neighbouring_groups_are_reordered_for_the_published_code() -> None:
    torch.manual_seed(0)
    config = TransInrConfig(image_size=7, patch_size=4, padding="replicate", groups=4, **SIZES)
    with pytest.raises(ValueError, match="image_size: published code pads both sides alike"):
        to_trans_inr(TransInr(config))
    with pytest.raises(ValueError, match="padding: published code has 'zeros', got 'replicate'"):
        to_trans_inr(TransInr(dataclasses.replace(config, image_size=6)))
    even = dataclasses.replace(config, image_size=8, bandwidth=4.0)
    model = TransInr(even).double().eval()
    spec = to_trans_inr(model)["model"]
    theirs = published(spec["args"])
    theirs.load_state_dict(spec["sd"])
    images, coords = torch.rand(2, 3, 8, 8, dtype=torch.float64), grid(4, 5).tensor().double()
    with torch.no_grad():
        same(decoded(theirs, images, coords), model(images, coords))
        assert model.decoder.layout == "blocks"

    views = TransInrViewsConfig(
        image_size=8, patch_size=4, position_views=0, view_dim=4, groups=4, **SIZES
    )
    scene = TransInrViews(views).double()
    spec = to_trans_inr(scene)["model"]
    theirs = published(spec["args"])
    theirs.load_state_dict(spec["sd"])
    tokens, points = torch.randn(2, scene.decoder.tokens, 12).double(), torch.rand(2, 9, 3).double()
    theirs.tokenizer = theirs.transformer_encoder = nn.Identity()
    theirs.wtokens.data = tokens[0]
    field, directions = theirs(torch.zeros(1, 2, 12).double()), torch.randn(2, 9, 3).double()
    with torch.no_grad():
        found = field(points[:1], directions[:1])
        same(found, scene.decoder(points[:1], tokens[:1], directions[:1]))


def changed(args: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The arguments with another value under a dotted name, or without it."""
    first, _, rest = path.partition(".")
    if rest:
        return {**args, first: changed(args[first], rest, value)}
    return {name: part for name, part in {**args, first: value}.items() if part is not None}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("hyponet.args.use_pe", False, r"hyponet.args.use_pe: False has no counterpart here, only"),
        ("hyponet.args.pe_dim", 7, r"pe_dim: 7 has no counterpart here, only even numbers"),
        ("hyponet.args.in_dim", 1, r"in_dim: 1 has no counterpart here, only 2 has"),
        ("hyponet.args.out_dim", 4, r"out_dim: 4 has no counterpart here, only 3 has"),
        ("hyponet.name", "hypo_nerf", r"hyponet.name: 'hypo_nerf' has no counterpart"),
        ("tokenizer.name", "wav_tokenizer", r"only imgrec_tokenizer and nvs_tokenizer have"),
        ("tokenizer.args.padding", 0, r"padding: 0 has no counterpart here, only what makes 10"),
        ("tokenizer.args.patch_size", [4, 2], r"patch_size: expected 1 or more, got \[4, 2\]"),
        ("transformer_encoder.args.depth", None, r"args.depth: missing from the configuration"),
        ("n_groups", 3, r"groups: expected divisors of the widths \[16, 16, 16, 3\]"),
        ("n_groups", 8, r"expected wtokens of shape \(27, 12\), real floats, got \(15, 12\)"),
    ],
)
def test_options_without_a_counterpart_are_named(path: str, value: Any, message: str) -> None:
    args = image_args()
    with pytest.raises(ValueError, match=message):
        load_trans_inr(a_state(args), changed(args, path, value))


@pytest.mark.parametrize("args", [image_args(), views_args(True)])
def test_tensors_of_another_shape_or_kind_are_named(args: dict[str, Any]) -> None:
    state = a_state(args)
    assert not load_trans_inr(state, args)[1]
    for name, value in state.items():
        for other in (torch.ones(()), value[None], value.to(torch.complex64)):
            with pytest.raises(ValueError, match=rf"state: expected {name} of shape .*, got \("):
                load_trans_inr({**state, name: other}, args)


def test_what_is_missing_left_over_or_damaged_is_named(tmp_path: Path, capsys: Any) -> None:
    out, args = ["--out", tmp_path / "out.safetensors"], image_args()
    state = a_state(args)
    spec = {"name": "trans_inr", "args": args}

    def saved(name: str, state: Any, **more: Any) -> Path:
        torch.save({"model": {**spec, "sd": state}, **more}, tmp_path / name)
        return tmp_path / name

    extra = saved("extra.pth", {**state, "tokenizer.more": torch.zeros(2)})
    assert "without a use there: tokenizer.more" in run(capsys, extra, *out)
    few = {name: value for name, value in state.items() if "posemb" not in name}
    few.pop("base_params.wb1")
    message = "state: 2 missing: tokenizer.posemb, base_params.wb1"
    assert message in run(capsys, saved("few.pth", few), *out, status=2)
    part = saved("part.pth", state, cfg={"train_points_per_ray": 1.5})
    message = "train_points_per_ray: expected a positive integer, got 1.5"
    assert message in run(capsys, part, *out, status=2)
    code = saved("code.pth", state, hook=Code())
    assert "code in it would run" in run(capsys, code, *out, status=2)
    (tmp_path / "cut.pth").write_bytes(extra.read_bytes()[:5000])
    assert "truncated or corrupt" in run(capsys, tmp_path / "cut.pth", *out, status=2)
    torch.save(state, tmp_path / "bare.pth")
    assert "name the YAML configuration" in run(capsys, tmp_path / "bare.pth", *out, status=2)
    config = tmp_path / "cfg.txt"
    given = [tmp_path / "bare.pth", *out, "--config", config]
    assert "does not exist" in run(capsys, *given, status=2)
    for text, wanted in (("model: [", "no YAML"), ("- 1", "expected options by name, got list")):
        config.write_text(text)
        assert wanted in run(capsys, *given, status=2)
    config.write_text("arch: {}")
    assert "model.args.tokenizer.name: missing" in run(capsys, *given, status=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_qkv_bias": True}, "encoder_qkv_bias: trans-inr has no such bias"),
        ({"token_dim": 6}, "token_dim: trans-inr has only the encoder's, got 6"),
        ({"position_views": 1}, "position_views: trans-inr has no positions; ginr-ipc has"),
        ({"camera_distance": 1.3}, "camera_distance: published code has 4.0, got 1.3"),
        ({"groups": (4, 8, 4)}, r"groups: trans-inr has one number, .* got \(4, 8, 4\)"),
        ({"bandwidth": 8.0}, "bandwidth: trans-inr has 256.0, got 8.0"),
        ({"view_dim": 3}, "view_dim: trans-inr has 0 and half of hidden_dim 8, got 3"),
        ({"groups": 2}, "groups: 2 groups of the 4 outputs in layout 'blocks'"),
    ],
)
def test_what_the_published_code_has_not_is_named(change: dict[str, Any], message: str) -> None:
    config = TransInrViewsConfig(image_size=8, patch_size=4, position_views=0, groups=4, **SIZES)
    with pytest.raises(ValueError, match=message):
        to_trans_inr(TransInrViews(dataclasses.replace(config, **change)))


def test_positions_are_of_one_view_of_several_or_of_none() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 2, 3, 8, 8)
    rays = tuple(part[None] for part in camera_rays(orbit_poses(2, 4.0), 8, 8, focal=9.0))
    one, none, two = (ViewTokenizer(8, 4, 6, position_views=views) for views in (1, 0, 2))
    for tokenizer in (none, two):
        tokenizer.patch_tokenizer.embed = one.patch_tokenizer.embed
    assert not none.patch_tokenizer.position.requires_grad
    position = one.patch_tokenizer.position
    tokens = one(images, *rays)
    torch.testing.assert_close(none(images, *rays), tokens - position.repeat(2, 1))
    with torch.no_grad():
        two.patch_tokenizer.position.copy_(torch.cat((position, 2 * position)))
    torch.testing.assert_close(two(images, *rays)[:, :4], tokens[:, :4])
    torch.testing.assert_close(two(images, *rays)[:, 4:], tokens[:, 4:] + position)
    with pytest.raises(ValueError, match="images: expected 2 views, got 1"):
        two(images[:, :1], *(part[:, :1] for part in rays))
    with pytest.raises(ValueError, match="position_views: expected a non-negative integer, got -1"):
        ViewTokenizer(8, 4, 6, position_views=-1)
    # As they start, positions of several views are those of one, repeated.
    tables = []
    for views in (1, 2):
        torch.manual_seed(0)
        config = TransInrViewsConfig(image_size=8, patch_size=4, position_views=views, **SIZES)
        tables.append(TransInrViews(config).tokenizer.patch_tokenizer.position)
    assert torch.equal(tables[1], tables[0].repeat(2, 1))
