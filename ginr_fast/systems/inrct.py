"""INRCT of images: one network that encodes images and generates them, as INRs, by consistency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.decoders.anr import AnrDecoder
from ginr_fast.encoders import PatchTokenizer
from ginr_fast.generation.averaging import AveragedModel
from ginr_fast.generation.consistency import (
    ConsistencySchedule,
    consistency_function,
    per_instance,
    sample,
)
from ginr_fast.generation.sampling import SamplingOptions, noise
from ginr_fast.systems.anr_initialization import initialise_anr
from ginr_fast.systems.hyper_network import HyperConfig
from ginr_fast.systems.image_rendering import check_images, output_size, render_image


@dataclass(frozen=True)
class InrctConfig(HyperConfig):
    """The sizes of an INRCT of images; the defaults are the published ones at 32².

    Args:
        image_size: height and width of the images, in pixels.
        channels: colour channels.
        patch_size: height and width of a patch, in pixels.
        tokens: R, INR tokens of an image.
        token_dim: their width.
        hidden_dim: width of the ANR.
        heads: of its cross-attention.
        head_dim: width of such a head.
        depth: layers of its MLP.
        max_frequency: of its Fourier features.
        threshold: of its attention.
        schedule: of the noise levels.
    """

    image_size: int = 32
    channels: int = 3
    patch_size: int = 4
    tokens: int = 256
    token_dim: int = 512
    hidden_dim: int = 512
    heads: int = 6
    head_dim: int = 64
    depth: int = 5
    max_frequency: float = 1024.0
    threshold: float = 0.0015
    schedule: ConsistencySchedule = field(default_factory=ConsistencySchedule)


class TrainingOutputs(NamedTuple):
    """What a training step compares, in data space, ``(B, N, channels)`` each.

    Args:
        denoised: f(x_t, t) of the model in training.
        signal: what its INR shows by itself.
        followed: the teacher's f(x_r, r); None if none was asked for.
    """

    denoised: torch.Tensor
    signal: torch.Tensor
    followed: torch.Tensor | None


class Inrct(AveragedModel):
    """Encoding and generating INRs of images by consistency training.

    A hyper-network G turns an image with noise of level t into the tokens β of an INR, an ANR M_β
    that gives the clean image at any coordinates: β = G(x, 0) encodes an image, β = G(T·z, T)
    generates one. In data space, values in [-1, 1] with x_t = x + t·z, the consistency function is

        f(x_t, t) = c_skip(t)·x_t + c_out(t)·M_β / σ,   β = G(c_in(t)·x_t, t),

    (INRCT, Equation 12). Three things the paper leaves open:

    * The 1/σ. The reconstruction loss wants M_β = x at t = 0; at t = T, where c_out = σ, f wants
      M_β = x / σ if M_β is taken as it is. With the constant a token means the same at both ends,
      and the INR of a one-step sample *is* the sample: f and M_β differ by 0.006·z, less than what
      8 bits resolve. F = M_β/σ of unit variance is also what EDM scales its networks to.
    * c_in, which EDM and ECT have.
    * What the INR of a sample of two and more steps is. At their last level, 0.821, nearly half of
      f is the noisy image itself, and M_β mostly takes its noise away: neither is an image at
      another resolution. Such a sample is therefore encoded once more, β = G(x̂, 0), which the
      reconstruction loss trains to be the INR of x̂; :meth:`evaluations` counts that.
      :meth:`generate` gives x̂ itself, at the resolution of training and without that evaluation.

    Whatever tokens come from, ``decode`` and ``render`` show their image. Coordinates are
    (row, column) in [-1, 1]² as for every system of images.

    Args:
        config: the sizes.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.inrct import Inrct, InrctConfig
        >>> model = Inrct(InrctConfig(dim=32, encoder_depth=1, decoder_depth=1, hyper_heads=2,
        ...     hyper_head_dim=16, mlp_dim=64, image_size=8, tokens=16, token_dim=16,
        ...     hidden_dim=32, heads=2, head_dim=16, depth=2))
        >>> model.encode(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 16, 16])
        >>> model.render(model.draw(range(4)), ginr_fast.grid(20, 20)).shape
        torch.Size([4, 3, 20, 20])
    """

    def __init__(self, config: InrctConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or InrctConfig()
        self.tokenizer = PatchTokenizer(
            config.image_size, config.patch_size, config.channels, config.dim
        )
        self.hyper_network = config.hyper_network(
            config.tokens, config.token_dim, config.schedule.t_min
        )
        self.hyper_network.initialise_places(self.tokenizer.position, self.tokenizer.side)
        self.decoder = AnrDecoder(
            coord_dim=2,
            out_dim=config.channels,
            token_dim=config.token_dim,
            hidden_dim=config.hidden_dim,
            heads=config.heads,
            head_dim=config.head_dim,
            depth=config.depth,
            max_frequency=config.max_frequency,
            threshold=config.threshold,
        )
        initialise_anr(self.decoder, self.hyper_network.first_tokens())

    def hyper(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """G: INR tokens of noisy images.

        Args:
            noisy: x_t, ``(B, channels, image_size, image_size)``, in data space.
            t: levels, ``(B,)``.

        Returns:
            ``(B, tokens, token_dim)``.
        """
        scale = per_instance(self.config.schedule.c_in(t), noisy)
        return self.hyper_network(self.tokenizer(scale * noisy), t)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """G(x, 0): INR tokens of clean images.

        Args:
            images: ``(B, channels, image_size, image_size)``, values in [0, 1].

        Returns:
            ``(B, tokens, token_dim)``.

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape.
        """
        check_images(images, self.config.channels, self.config.image_size)
        return self.hyper(images * 2 - 1, images.new_zeros(len(images)))

    def decode(self, coords: torch.Tensor | CoordinateGrid, tokens: torch.Tensor) -> torch.Tensor:
        """Values of the INR at coordinates.

        Args:
            coords: ``(B, ..., 2)``, ``(..., 2)`` shared by the batch, or a grid.
            tokens: ``(B, tokens, token_dim)``.

        Returns:
            ``(B, ..., channels)``, about [0, 1], not clamped.
        """
        return self.decoder(coords, tokens) + 0.5

    def signal(self, coords: torch.Tensor | CoordinateGrid, tokens: torch.Tensor) -> torch.Tensor:
        """:meth:`decode` in data space, about [-1, 1]."""
        return self.decoder(coords, tokens) * 2

    def denoise(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """f(x_t, t): the clean estimate of noisy images, at their own resolution.

        Args:
            noisy: x_t, ``(B, channels, image_size, image_size)``, in data space.
            t: levels, ``(B,)``.

        Returns:
            The same shape, about [-1, 1].
        """
        size = self.config.image_size
        where = grid(size, size, device=noisy.device)
        shown = self.signal(where, self.hyper(noisy, t)).permute(0, 3, 1, 2)
        return self._consistent(noisy, t, shown)

    def forward(
        self,
        noisy: torch.Tensor,
        t: torch.Tensor,
        coords: torch.Tensor | CoordinateGrid,
        values: torch.Tensor,
        earlier: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> TrainingOutputs:
        """What a training step compares, of the twin in training and of this model, its teacher.

        Args:
            noisy: x_t, ``(B, channels, image_size, image_size)``.
            t: levels, ``(B,)``.
            coords: where images are compared, N points shared by the batch.
            values: x_t there, ``(B, N, channels)``.
            earlier: x_r, r and x_r at the coordinates, for the teacher; of any instances.
        """
        student = self.twin()
        signal = student.signal(coords, student.hyper(noisy, t)).flatten(1, -2)
        denoised = self._consistent(values, t, signal)
        if earlier is None:
            return TrainingOutputs(denoised, signal, None)
        with torch.no_grad():
            earlier_noisy, r, earlier_values = earlier
            shown = self.signal(coords, self.hyper(earlier_noisy, r)).flatten(1, -2)
            followed = self._consistent(earlier_values, r, shown)
        return TrainingOutputs(denoised, signal, followed)

    def _consistent(
        self, noisy: torch.Tensor, t: torch.Tensor, signal: torch.Tensor
    ) -> torch.Tensor:
        schedule = self.config.schedule
        return consistency_function(schedule, noisy, t, signal / schedule.sigma_data)

    @torch.no_grad()
    def draw(self, indices: Sequence[int], options: SamplingOptions | None = None) -> torch.Tensor:
        """INR tokens of samples.

        Args:
            indices: their numbers, B of them.
            options: steps (1 if None) and seed.

        Returns:
            ``(B, tokens, token_dim)``: G(T·z, T) for one step, G(x̂, 0) for more.

        Raises:
            ValueError: a label or guidance: the model has no classes.
        """
        steps = self._steps(options)
        if steps > 1:
            return self.encode(self.generate(indices, options))
        level = self.config.schedule.t_max
        start = level * self._noise(indices, options, 0)
        return self.hyper(start, start.new_full((len(indices),), level))

    @torch.no_grad()
    def generate(
        self, indices: Sequence[int], options: SamplingOptions | None = None
    ) -> torch.Tensor:
        """Samples x̂ at the resolution of training, without making INRs of them.

        One evaluation of the network a step; see :func:`ginr_fast.generation.consistency.sample`.

        Args:
            indices: their numbers, B of them.
            options: steps (1 if None) and seed.

        Returns:
            ``(B, channels, image_size, image_size)``, clamped to [0, 1].

        Raises:
            ValueError: a label or guidance: the model has no classes.
        """
        levels = self.config.schedule.levels(self._steps(options))

        def predict(noisy: torch.Tensor, level: float) -> torch.Tensor:
            # Noise is added to an image, and images end at ±1.
            return self.denoise(noisy, noisy.new_full((len(indices),), level)).clamp(-1, 1)

        def fresh(step: int) -> torch.Tensor:
            return self._noise(indices, options, step)

        return (sample(predict, fresh, levels) + 1) / 2

    def evaluations(self, options: SamplingOptions | None = None) -> int:
        """Evaluations of the network that one sample of :meth:`draw` takes: 1, or steps + 1.

        Args:
            options: how samples are drawn.

        Raises:
            ValueError: as :meth:`draw`.
        """
        steps = self._steps(options)
        return 1 if steps == 1 else steps + 1

    def _steps(self, options: SamplingOptions | None) -> int:
        options = options or SamplingOptions()
        options.check_no_classes()
        return options.steps or 1

    def _noise(
        self, indices: Sequence[int], options: SamplingOptions | None, step: int
    ) -> torch.Tensor:
        size, seed = self.config.image_size, (options or SamplingOptions()).seed
        shape, device = (self.config.channels, size, size), self.tokenizer.position.device
        return noise(shape, indices, seed, step, device)

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Encode images and decode them at ``scale`` times their resolution.

        Args:
            images: ``(B, channels, image_size, image_size)``, values in [0, 1].
            scale: output pixels per input pixel along each axis; any positive number.

        Returns:
            ``(B, channels, size, size)``, clamped to [0, 1], ``size = round(image_size · scale)``.

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape, or a scale that leaves
                no pixel.
        """
        size = output_size(self.config.image_size, scale)
        return self.render(self.encode(images), grid(size, size, device=images.device))

    def render(
        self, tokens: torch.Tensor, where: CoordinateGrid, jitter: float = 0.0, seed: int = 0
    ) -> torch.Tensor:
        """Decode a grid into images, rows in blocks.

        Args:
            tokens: ``(B, tokens, token_dim)``.
            where: a grid of ``(H, W)`` points.
            jitter: each point is moved at random within this part of its pixel, 0 to 1, as ANR
                does where a grid is finer than that of training.
            seed: of these moves.

        Returns:
            ``(B, channels, H, W)``, clamped to [0, 1].

        Raises:
            ValueError: a jitter outside [0, 1].
        """
        channels = self.config.channels
        return render_image(self.decode, tokens, where, channels, jitter, seed)
