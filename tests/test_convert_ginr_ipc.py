"""``ginr-fast convert`` for checkpoints of IPC's code: the same outputs, there and back."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from adapter_models import HypoNet, hyponet_config, volume_rendering
from torch import Tensor, nn

from ginr_fast import cli, grid
from ginr_fast.adapters.ginr_ipc_checkpoints import load_ginr_ipc
from ginr_fast.adapters.ginr_ipc_export import to_ginr_ipc
from ginr_fast.rays import camera_rays, orbit_poses
from ginr_fast.systems.audio_inr import AudioIpc, AudioIpcConfig
from ginr_fast.systems.radiance_views import IpcViews, IpcViewsConfig
from ginr_fast.training.checkpoints import load_saved
from ginr_fast.training.recipes import RECIPES, from_plain

DIM = 12
KINDS = {recipe.system: type(recipe) for _, recipe in RECIPES.values()}


# Stand-ins for the published classes, of the same names and arithmetic.


class Attention(nn.Module):
    def __init__(self, n_head: int, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.key, self.query = nn.Linear(DIM, DIM, bias), nn.Linear(DIM, DIM, bias)
        self.value, self.proj = nn.Linear(DIM, DIM, bias), nn.Linear(DIM, DIM, bias)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return self.proj((scores @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, n_head: int, attn_bias: bool = True, mlp_bias: bool = True) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn = Attention(n_head, attn_bias)
        self.mlp = nn.Sequential(
            nn.Linear(DIM, 4 * DIM, mlp_bias), nn.GELU(), nn.Linear(4 * DIM, DIM, mlp_bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Published(nn.Module):
    """TransINR and LowRankModulatedTransINR, of patches, without and with a shared factor."""

    def __init__(self, arch: dict[str, Any]) -> None:
        super().__init__()
        data, mapping, hyponet = arch["data_encoder"], arch["latent_mapping"], arch["hyponet"]
        fourier, spec = hyponet["fourier_mapping"], data["encoder_spec"]
        self.patch, self.padding = spec["patch_size"], spec.get("padding", 0)
        numbers = self.patch if data["type"] == "unfold_audio" else self.patch**2
        self.latent_mapping, self.transformer = nn.Module(), nn.Module()
        self.latent_mapping.latent_mapping = nn.Linear(numbers * data["n_channel"], DIM)
        if mapping["use_pe"]:
            table = nn.Parameter(torch.randn(1, mapping["n_patches"], DIM))
            self.latent_mapping.pos_emb_latent = table
        self.transformer.blocks = nn.Sequential(
            *(Block(**arch["transformer"]["block"]) for _ in range(arch["transformer"]["n_layer"]))
        )
        self.hyponet = HypoNet(
            hyponet_config(
                fourier["type"],
                layers=hyponet["n_layer"],
                hidden_dim=hyponet["hidden_dim"],
                normalize_weight=hyponet.get("normalize_weight", True),
                output_bias=hyponet["output_bias"],
                ff_dim=fourier["ff_dim"],
                ff_sigma=fourier["ff_sigma"],
                input_dim=hyponet["input_dim"],
                output_dim=hyponet["output_dim"],
            )
        )
        self.low_rank = arch["type"].startswith("low_rank")
        self.group_modulation_postfc, self.shared_factor = nn.ModuleDict(), nn.ParameterDict()
        self.groups: dict[str, int] = {}
        shapes, counts = self.hyponet.params_shape_dict, arch["n_weight_groups"]
        counts = counts * len(shapes) if len(counts) == 1 else counts
        for index, (name, (rows, columns)) in enumerate(shapes.items()):
            if index in (arch["modulated_layer_idxs"] or range(len(shapes))):
                self.groups[name] = min(counts[index], columns)
                head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, rows - 1))
                self.group_modulation_postfc[name] = head
                if self.low_rank:
                    self.hyponet.ignore_base_param_dict[name] = True
                    factor = torch.randn(1, self.groups[name], columns) / columns**0.5
                    self.shared_factor[name] = nn.Parameter(factor)
        self.weight_groups = nn.Module()
        tokens = torch.randn(sum(self.groups.values()), DIM)
        self.weight_groups.weight_groups = nn.Parameter(tokens)

    def modulations(self, patches: Tensor) -> dict[str, Tensor]:
        """Of rows of patches, ``(B, N, numbers)``."""
        x = self.latent_mapping.latent_mapping(patches)
        x = x + getattr(self.latent_mapping, "pos_emb_latent", 0.0)
        own = self.weight_groups.weight_groups.expand(len(x), -1, -1)
        read = self.transformer.blocks(torch.cat((x, own), dim=1))[:, -own.shape[1] :]
        found = {}
        parts = read.split(list(self.groups.values()), dim=1)
        for name, part in zip(self.groups, parts, strict=True):
            made = self.group_modulation_postfc[name](part).mT
            columns = self.hyponet.params_shape_dict[name][1]
            repeats = columns // made.shape[-1]
            found[name] = (
                made @ self.shared_factor[name] if self.low_rank else made.repeat(1, 1, repeats)
            )
        return found

    def unfolded(self, images: Tensor) -> Tensor:
        return nn.functional.unfold(images, self.patch, stride=self.patch, padding=self.padding).mT


def arch(kind: str, groups: list[int], layers: list[int] | None, **hyponet: Any) -> dict[str, Any]:
    """An architecture of images, as the configurations of IPC's code have it."""
    encoding = {"type": "deterministic_transinr", "use_ff": True, "ff_sigma": 4, "ff_dim": 6}
    field = {"n_layer": 4, "hidden_dim": [8], "input_dim": 2, "output_dim": 3, "output_bias": 0.2}
    patches = {"patch_size": 4, "padding": 1}
    return {
        "type": kind,
        "n_weight_groups": groups,
        "modulated_layer_idxs": layers,
        "coord_sampler": {"data_type": "image", "coord_range": [-1.0, 1.0]},
        "data_encoder": {"type": "unfold", "n_channel": 3, "encoder_spec": patches},
        "latent_mapping": {"type": "linear", "n_patches": 9, "latent_dim": DIM, "use_pe": True},
        "transformer": {"n_layer": 2, "embed_dim": DIM, "block": {"n_head": 3}},
        "hyponet": {"type": "mlp", "fourier_mapping": encoding, **field, **hyponet},
    }


def changed(options: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The options with another value under a dotted name, or without it."""
    first, _, rest = path.partition(".")
    if rest:
        return {**options, first: changed(options[first], rest, value)}
    return {name: part for name, part in {**options, first: value}.items() if part is not None}


LOW_RANK = arch("low_rank_modulated_transinr", [4], [1])
TRANS_INR = arch("transinr", [4, 8, 2, 64], None)


def without_biases() -> dict[str, Any]:
    block = {"n_head": 3, "attn_bias": False, "mlp_bias": False}
    plain = changed(LOW_RANK, "transformer.block", block)
    return changed(
        changed(plain, "hyponet.normalize_weight", False), "latent_mapping.use_pe", False
    )


def audio() -> dict[str, Any]:
    made = arch("low_rank_modulated_transinr", [8], [2], input_dim=1, output_dim=1)
    made["coord_sampler"] = {"data_type": "audio", "coord_range": [-3.0, 3.0]}
    made["data_encoder"] = {
        "type": "unfold_audio",
        "n_channel": 1,
        "encoder_spec": {"patch_size": 5},
    }
    return made


def nerf(kind: str, views: int, layers: list[int] | None, positions: bool = True) -> dict[str, Any]:
    made = arch(kind, [4], layers, input_dim=3, output_dim=4, output_bias=0.1)
    made = changed(made, "hyponet.fourier_mapping.type", "deterministic_transinr_nerf")
    made = changed(made, "hyponet.fourier_mapping.ff_sigma", 2)
    made["coord_sampler"] = {"data_type": "nvs", "coord_range": [-1.0, 1.0]}
    made["coord_sampler"]["num_points_per_ray"] = 9
    made["data_encoder"]["n_channel"] = 9
    made["data_encoder"]["encoder_spec"] = {"patch_size": 4, "padding": 0}
    made["latent_mapping"] |= {"n_patches": 4 * views, "use_pe": positions}
    return made


ARCHS = {
    "ipc": LOW_RANK,
    "trans-inr": TRANS_INR,
    "ipc without biases": without_biases(),
    "ipc-audio": audio(),
    "ipc-nerf": nerf("low_rank_modulated_transinr_nerf", 2, [0]),
    "trans-inr-nerf": nerf("transinr_nerf", 1, None),
    "trans-inr-nerf without positions": nerf("transinr_nerf", 3, None, positions=False),
}


def run(capsys, *arguments, status=0) -> str:
    assert cli.main(["convert", *map(str, arguments)]) == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


def same(found: Tensor, wanted: Tensor) -> None:
    """Up to the rounding of what float32 files hold."""
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def a_state(options: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Published(options).state_dict()


def outputs(theirs: Published, ours: Any, views: int) -> tuple[Tensor, Tensor]:
    """What the published model and the system make of the same input, in float64."""
    generator = torch.Generator().manual_seed(1)
    if views:
        images = torch.rand(2, views, 3, 8, 8, generator=generator).double()
        poses = orbit_poses(2 * views, radius=4.0, elevation=20).double()
        rays = camera_rays(poses.unflatten(0, (2, views)), 8, 8, focal=9.0)
        pixels = torch.cat([images, *(part.movedim(-1, 2) for part in rays)], 2)
        patches = theirs.unfolded(pixels.flatten(0, 1)).unflatten(0, (2, views)).flatten(1, 2)
        made = theirs.modulations(patches)
        asked = tuple(part[:, 0].flatten(1, 2) for part in rays)
        wanted = volume_rendering(
            lambda points: theirs.hyponet(points, made), *asked, 2.0, 6.0, 9, False, rand=False
        )
        return wanted, ours.color(*asked, ours.encode(images, *rays))
    if isinstance(ours, AudioIpc):
        waves = 2 * torch.rand(2, 45, generator=generator).double() - 1
        where = grid(30).tensor().double().expand(2, 30, 1)
        made = theirs.modulations(waves.unflatten(1, (9, 5)))
        return theirs.hyponet(3.0 * where, made), ours(waves, where)
    images = torch.rand(2, 3, 10, 10, generator=generator).double()
    where = grid(5, 7).tensor().double().expand(2, 5, 7, 2)
    made = theirs.modulations(theirs.unfolded(images))
    return theirs.hyponet(where, made), ours(images, where)


@pytest.mark.parametrize("name", ARCHS)
def test_there_and_back(name: str, tmp_path: Path, capsys: Any) -> None:
    options, system = ARCHS[name], name.split()[0]
    views = options["latent_mapping"]["n_patches"] // 4 if "nerf" in name else 0
    state = a_state(options)
    theirs, ours, back = (tmp_path / file for file in ("a.pt", "b.safetensors", "c.pt"))
    content = {"epoch": 1, "state_dict": state, "scheduler": {"warmup": None, "after": {}}}
    torch.save(content, theirs)
    config: dict[str, Any] = {"arch": options}
    if views:
        config["dataset"] = {"train_config": {"n_support": views}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    told = run(capsys, theirs, "--out", ours)
    assert told == f"{ours}: {system}, {len(state)} tensors\n"

    saved = load_saved(ours)
    recipe: Any = from_plain(KINDS[system], saved.recipe)
    converted = AudioIpc(recipe.model) if system == "ipc-audio" else recipe.build()
    saved.restore(converted)
    model = Published(options)
    model.load_state_dict(state)
    with torch.no_grad():
        wanted, found = outputs(model.double(), converted.double(), views)
        same(found, wanted)

    more = ["--views", views] if "without positions" in name else []
    told = run(capsys, ours, "--out", back, "--code", "ginr-ipc", *more)
    assert f"{back}: a checkpoint of ginr-ipc" in told and f"{tmp_path / 'c.yaml'}: arch" in told
    again = yaml.safe_load((tmp_path / "c.yaml").read_text())
    if views:
        assert again["dataset"]["train_config"]["n_support"] == views
    loaded = Published(again["arch"])
    loaded.load_state_dict(torch.load(back, weights_only=True)["state_dict"])
    with torch.no_grad():
        same(outputs(loaded.double(), converted, views)[0], wanted)


def test_a_configuration_of_the_user_s_is_not_overwritten(tmp_path: Path, capsys: Any) -> None:
    options = dict(LOW_RANK)
    torch.save({"state_dict": a_state(options)}, tmp_path / "theirs.pt")
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({"arch": options}))
    ours, out, beside = (tmp_path / name for name in ("a.safetensors", "run.pt", "run.yaml"))
    run(capsys, tmp_path / "theirs.pt", "--out", ours)
    told = run(capsys, ours, "--out", out, "--averaged", status=2)
    assert "averaged: is of no use for a published checkpoint of ipc" in told
    beside.write_text("my: own settings")
    told = run(capsys, ours, "--out", out, status=2)
    assert f"out: {beside} exists" in told and not out.exists()
    assert beside.read_text() == "my: own settings"
    beside.unlink()
    for _ in range(2):  # what it wrote itself it writes again
        run(capsys, ours, "--out", out)
    assert "arch" in yaml.safe_load(beside.read_text())


def test_averaged_weights_and_more_views(tmp_path: Path, capsys: Any) -> None:
    options = nerf("low_rank_modulated_transinr_nerf", 1, [1])
    state = a_state(options)
    averaged = {name: value + 1 for name, value in state.items() if name != "hyponet.ff_linear"}
    averaged["hyponet.ff_linear"] = state["hyponet.ff_linear"]
    out, config = tmp_path / "b.safetensors", tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"arch": options}))
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "a.pt")
    arguments = ["--out", out, "--config", config, "--views", 1]
    run(capsys, tmp_path / "a.pt", *arguments, "--averaged")
    name = "weight_groups.weight_groups"
    assert torch.equal(load_saved(out).weights["encoder.latents"], averaged[name])
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    told = run(capsys, tmp_path / "a.pt", *arguments, "--averaged", status=2)
    assert "holds no state_dict_ema, but state_dict" in told
    # Positions of one view are those of each of three.
    run(capsys, out, "--out", tmp_path / "three.pt", "--views", 3)
    found = torch.load(tmp_path / "three.pt", weights_only=True)["state_dict"]
    name = "latent_mapping.pos_emb_latent"
    assert torch.equal(found[name], averaged[name].repeat(1, 3, 1))
    assert "code: trans-inr has TransINR only" in run(
        capsys, out, "--out", tmp_path / "d.pt", "--code", "trans-inr", status=2
    )


@pytest.mark.parametrize("name", ["ipc", "trans-inr", "ipc-audio", "ipc-nerf"])
def test_tensors_of_another_shape_or_kind_are_named(name: str) -> None:
    options, views = ARCHS[name], 2 if "nerf" in name else None
    state = a_state(options)
    assert not load_ginr_ipc(state, options, views)[1]
    for key, value in state.items():
        for other in (torch.ones(()), value[None], value.to(torch.complex64)):
            with pytest.raises(ValueError, match=rf"state: expected {key} of shape .*, got \("):
                load_ginr_ipc({**state, key: other}, options, views)
    trained = {**state, "hyponet.ff_linear": 0 * state["hyponet.ff_linear"]}
    with pytest.raises(ValueError, match="hyponet.ff_linear: trained frequencies"):
        load_ginr_ipc(trained, options, views)
    del trained["hyponet.ff_linear"]
    with pytest.raises(ValueError, match="state: 1 missing: hyponet.ff_linear"):
        load_ginr_ipc(trained, options, views)


class ListConfig:
    """As IPC's code leaves it in the state of its optimiser."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("code ran")


@pytest.mark.parametrize("module", ["omegaconf.listconfig", "elsewhere"])
def test_objects_of_its_configuration_are_read_as_nothing(
    module: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {module, module.partition(".")[0]}:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(ListConfig=ListConfig))
    monkeypatch.setattr(ListConfig, "__module__", module)
    betas = ListConfig()
    betas.parent = {"type": float, "values": [0.9, 0.999]}
    content = {"optimizer": {"param_groups": [{"betas": betas}]}, "state_dict": a_state(LOW_RANK)}
    torch.save(content, tmp_path / "a.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"arch": LOW_RANK}))
    known = module != "elsewhere"
    out = ["--out", tmp_path / "b.safetensors"]
    told = run(capsys, tmp_path / "a.pt", *out, status=0 if known else 2)
    assert ("ipc, " if known else "code in it would run") in told


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("type", "meta_low_rank_modulated_inr", "arch.type: 'meta_low_rank_modulated_inr' has no"),
        ("hyponet.activation", {"type": "siren"}, "activation.type: 'siren' has no counterpart"),
        ("hyponet.use_bias", False, "hyponet.use_bias: False has no counterpart here, only True"),
        ("hyponet.hidden_dim", [8, 8, 4], r"hidden_dim: \[8, 8, 4\] has no counterpart"),
        ("hyponet.hidden_dim", "8", "hidden_dim: expected a list of numbers, got '8'"),
        ("hyponet.fourier_mapping.type", "random_gaussian", "'random_gaussian' has no counterpart"),
        ("hyponet.fourier_mapping.use_ff", False, "use_ff: False has no counterpart here"),
        ("hyponet.output_bias", "half", "output_bias: expected a number, got 'half'"),
        ("transformer.mask", True, "transformer.mask: True has no counterpart here, only False"),
        ("transformer.block.gelu", "v2", "block.gelu: 'v2' has no counterpart here, only 'v1'"),
        ("transformer.block.n_head", None, "block.n_head: missing from the configuration"),
        ("transformer.block.n_head", 5, "n_head: 5 has no counterpart here, only divisors of"),
        ("latent_mapping.latent_dim", 8, "latent_dim: 8 has no counterpart here, only 12 has"),
        ("latent_mapping.n_patches", 8, "n_patches: 8 has no counterpart here, only a square"),
        ("data_encoder.type", "vqgan", "data_encoder.type: 'vqgan' has no counterpart"),
        ("data_encoder.encoder_spec.padding", 2, "padding: 2 has no counterpart here, only less"),
        ("coord_sampler.coord_range", [0, 1], r"coord_range: \[0, 1\] has no counterpart"),
        ("modulated_layer_idxs", [0, 1], r"idxs: \[0, 1\] has no counterpart here, only one layer"),
        ("n_weight_groups", [4, 4], r"n_weight_groups: \[4, 4\] has no counterpart here, 4 layers"),
        ("n_weight_groups", [8], r"expected weight_groups.weight_groups of shape \(8, 12\), real"),
        ("transformer", 3, "arch.transformer: expected options by name, got 3"),
    ],
)
def test_options_without_a_counterpart_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_ginr_ipc(a_state(LOW_RANK), changed(LOW_RANK, path, value))


def test_what_has_no_counterpart_in_other_systems_is_named() -> None:
    state = a_state(TRANS_INR)
    for path, value in (("hyponet.normalize_weight", False), ("modulated_layer_idxs", [1])):
        with pytest.raises(ValueError, match=f"{path.rpartition('.')[2]}: .* no counterpart here"):
            load_ginr_ipc(state, changed(TRANS_INR, path, value))
    with pytest.raises(ValueError, match=r"coord_range: \[-1, 2\] has no counterpart here, only"):
        load_ginr_ipc({}, changed(audio(), "coord_sampler.coord_range", [-1, 2]))
    with pytest.raises(ValueError, match="arch.type: 'transinr' has no counterpart here"):
        load_ginr_ipc({}, changed(audio(), "type", "transinr"))
    scene = nerf("transinr_nerf", 3, None)
    with pytest.raises(ValueError, match="n_patches: 12 has no counterpart here, 2 square views"):
        load_ginr_ipc(a_state(scene), scene, views=2)


def test_what_is_missing_left_over_or_trained_is_named(tmp_path: Path, capsys: Any) -> None:
    out, state = ["--out", tmp_path / "out.safetensors"], a_state(LOW_RANK)
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    assert "lay it beside the checkpoint as config.yaml" in run(
        capsys, tmp_path / "a.pt", *out, status=2
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"arch": LOW_RANK}))
    torch.save({"state_dict": {**state, "encoder.more": torch.zeros(2)}}, tmp_path / "a.pt")
    assert "without a use there: encoder.more" in run(capsys, tmp_path / "a.pt", *out)
    few = {name: value for name, value in state.items() if "blocks.1" not in name}
    torch.save(few, tmp_path / "few.pt")
    message = "state: 16 missing: transformer.blocks.1.ln1.weight, transformer.blocks.1.ln1.bias"
    told = run(capsys, tmp_path / "few.pt", *out, status=2)
    assert message in told and "and 8 more" in told
    trained = {**state, "hyponet.ff_linear": torch.tensor([1.0, 3.0, 4.0])}
    with pytest.raises(ValueError, match="hyponet.ff_linear: trained frequencies have no count"):
        load_ginr_ipc(trained, LOW_RANK)
    # Those of another σ than configured are as good.
    spaced = {**state, "hyponet.ff_linear": torch.tensor([1.0, 3.0, 9.0])}
    assert load_ginr_ipc(spaced, LOW_RANK)[0].config.bandwidth == pytest.approx(9.0)


SCENE = IpcViewsConfig(
    image_size=8,
    patch_size=4,
    encoder_dim=DIM,
    encoder_depth=1,
    encoder_heads=3,
    encoder_head_dim=4,
    encoder_mlp_dim=4 * DIM,
    hidden_dim=8,
    hidden_layers=1,
    frequencies=3,
    latents=4,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_dim": 6}, "token_dim: ginr-ipc has only the encoder's own, got 6"),
        ({"encoder_head_dim": 5}, "heads that make up encoder_dim 12, got 15"),
        ({"encoder_mlp_dim": 12}, "encoder_mlp_dim: ginr-ipc has four times encoder_dim 12"),
        ({"camera_distance": 1.3}, "camera_distance: published code has 4.0, got 1.3"),
        ({"latents": 3}, "latents: ginr-ipc has divisors of the layer's 8 columns, got 3"),
        ({"view_dim": 4}, "spec: ginr_ipc has no view branch"),
        ({"position_views": 3}, "views: there are positions for 3, got 2"),
    ],
)
def test_what_the_published_code_has_not_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_ginr_ipc(IpcViews(dataclasses.replace(SCENE, **change)), views=2)


def test_clips_and_images_that_fill_no_patches_are_named() -> None:
    sizes = {
        name: getattr(SCENE, name)
        for name in AudioIpcConfig.__dataclass_fields__
        if (name.startswith("encoder") or name in ("hidden_dim", "hidden_layers", "latents"))
    }
    clip = AudioIpc(AudioIpcConfig(length=9, patch_size=5, frequencies=3, **sizes))
    with pytest.raises(ValueError, match="length: ginr-ipc reflects clips of 9 samples"):
        to_ginr_ipc(clip)
    with pytest.raises(ValueError, match="views: only radiance fields have support views"):
        to_ginr_ipc(clip, views=2)
