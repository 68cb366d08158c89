"""Latents of a data set in one file: what stage 2 of latent diffusion is trained on.

A file is safetensors. It holds

* ``latents``: ``(N, H)`` or ``(N, R, D)``, float32, float16 or bfloat16;
* ``mean``, ``std``: over the N instances, of each element of a latent, float32. mNIF standardises
  each component; LA-GINR "feature channels of each latent token" (Appendix A.3), that is each
  component of each token. An element that does not vary has no standard deviation to divide by: a
  floor, a millionth of the largest one, stands in for it, and how many such there are is noted;
* ``labels``: ``(N,)`` int64, where instances have classes;
* ``names``: uint8, the names of the instances as UTF-8, one a line;
* ``decoder.*``: the weights of the stage-1 model, so that nothing else is needed to see samples;

and in its metadata, as JSON, ``about``: see :class:`About`. Latents are written as they come and
read by memory mapping, so that neither side holds them all: ImageNet's 1.28 million times 256×256
are 168 GB in float16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

STAGE = "decoder."
FORMAT = "ginr-fast latents 1"
_CHECKED_AT_ONCE = 1 << 26  # elements; of larger files only what is read is checked


class LatentsError(ValueError):
    """A file of latents that is damaged, or lacks something; the message names both."""


@dataclass(frozen=True)
class About:
    """Where latents come from.

    Args:
        system: of stage 1.
        recipe: of stage 1, as plain values.
        weights: a digest of its weights.
        data: a digest of the data that it encoded.
        split: which instances of it.
        classes: names of the classes; none without labels.
        constant: elements of a latent that do not vary.
    """

    system: str
    recipe: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    data: str = ""
    split: str = "train"
    classes: tuple[str, ...] = ()
    constant: int = 0


class Latents:
    """A file of latents, open for reading.

    Args:
        path: the file.

    Attributes:
        about: where they come from.
        mean: ``(H,)`` or ``(R, D)``, float32.
        std: the same, above 0.
        labels: ``(N,)`` int64, or None.
        names: of the instances.
        stage: the weights of the stage-1 model, by its own names.

    Raises:
        FileNotFoundError: no such file.
        LatentsError: truncated, no file of latents, with notes or names that cannot be read,
            without its statistics, with wrong shapes, values that are not finite, standard
            deviations of zero, or labels out of range.
    """

    def __init__(self, path: Path | str) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"latents: {self.path} does not exist")
        try:
            archive = safe_open(self.path, framework="pt")
            notes = archive.metadata() or {}
            # Mapped, not read: pages come in when rows are asked for.
            held = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        except (SafetensorError, RuntimeError) as error:
            raise LatentsError(f"{self.path}: truncated or corrupt latents ({error})") from None
        if notes.get("format") != FORMAT:
            raise LatentsError(f"{self.path}: holds no latents exported by this version")
        try:
            plain = json.loads(notes["about"])
            self.about = About(**{**plain, "classes": tuple(plain["classes"])})
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise LatentsError(f"{self.path}: notes that cannot be read ({what})") from None
        self.latents = self._tensor(held, "latents")
        self.mean, self.std = self._tensor(held, "mean"), self._tensor(held, "std")
        self.labels = held.get("labels")
        names = self._tensor(held, "names")
        try:
            self.names = bytes(names.view(torch.uint8).numpy()).decode().split("\n")
        except (RuntimeError, UnicodeDecodeError) as error:
            raise LatentsError(f"{self.path}: names: expected UTF-8 ({error})") from None
        self.stage = {
            name.removeprefix(STAGE): value
            for name, value in held.items()
            if name.startswith(STAGE)
        }
        self._check()

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent."""
        return tuple(self.latents.shape[1:])

    @property
    def classes(self) -> int:
        """How many classes labels tell apart; 0 without labels."""
        return len(self.about.classes) if self.labels is not None else 0

    def rows(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Latents by number.

        Args:
            indices: B of them.

        Returns:
            ``(B, ...)``, float32.

        Raises:
            LatentsError: one holds values that are not finite.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        found = self.latents[chosen].float()
        finite = found.flatten(1).isfinite().all(1)
        if not finite.all():
            number = int(chosen[~finite][0])
            raise LatentsError(
                f"{self.path}: latents: expected finite values, "
                f"{self.names[number]} (number {number}) has others"
            )
        return found

    def standardised(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """:meth:`rows`, with mean 0 and standard deviation 1 over all instances."""
        return (self.rows(indices) - self.mean) / self.std

    def fingerprint(self) -> str:
        """A digest of what was encoded by which model, and of the statistics."""
        import hashlib

        about = json.dumps(vars(self.about), sort_keys=True)
        digest = hashlib.sha256(f"{about}\0{tuple(self.latents.shape)}".encode())
        for part in (self.mean, self.std):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def _tensor(self, held: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        if name not in held:
            what = "without its statistics: " if name in ("mean", "std") else ""
            raise LatentsError(f"{self.path}: {what}holds no {name}")
        return held[name]

    def _check(self) -> None:
        latents, labels = self.latents, self.labels
        if latents.ndim not in (2, 3) or not latents.is_floating_point() or not latents.numel():
            raise LatentsError(
                f"{self.path}: latents: expected (N, H) or (N, R, D) floating point, at least one "
                f"and not empty, got {tuple(latents.shape)} {latents.dtype}"
            )
        for name, part in (("mean", self.mean), ("std", self.std)):
            if part.shape != latents.shape[1:]:
                raise LatentsError(
                    f"{self.path}: {name}: expected shape {self.shape}, got {tuple(part.shape)}"
                )
            if not part.isfinite().all():
                raise LatentsError(f"{self.path}: {name}: expected finite values")
        if not (self.std > 0).all():
            raise LatentsError(f"{self.path}: std: expected values above 0")
        if len(self.names) != len(latents):
            raise LatentsError(
                f"{self.path}: names: expected {len(latents)}, got {len(self.names)}"
            )
        if labels is not None:
            classes = len(self.about.classes)
            if labels.shape != latents.shape[:1] or labels.dtype != torch.int64:
                raise LatentsError(
                    f"{self.path}: labels: expected ({len(latents)},) int64, "
                    f"got {tuple(labels.shape)} {labels.dtype}"
                )
            if labels.min() < 0 or labels.max() >= classes:
                raise LatentsError(
                    f"{self.path}: labels: expected 0 to {classes - 1}, "
                    f"got {int(labels.min())} to {int(labels.max())}"
                )
        if latents.numel() <= _CHECKED_AT_ONCE:
            self.rows(range(len(latents)))
