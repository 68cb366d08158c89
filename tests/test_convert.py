"""``ginr-fast convert``: checkpoints of published code, read safely and renamed, there and back."""

from __future__ import annotations

import pytest
import torch
from adapter_decoders import ANR, LinearMixtureINR

import ginr_fast.training.checkpoints as own
from ginr_fast import cli
from ginr_fast.adapters.checkpoints import AnrOptions, anr_decoder, load_anr, read_published
from ginr_fast.systems.mnif import Mnif
from ginr_fast.systems.mnif_adaptation import Cavia
from ginr_fast.systems.mnif_published import load_published, published_step_sizes
from ginr_fast.training.checkpoints import load_saved
from ginr_fast.training.recipes import MnifImagesRecipe, from_plain


class Code:
    def __reduce__(self):
        return print, ("code ran",)


def run(capsys, *arguments, status=0) -> str:
    assert cli.main(["convert", *map(str, arguments)]) == status
    printed = capsys.readouterr()
    assert "code ran" not in printed.out
    return printed.err if status else printed.out


def make_anr():
    torch.manual_seed(0)
    return ANR(
        hidden_dim=17,
        att_threshold=0.1,
        activation="mish",
        out_scale=0.5,
        out_bias=0.5,
        rescale=True,
    )


ANR_OPTIONS = {
    "heads": 3,
    "bandwidth": 32,
    "threshold": 0.1,
    "activation": "mish",
    "out-scale": 0.5,
    "out-bias": 0.5,
}
ANR_ARGUMENTS = [part for name, value in ANR_OPTIONS.items() for part in (f"--anr.{name}", value)]


def test_anr_there_and_back(tmp_path, capsys):
    model = make_anr()
    ours, back = tmp_path / "anr.safetensors", tmp_path / "anr.pt"
    # As its training script saves it: the hyper-network, and an encoder beside it.
    state = {f"module.hyponet.{name}": value for name, value in model.state_dict().items()}
    state["module.tokenizer.prefc.weight"] = torch.zeros(2)
    torch.save({"epoch": 3, "model": {"name": "inr", "sd": state}}, tmp_path / "theirs.pth")
    told = run(capsys, tmp_path / "theirs.pth", "--out", ours, *ANR_ARGUMENTS, "--anr.rescale")
    assert "AnrDecoder, 11 tensors" in told and "left out, not of the decoder: module.tok" in told

    coords, tokens = 2 * torch.rand(2, 9, 2) - 1, torch.randn(2, 5, 17)
    model.set_params({"dtoken": tokens})
    decoder = load_anr(ours)
    torch.testing.assert_close(decoder(coords, tokens), model(coords), rtol=1e-4, atol=1e-5)

    assert "a state dict of an ANR, 11 tensors" in run(capsys, ours, "--out", back)
    again = make_anr()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(torch.load(back, weights_only=True))
    again.set_params({"dtoken": tokens})
    torch.testing.assert_close(again(coords), model(coords))


@pytest.mark.parametrize("modality", ["image", "voxels", "scene"])
def test_mnif_there_and_back(modality, tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"image": (2, 3), "voxels": (3, 1), "scene": (3, 4)}[modality]
    model = LinearMixtureINR(
        in_channels=sizes[0], out_channels=sizes[1], pred_type=modality, w0=20.0
    )
    state = {f"inr.{name}": value for name, value in model.state_dict().items()}
    state["inr.meta_sgd_lrs.meta_sgd_lrs"] = torch.rand(9)
    theirs, ours, back = (tmp_path / name for name in ("a.ckpt", "b.safetensors", "c.pt"))
    torch.save({"state_dict": state, "epoch": 1}, theirs)
    told = run(capsys, theirs, "--out", ours, "--modality", modality, "--w0", 20)
    assert told.startswith(f"{ours}: mnif-") and "without a use there: model.net.0.0.w" in told

    saved = load_saved(ours)
    if modality == "image":
        recipe = from_plain(MnifImagesRecipe, saved.recipe)
        cavia = Cavia(Mnif(recipe.model), recipe.cavia)
        saved.restore(cavia)
        coords, latents = 2 * torch.rand(2, 9, 2) - 1, 0.1 * torch.randn(2, 9)
        want = model({"coords": coords}, latents)["model_out"]
        torch.testing.assert_close(cavia.model.decode(coords, latents), want, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(saved.weights["step_sizes"], state["inr.meta_sgd_lrs.meta_sgd_lrs"])

    assert "a state dict of a LinearMixtureINR" in run(capsys, ours, "--out", back)
    for name, value in torch.load(back, weights_only=True).items():
        if not name.startswith("model."):
            assert torch.equal(value, state[f"inr.{name}"])


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    out = ["--out", tmp_path / "out.safetensors"]
    assert "does not exist" in run(capsys, tmp_path / "none.pt", *out, status=2)
    torch.save({"state_dict": make_anr().state_dict(), "hook": Code()}, tmp_path / "code.pt")
    assert "code in it would run" in run(capsys, tmp_path / "code.pt", *out, status=2)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "code.pt").read_bytes()[:300])
    assert "truncated or corrupt" in run(capsys, tmp_path / "cut.pt", *out, status=2)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert "no decoder of mNIF or ANR" in run(capsys, tmp_path / "other.pt", *out, status=2)
    torch.save(make_anr().state_dict(), tmp_path / "anr.pt")
    assert "4 do not divide the 15" in run(
        capsys, tmp_path / "anr.pt", *out, "--anr.heads", 4, status=2
    )
    with pytest.raises(SystemExit):
        run(capsys, tmp_path / "anr.pt", "--out", tmp_path / "out.bin", status=2)
    assert "expected a .safetensors or .pt" in " ".join(capsys.readouterr().err.split())
    state = read_published(tmp_path / "anr.pt").state
    for name in ("mlp.1.0.weight", "attn.to_k.weight", "attn.to_out.bias"):
        with pytest.raises(ValueError, match="state: "):
            anr_decoder({k: v for k, v in state.items() if k != name}, AnrOptions(heads=3))
    with pytest.raises(ValueError, match="state: extra is not of an ANR"):
        anr_decoder({**state, "extra": torch.zeros(1)}, AnrOptions(heads=3))


def test_damaged_files_are_named(tmp_path):
    state = {name: 0.5 + torch.rand(value.shape) for name, value in make_anr().state_dict().items()}
    torch.save(state, tmp_path / "whole.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole, old = ((tmp_path / name).read_bytes() for name in ("whole.pt", "old.pt"))
    at = whole.index(state["attn.to_q.weight"].numpy().tobytes()) + 3
    damaged = {
        "flipped.pt": whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :],
        "text.pt": b"hello, this is text",
        "cut.pt": b"\x80\x02}q\x00X\xff\xff",
        "memo.pt": b"\x80\x02h\x05.",
        "old_cut.pt": old[: len(old) // 2],
        "none.pt": b"",
        "none.safetensors": b"",
    }
    assert read_published(tmp_path / "old.pt").kind == "anr"
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: truncated or corrupt") as raised:
            read_published(tmp_path / name)
        assert "wrong checksum" in str(raised.value) or name != "flipped.pt"


def test_mappings_of_any_kind_are_looked_through(tmp_path):
    path, state = tmp_path / "a.pt", make_anr().state_dict()
    itself = {}
    itself["model"] = itself
    for content, message in (
        (itself, "but no tensor"),
        ({0: torch.zeros(2)}, "but no tensor"),
        ({"x": torch.zeros(2), 1: torch.zeros(2)}, "but x"),
        ([1], "expected a state dict, got list"),
        ({f"{part}.{name}": state[name] for part in ("a", "ema") for name in state}, "several"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message) as raised:
            read_published(path)
    assert "models of anr, under the prefixes 'a.', 'ema.'; expected one" in str(raised.value)
    torch.save({1: 2, "model": {"state_dict": {**state, 3: torch.zeros(2)}}}, path)
    assert read_published(path).state.keys() == state.keys()


def no_place(name, value):
    """Tensors that cannot be the named one."""
    for other in (value.new_ones(()), value[None], value.to(torch.complex64), value.long()):
        if other.shape != value.shape or not other.is_floating_point():
            yield other
    yield value.to_sparse()
    if not name.endswith(("net.0.0.weight", "to_q.weight", "to_k.weight", "mlp.2.weight")):
        yield torch.cat((value, value))  # others are where the sizes are read


def test_tensors_of_another_shape_or_kind_are_named():
    anr, mnif = make_anr().state_dict(), LinearMixtureINR().state_dict()
    mnif = {name: value for name, value in mnif.items() if not name.startswith("model.")}
    for state, load in (
        (anr, lambda state: anr_decoder(state, AnrOptions(heads=3))),
        (mnif, lambda state: load_published(state, "image")),
    ):
        for name, value in state.items():
            for other in no_place(name, value):
                with pytest.raises(ValueError, match=rf"state: expected {name} of"):
                    load({**state, name: other})
    one = {**anr, "attn.to_q.weight": torch.ones(5, dtype=torch.complex64)}
    wanted = "of 2 dimensions, real floats, got \\(5,\\) torch.complex64"
    with pytest.raises(ValueError, match=wanted):
        anr_decoder(one, AnrOptions(heads=3))
    mnif.pop("latent_to_mixture.weight")
    with pytest.raises(ValueError, match="weight,bias}, both or neither"):
        load_published(mnif, "image")
    with pytest.raises(ValueError, match="expected meta_sgd_lrs.meta_sgd_lrs of shape"):
        published_step_sizes({"meta_sgd_lrs.meta_sgd_lrs": torch.ones(9, dtype=torch.complex64)})


def test_an_export_is_read_once(tmp_path, capsys, monkeypatch):
    torch.save(make_anr().state_dict(), tmp_path / "a.pt")
    ours, read, load = tmp_path / "b.safetensors", [], own.load_saved
    run(capsys, tmp_path / "a.pt", "--out", ours, *ANR_ARGUMENTS)
    monkeypatch.setattr(own, "load_saved", lambda path: read.append(path) or load(path))
    run(capsys, ours, "--out", tmp_path / "c.pt")
    assert read == [ours]


def test_where_nothing_can_be_written_is_named_before_the_work(tmp_path, capsys):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").write_text("")
    for out, message in (("folder.pt", "is a folder"), ("file/x/out.pt", "no folder to write in")):
        with pytest.raises(SystemExit):
            run(capsys, tmp_path / "none.pt", "--out", tmp_path / out, status=2)
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_options_without_a_use_are_named(tmp_path, capsys):
    anr, mnif, ours = (tmp_path / name for name in ("a.pt", "m.pt", "b.safetensors"))
    torch.save(make_anr().state_dict(), anr)
    torch.save(LinearMixtureINR().state_dict(), mnif)
    out, no = ["--out", ours], "is of no use for a checkpoint of"
    for given, message in (
        ([anr, "--code", "ginr-ipc"], f"code: {no} anr"),
        ([anr, "--config", tmp_path / "c.yaml"], f"config: {no} anr"),
        ([mnif, "--views", 2], f"views: {no} mnif"),
        ([mnif, "--anr.heads", 3], f"heads: {no} mnif"),
        ([mnif, "--modality", "voxels", "--image-size", 32], f"image_size: {no} mnif"),
    ):
        assert message in run(capsys, *given, *out, status=2)
    assert not ours.exists()
    run(capsys, anr, *out, *ANR_ARGUMENTS)
    for given, name in ((["--averaged"], "averaged"), (["--config", anr], "config")):
        told = run(capsys, ours, "--out", tmp_path / "c.pt", *given, status=2)
        assert f"{name}: is of no use for a published checkpoint of anr-decoder" in told
    for kind in ({"heads": 0}, {"coord_dim": 1.5}):
        with pytest.raises(ValueError, match="expected a positive integer"):
            AnrOptions(**kind)
