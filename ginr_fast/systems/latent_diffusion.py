"""Latent diffusion: stage 2 of mNIF, and LA-GINR's token diffusion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ginr_fast.coords import CoordinateGrid
from ginr_fast.generation.denoisers import ResidualMlpDenoiser, TokenDenoiser
from ginr_fast.generation.diffusion import DiffusionConfig, gaussian_factor, guided, sample
from ginr_fast.generation.latents import Latents
from ginr_fast.generation.sampling import SamplingOptions, noise
from ginr_fast.ops.checks import check_tensor
from ginr_fast.systems.image_inr import ImageInr
from ginr_fast.systems.image_rendering import render_image
from ginr_fast.systems.mnif import Mnif

Denoiser = ResidualMlpDenoiser | TokenDenoiser
_GAUSSIAN_STREAM = 2  # of a sample's noise; diffusion has the ones before
_FULL_COVARIANCE = 4096  # elements of a latent, at most, whose covariance is taken


class LatentDiffusion(nn.Module):
    """A diffusion model of the latents of a stage-1 model, which decodes them and never changes.

    Latents are standardised before the denoiser sees them, x = (z − mean) / std, and drawn ones are
    put back: ``draw`` gives latents of stage 1. mNIF draws latent vectors by a residual MLP
    (NeurIPS 2023, section 4.2); LA-GINR draws tokens by a Transformer, of a class and with
    classifier-free guidance (arXiv:2310.05624, section 4.4).

    Samples come from the average of the denoiser's weights where there is one, see
    :class:`~ginr_fast.generation.averaging.AveragedModel`.

    Args:
        stage: the stage-1 model.
        denoiser: predicts clean latents, standardised.
        mean: of the latents, ``(H,)`` or ``(R, D)``.
        std: their standard deviation, above 0.
        diffusion: schedule of the noise, and sampler.
        about: what stage 1 was, as plain values; it is kept with the weights.

    Attributes:
        decoder_model: the stage-1 model, frozen: ``Mnif`` or an ``ImageInr``.
        denoiser: the network.

    Raises:
        ValueError: statistics or a denoiser for latents of another shape, or a std of 0.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.denoisers import ResidualMlpConfig
        >>> from ginr_fast.generation.diffusion import DiffusionConfig
        >>> from ginr_fast.generation.sampling import SamplingOptions
        >>> from ginr_fast.systems.latent_diffusion import LatentDiffusion
        >>> from ginr_fast.systems.mnif import Mnif, MnifConfig
        >>> stage = Mnif(MnifConfig(hidden_layers=1, hidden_dim=16, mixtures=8, latent_dim=12))
        >>> denoiser = ResidualMlpConfig(width=32, blocks=1, time_dim=16).build((12,))
        >>> model = LatentDiffusion(stage, denoiser, torch.zeros(12), torch.ones(12),
        ...                         DiffusionConfig(sampler="ddim", steps=50))
        >>> model.draw([0, 1, 2], SamplingOptions(steps=5)).shape
        torch.Size([3, 12])
    """

    mean: torch.Tensor
    std: torch.Tensor
    about: torch.Tensor

    def __init__(
        self,
        stage: Mnif | ImageInr,
        denoiser: Denoiser,
        mean: torch.Tensor,
        std: torch.Tensor,
        diffusion: DiffusionConfig | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_tensor("mean", mean, denoiser.shape)
        check_tensor("std", std, denoiser.shape)
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise ValueError("mean, std: expected finite values, and standard deviations above 0")
        self.diffusion = diffusion or DiffusionConfig()
        self.decoder_model = stage.requires_grad_(False).eval()
        self.denoiser = denoiser
        # Copies: what is given may be mapped from a file.
        self.register_buffer("mean", mean.float().clone())
        self.register_buffer("std", std.float().clone())
        self.register_buffer("about", notes_to_bytes(about or {}))

    @property
    def modality(self) -> str:
        """What latents stand for: image, voxels or scene."""
        stage = self.decoder_model
        return stage.config.modality if isinstance(stage, Mnif) else "image"

    @property
    def image_size(self) -> int | None:
        """Height and width that stage 1 was trained at, in pixels; None of shapes."""
        held = notes_from_bytes(self.about).get("recipe", {}).get("image_size")
        size = held or getattr(self.decoder_model.config, "image_size", None)
        return size if isinstance(size, int) else None

    @property
    def classes(self) -> int:
        """How many classes samples can be drawn from; 0 if none."""
        return self.denoiser.classes

    def train(self, mode: bool = True) -> LatentDiffusion:
        """As every module; the stage-1 model stays in evaluation mode."""
        super().train(mode)
        self.decoder_model.eval()
        return self

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What a training step calls: x̂₀ of the network in training, of standardised latents.

        Args:
            noisy: x_t, ``(B, H)`` or ``(B, R, D)``.
            times: t, ``(B,)``, int64.
            labels: ``(B,)``, int64; ``classes``, or no tensor, for none.
        """
        network: nn.Module = self.denoiser
        if self.denoiser.online is not None:
            network = self.denoiser.online
        return network(noisy, times, labels)

    def draw(self, indices: Sequence[int], options: SamplingOptions | None = None) -> torch.Tensor:
        """Latents of stage 1, from noise of their own each.

        Args:
            indices: the numbers of the samples, B of them.
            options: steps, guidance, label and seed.

        Returns:
            ``(B, H)`` or ``(B, R, D)``, float32, on the model's device.

        Raises:
            ValueError: more steps than the schedule has, a label out of range, or a label or
                guidance for a model without classes.
        """
        options = options or SamplingOptions()
        steps, guidance = self._settings(options)
        labels = self._labels(indices, options.label)
        denoise = guided(self.denoiser, labels, guidance, self.classes)
        shape, device = self.mean.shape, self.mean.device
        found = sample(denoise, shape, indices, self.diffusion, steps, options.seed, device)
        return found * self.std + self.mean

    def evaluations(self, options: SamplingOptions | None = None) -> int:
        """Evaluations of the denoiser a sample: the steps, and twice as many under guidance.

        Args:
            options: how samples are drawn.

        Raises:
            ValueError: as :meth:`draw`.
        """
        options = options or SamplingOptions()
        steps, guidance = self._settings(options)
        self._labels([0], options.label)
        return steps * (2 if self.classes and guidance != 1 else 1)

    def decode(self, coords: torch.Tensor | CoordinateGrid, latent: torch.Tensor) -> torch.Tensor:
        """Values at coordinates, as the stage-1 model decodes them.

        Args:
            coords: ``(B, ..., d)``, ``(..., d)`` shared by the batch, or a grid.
            latent: of stage 1.
        """
        return self.decoder_model.decode(coords, latent)

    @torch.no_grad()
    def render(self, latent: torch.Tensor, where: CoordinateGrid) -> torch.Tensor:
        """Images of latents on a grid; for models of images.

        Args:
            latent: of stage 1, ``(B, ...)``.
            where: a grid of ``(H, W)`` points.

        Returns:
            ``(B, channels, H, W)``, clamped to [0, 1].

        Raises:
            ValueError: not a model of images.
        """
        stage = self.decoder_model
        if isinstance(stage, ImageInr):
            return stage.render(latent, where)
        if self.modality != "image":
            raise ValueError(f"render: expected a model of images, this is of {self.modality}")

        def decode(coords: torch.Tensor | CoordinateGrid, weights: torch.Tensor) -> torch.Tensor:
            return 0.5 * stage.decoder(coords, weights) + 0.5

        weights = stage.weights(latent)  # once, however many blocks of rows there are
        return render_image(decode, weights, where, stage.config.spec.out_dim)

    def _settings(self, options: SamplingOptions) -> tuple[int, float]:
        steps = self.diffusion.steps if options.steps is None else options.steps
        if not self.classes:
            options.check_no_classes()
        guidance = self.diffusion.guidance if options.guidance is None else options.guidance
        return self.diffusion.check_steps(steps), guidance

    def _labels(self, indices: Sequence[int], label: int | None) -> torch.Tensor | None:
        if not self.classes:
            return None
        if label is not None and not 0 <= label < self.classes:
            raise ValueError(f"label: expected 0 to {self.classes - 1}, got {label}")
        labels = [index % self.classes if label is None else label for index in indices]
        return torch.tensor(labels, dtype=torch.int64, device=self.mean.device)


class GaussianLatents:
    """The baseline that needs no training: latents drawn from one Gaussian fitted to all of them.

    It draws and decodes as :class:`LatentDiffusion` does.

    Args:
        model: whose latents they are, for decoding.
        latents: ``(N, ...)``, of stage 1: the Gaussian has their covariance. Without them the
            elements are independent, with the model's own means and standard deviations.
    """

    def __init__(self, model: LatentDiffusion, latents: torch.Tensor | None = None) -> None:
        self.model, self.factor = model, None
        self.mean = model.mean
        if latents is not None:
            check_tensor("latents", latents, ("N", *model.mean.shape))
            self.mean = latents.mean(0).to(model.mean)
            self.factor = gaussian_factor(latents.flatten(1)).to(model.mean)

    @classmethod
    def fitted(
        cls,
        model: LatentDiffusion,
        latents: Latents,
        indices: Sequence[int] | np.ndarray | None = None,
    ) -> GaussianLatents:
        """The Gaussian of a file's latents; of more than 4,096 elements each, independent ones.

        Args:
            model: whose latents they are.
            latents: their file.
            indices: which of them; all if None.
        """
        if model.mean.numel() > _FULL_COVARIANCE:
            return cls(model)
        return cls(model, latents.rows(range(len(latents)) if indices is None else indices))

    def draw(self, indices: Sequence[int], options: SamplingOptions | None = None) -> torch.Tensor:
        """As :meth:`LatentDiffusion.draw`; only the seed of ``options`` matters."""
        seed = (options or SamplingOptions()).seed
        shape, device = self.mean.shape, self.mean.device
        drawn = noise(shape, indices, seed, _GAUSSIAN_STREAM, device)
        if self.factor is None:
            return self.mean + self.model.std * drawn
        return self.mean + (drawn.flatten(1) @ self.factor.T).view(-1, *shape)

    def evaluations(self, options: SamplingOptions | None = None) -> int:
        """None at all."""
        return 0

    def render(self, latent: torch.Tensor, where: CoordinateGrid) -> torch.Tensor:
        """As :meth:`LatentDiffusion.render`."""
        return self.model.render(latent, where)


def notes_to_bytes(about: Mapping[str, Any]) -> torch.Tensor:
    """Plain values as uint8, so that they stay with the weights."""
    return torch.frombuffer(bytearray(json.dumps(dict(about)).encode()), dtype=torch.uint8).clone()


def notes_from_bytes(about: torch.Tensor) -> dict[str, Any]:
    """What :func:`notes_to_bytes` was given."""
    return cast(dict[str, Any], json.loads(bytes(about.cpu().numpy())))
