"""Inception's features, by weights that the user brings; nothing is downloaded here.

Three kinds of file serve:

- ``inception-2015-12-05.pt``, the TorchScript module that NVIDIA's StyleGAN repositories distribute
  and evaluate with: the network of the published FID, which resizes images itself.
- Any other TorchScript module that maps images ``(B, 3, H, W)`` to features ``(B, F)``, or to
  (features, logits). It is given uint8; if it cannot take a grey uint8 picture of 64×64, floating
  point in [0, 1].
- ``weights-inception-2015-12-05-6726825d.pth``, torch-fidelity's, where that is installed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from ginr_fast.generation.features import FeatureNetwork, Features, as_bytes, as_floats

_WANTED = (
    "expected inception-2015-12-05.pt of NVIDIA's StyleGAN repositories, another TorchScript "
    "module from images to features, or torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
)


class ScriptedFeatures(FeatureNetwork):
    """A TorchScript module as a feature network.

    Args:
        module: see the top of this file.
        name: what its distances are reported under.

    Raises:
        ValueError: it gives something else than features, or fails.
    """

    def __init__(self, module: torch.jit.ScriptModule, name: str) -> None:
        forward: Any = module.forward
        arguments = {argument.name for argument in forward.schema.arguments}
        # NVIDIA's gives features, or class probabilities without the bias that the Inception Score
        # leaves out, by its arguments.
        nvidia = {"return_features", "no_output_bias"} <= arguments
        takes_bytes, found = _probe(module, nvidia)
        classes = 0 if found.logits is None else found.logits.shape[1]
        super().__init__(name, found.features.shape[1], classes)
        self.module, self._nvidia, self._bytes = module.eval(), nvidia, takes_bytes

    def describe(self, images: torch.Tensor, classes: bool = True) -> Features:
        given = as_bytes(images) if self._bytes else as_floats(images)
        return _called(self.module, given, self._nvidia, classes)


class FidelityFeatures(FeatureNetwork):
    """torch-fidelity's Inception.

    Args:
        path: its weights.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("inception", 2048, 1008)
        from torchmetrics.image.fid import NoTrainInceptionV3

        names = ["2048", "logits_unbiased"]
        self.module = NoTrainInceptionV3("inception-v3-compat", names, str(path))

    def describe(self, images: torch.Tensor, classes: bool = True) -> Features:
        features, logits = self.module._torch_fidelity_forward(as_bytes(images))
        return Features(features, logits)


def inception_features(path: Path | str) -> FeatureNetwork:
    """The feature network of a file.

    Args:
        path: see the top of this file; a suffix ``.pth`` means torch-fidelity's.

    Returns:
        On the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none of these, or torch-fidelity is needed and not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"features: no file {path}; {_WANTED}")
    if path.suffix == ".pth":
        try:
            return FidelityFeatures(path).eval()
        except ModuleNotFoundError as error:
            raise ValueError(
                f"features: {path} needs torch-fidelity ({error}); {_WANTED}"
            ) from None
    try:
        with warnings.catch_warnings():
            # torch recommends torch.export to who saves; the files that exist are TorchScript.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"features: {path} is no TorchScript module ({reason}); {_WANTED}"
        ) from None
    try:
        return ScriptedFeatures(module, _name(path)).eval()
    except ValueError as error:
        raise ValueError(f"features: {path}: {error}; {_WANTED}") from None


def _name(path: Path) -> str:
    return "inception" if path.stem.startswith("inception-2015-12-05") else path.stem


def _called(module: Any, images: torch.Tensor, nvidia: bool, classes: bool = True) -> Features:
    if nvidia:  # gives one or the other: each is a run of the whole network
        features = module(images, return_features=True)
        if not classes:
            return Features(features)
        return Features(features, module(images, no_output_bias=True).float().log())
    found = module(images)
    if isinstance(found, (tuple, list)):
        features, logits = found
        return Features(features, logits)
    return Features(found)


@torch.no_grad()
def _probe(module: Any, nvidia: bool) -> tuple[bool, Features]:
    """Whether it takes uint8, and what it makes of one grey picture."""
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    reason = ""
    for as_uint8 in (True, False):
        try:
            found = _called(module, grey if as_uint8 else grey.float() / 255, nvidia)
        except (torch.jit.Error, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            continue
        for part in found:
            if part is not None and (not isinstance(part, torch.Tensor) or part.shape[:-1] != (1,)):
                raise ValueError("expected features (B, F), or features and logits")
        return as_uint8, found
    raise ValueError(f"it fails on a picture of 64×64 ({reason})")
