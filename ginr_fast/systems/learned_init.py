"""Learned Init: a meta-learned initialisation of fields (Tancik et al., CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import nn

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.decoders.field import FieldDecoder
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.volume_render.convention import RenderedRays
from ginr_fast.ops.volume_render.random import Seed, later
from ginr_fast.systems.image_rendering import output_size
from ginr_fast.systems.inner_loop import Order, inner_loop
from ginr_fast.systems.samples import PointSamples, Samples, instance_errors, targets

Modality = Literal["image", "scene"]
StepSizes = Literal["fixed", "layer", "parameter"]

# Components of a coordinate and of a value, and the lowest frequency of an encoding.
_FIELDS: Mapping[str, tuple[int, int, float]] = {
    "image": (2, 3, math.pi),
    "scene": (3, 4, 1.0),
}


@dataclass(frozen=True)
class LearnedInitConfig:
    """The field and its inner loop; the defaults are those of ginr-ipc at 178×178 (ImageNette).

    Args:
        modality: image: (row, column) in [-1, 1]² to RGB in [0, 1]; scene: a point to RGB and
            density, both before the renderer's activations (sigmoid and ReLU).
        hidden_layers: layers between the first and the last.
        hidden_dim: width of the field.
        activation: relu, or sine for a SIREN.
        w0: frequency factor of the sines.
        frequencies: of the encoding, for each component of a coordinate; 0 for none.
        bandwidth: ratio of the highest frequency to the lowest, which is π for images, 1 for
            scenes.
        order: second: the outer gradient goes through the inner ones (MAML); first: it takes them
            for constants; reptile: the outer step goes towards the adapted parameters, which takes
            fixed step sizes and weights that are not normalised.
        inner_steps: gradient steps from the initialisation to an instance.
        inner_learning_rate: ε of these steps, along the gradient of an instance's own error.
        step_sizes: fixed: ε; layer, parameter: times a learned factor for each weight and bias
            tensor, or for each of their numbers (Meta-SGD, arXiv:1707.09835).
        normalize_weights: (ginr-ipc) weight vectors are divided by their L2 norm over the fan-in
            where they are used, ε is multiplied by a weight matrix's squared norm, and biases are
            shared by all instances.
        near: (scene) where rays start, in units of a ray's direction, which is not scaled.
        far: (scene) where they end.
        samples: (scene) field evaluations along a ray.
        scale: coordinates and positions are multiplied by this before the field sees them.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of range, by name.
    """

    modality: Modality = "image"
    hidden_layers: int = 3
    hidden_dim: int = 256
    activation: Literal["relu", "sine"] = "relu"
    w0: float = 30.0
    frequencies: int = 64
    bandwidth: float = 128.0
    order: Order = "second"
    inner_steps: int = 2
    inner_learning_rate: float = 0.003
    step_sizes: StepSizes = "fixed"
    normalize_weights: bool = True
    near: float = 2.0
    far: float = 6.0
    samples: int = 128
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("modality", get_args(Modality)),
            ("activation", ("relu", "sine")),
            ("order", get_args(Order)),
            ("step_sizes", get_args(StepSizes)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name, least in (("frequencies", 0), ("inner_steps", 1), ("samples", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected an integer from {least} up, got {value!r}")
        for name in ("inner_learning_rate", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected above 0, got {getattr(self, name)}")
        if not 0 <= self.near < self.far < math.inf:
            raise ValueError(f"near, far: expected 0 <= near < far, got {self.near}, {self.far}")
        if self.order == "reptile":
            # It moves what the inner loop moves, and nothing else.
            if self.step_sizes != "fixed":
                raise ValueError(f"step_sizes: Reptile learns none, got {self.step_sizes!r}")
            if self.normalize_weights:
                raise ValueError("normalize_weights: Reptile would not learn the shared biases")
        _ = self.spec  # names what is wrong with the field's sizes

    @cached_property
    def spec(self) -> FieldSpec:
        """The field of one instance."""
        coord_dim, out_dim, lowest = _FIELDS[self.modality]
        return FieldSpec(
            coord_dim=coord_dim,
            out_dim=out_dim,
            hidden_dim=self.hidden_dim,
            hidden_layers=self.hidden_layers,
            activation=self.activation,
            w0=self.w0,
            encoding=FourierEncoding.log_spaced(self.frequencies, self.bandwidth, lowest)
            if self.frequencies
            else None,
        )


class MetaLoss(NamedTuple):
    """What one outer step gives, for each instance.

    Args:
        objective: ``(B,)``, what training minimises the mean of.
        errors: ``(B,)``, mean squared errors of the adapted fields, or with Reptile of those before
            the last inner step.
    """

    objective: torch.Tensor
    errors: torch.Tensor


class LearnedInit(nn.Module):
    """Fields that a few gradient steps from one shared initialisation fit to an instance.

    With θ₀ the initialisation and L_i the mean squared error of instance i, the inner loop is
    ``θ_i ← θ_i − ε ∇L_i(θ_i)`` from ``θ_i = θ₀``; the outer one minimises the mean of ``L_i(θ_i)``
    in θ₀ (MAML, arXiv:1703.03400), or moves θ₀ towards the mean of θ_i (Reptile, arXiv:1803.02999).
    Sources: Learned Initializations for Optimizing Coordinate-Based Neural Representations
    (arXiv:2012.02189) and its code, tancik/learnit; kakaobrain/ginr-ipc for normalised weights.

    An instance is a row of packed weights ``(B, P)``, for ``ginr_fast.field_mlp`` and
    ``ginr_fast.volume_render``. Images have values in [0, 1]; mid-grey (0.5) is added to the
    field's. Parameters are ``field.<layer>.weight``, ``(out, in)``, and ``field.<layer>.bias``.

    Args:
        config: the field and its inner loop.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.learned_init import LearnedInit, LearnedInitConfig
        >>> model = LearnedInit(LearnedInitConfig(hidden_layers=1, hidden_dim=16, frequencies=4))
        >>> images = torch.rand(5, 3, 12, 12)
        >>> weights = model.adapt(model.image_samples(images))
        >>> weights.shape[1] == model.config.spec.parameter_count
        True
        >>> model.decode(ginr_fast.grid(4, 6), weights).shape
        torch.Size([5, 4, 6, 3])
    """

    def __init__(self, config: LearnedInitConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LearnedInitConfig()
        self.field = nn.ModuleList(
            nn.Linear(columns, rows) for rows, columns in config.spec.layer_shapes
        )
        # Published code adds mid-grey to what fields of images give.
        bias = 0.5 if config.modality == "image" else 0.0
        self.decoder = FieldDecoder(config.spec, output_bias=bias)
        self.step_sizes: nn.Parameter | None = None
        if config.step_sizes != "fixed":
            by_layer = config.step_sizes == "layer"
            count = len(config.spec.slots) if by_layer else config.spec.parameter_count
            self.step_sizes = nn.Parameter(torch.ones(count))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Published code's: a SIREN's weights, or N(0, 1/fan-in); biases are 0."""
        config = self.config
        for index, layer in enumerate(self.field):
            assert isinstance(layer, nn.Linear)
            fan_in = layer.in_features
            if config.activation == "sine":
                bound = math.sqrt(6 / fan_in) / config.w0 if index else 1 / fan_in
                layer.weight.uniform_(-bound, bound)
            else:
                layer.weight.normal_(0, fan_in**-0.5)
            layer.bias.zero_()

    def initial(self, batch: int) -> torch.Tensor:
        """The initialisation as packed weights of B = ``batch`` instances, ``(B, P)``."""
        return self._packed(self._start(1)).expand(batch, -1)

    def adapt(
        self,
        samples: Samples | Callable[[int], Samples],
        steps: int | None = None,
        seed: Seed | None = None,
        differentiable: bool = False,
    ) -> torch.Tensor:
        """Packed weights after the inner loop.

        Args:
            samples: what B instances are known by; or what gives it for each step from 0.
            steps: how many; the config's if None. More of them are test-time optimisation.
            seed: of the jitter along rays, another one each step; None for none.
            differentiable: the result has a gradient in the model's parameters, of the config's
                order (none with Reptile).

        Returns:
            ``(B, P)``.

        Raises:
            TypeError, ValueError: samples that are not as they should be, or less than 0 steps.
        """
        order = self.config.order if differentiable else "reptile"
        draw: Callable[[int], Samples] = samples if callable(samples) else lambda step: samples
        with torch.set_grad_enabled(differentiable):
            return self._packed(self._adapted(draw, steps, seed, order)[0])

    def decode(self, coords: torch.Tensor | CoordinateGrid, weights: torch.Tensor) -> torch.Tensor:
        """Values at coordinates.

        Args:
            coords: ``(B, ..., d)``, ``(..., d)`` shared by the batch, or a grid.
            weights: packed, ``(B, P)``.

        Returns:
            ``(B, ..., out)``, not clamped.
        """
        scale = self.config.scale
        if isinstance(coords, CoordinateGrid):
            coords = CoordinateGrid(tuple(axis * scale for axis in coords.axes))
        elif scale != 1:
            coords = coords * scale
        return self.decoder(coords, weights)

    def render(
        self,
        origins: torch.Tensor,
        directions: torch.Tensor,
        weights: torch.Tensor,
        samples: int | None = None,
        seed: Seed | None = None,
    ) -> RenderedRays:
        """Colours along rays through scenes, by the convention "trans_inr", that of learnit.

        Args:
            origins: ``(B, ..., 3)``.
            directions: ``(B, ..., 3)``, not normalised.
            weights: packed, ``(B, P)``.
            samples: field evaluations along a ray; the config's if None.
            seed: of the samples' jitter; None leaves them where they are.

        Returns:
            color ``(B, ..., 3)``, opacity and depth ``(B, ...)``.

        Raises:
            ValueError: not a model of scenes.
        """
        config = self.config
        if config.modality != "scene":
            raise ValueError("render: expected a model of scenes, this is of images")
        return self.decoder.render(
            origins * config.scale,
            directions,
            weights,
            near=config.near,
            far=config.far,
            samples=samples or config.samples,
            convention="trans_inr",
            seed=seed,
        )

    def image_samples(self, images: torch.Tensor) -> PointSamples:
        """All pixels of images as samples.

        Args:
            images: ``(B, 3, H, W)``, values in [0, 1].

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape.
        """
        check_tensor("images", images, ("B", self.config.spec.out_dim, "H", "W"))
        if not images.is_floating_point():
            raise TypeError(f"images: expected floating point in [0, 1], got {images.dtype}")
        height, width = images.shape[2:]
        return PointSamples(grid(height, width, device=images.device), images.permute(0, 2, 3, 1))

    @torch.no_grad()
    def reconstruct(
        self, images: torch.Tensor, scale: float = 1.0, steps: int | None = None
    ) -> torch.Tensor:
        """Fit fields to images and decode them at ``scale`` times their resolution.

        Args:
            images: ``(B, 3, H, W)``, values in [0, 1].
            scale: output pixels per input pixel along each axis; any positive number.
            steps: inner steps; the config's if None.

        Returns:
            ``(B, 3, round(H · scale), round(W · scale))``, clamped to [0, 1].

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape, a model of scenes, or a
                scale that leaves no pixel.
        """
        if self.config.modality != "image":
            raise ValueError("reconstruct: expected a model of images, this is of scenes")
        samples = self.image_samples(images)
        height, width = (output_size(size, scale) for size in images.shape[2:])
        weights = self.adapt(samples, steps)
        values = self.decode(grid(height, width, device=images.device), weights)
        return values.permute(0, 3, 1, 2).clamp(0, 1)

    def forward(
        self, support: Sequence[Samples], query: Samples | None = None, seed: Seed | None = None
    ) -> MetaLoss:
        """One outer step's objective, from the inner loop on the ``support``.

        Args:
            support: what the instances are known by in each inner step, over and over.
            query: what adapted fields are scored with; the support's first if None. Reptile has no
                use for it.
            seed: of the jitter along rays; None for none.

        Returns:
            For each instance ``L_i(θ_i)``; with Reptile ``½‖θ₀ − θ_i‖²``, whose gradient in θ₀ is
            the published ``θ₀ − θ_i``.
        """
        config = self.config

        def draw(step: int) -> Samples:
            return support[step % len(support)]

        adapted, errors = self._adapted(draw, None, seed, config.order)
        if config.order == "reptile":
            objective = 0.5 * (self._start(len(adapted)) - adapted).square().sum(1)
            return MetaLoss(objective, errors)
        jitter = later(seed, config.inner_steps)
        errors = instance_errors(self, self._packed(adapted), query or draw(0), jitter)
        return MetaLoss(errors, errors.detach())

    def _start(self, batch: int) -> torch.Tensor:
        """θ₀ as rows that the inner loop takes its steps on, before any normalisation."""
        parameters = [parameter.flatten() for parameter in self.field.parameters()]
        return torch.cat(parameters).expand(batch, -1)

    def _packed(self, rows: torch.Tensor) -> torch.Tensor:
        """Packed weights of rows that the inner loop takes its steps on."""
        if not self.config.normalize_weights:
            return rows
        parts = []
        for weight, bias in self.config.spec.unpack(rows):
            assert bias is not None  # the spec's default
            parts += [F.normalize(weight, dim=-1).flatten(1), bias]
        return torch.cat(parts, dim=1)

    def _rates(self, rows: torch.Tensor) -> torch.Tensor | float:
        """What gradients are multiplied by: ε, ``(P,)`` or ``(B, P)``."""
        config, slots = self.config, self.config.spec.slots
        rate: torch.Tensor | float = config.inner_learning_rate
        if config.normalize_weights:
            norms = [
                part.square().sum(1, keepdim=True).expand_as(part)
                if slot.kind == "weight"
                else torch.zeros_like(part)
                for slot, part in zip(slots, rows.split([s.size for s in slots], 1), strict=True)
            ]
            rate = rate * torch.cat(norms, 1)
        if self.step_sizes is None:
            return rate
        if config.step_sizes == "parameter":
            return rate * self.step_sizes
        sizes = [self.step_sizes[index].expand(slot.size) for index, slot in enumerate(slots)]
        return rate * torch.cat(sizes)

    def _adapted(
        self, draw: Callable[[int], Samples], steps: int | None, seed: Seed | None, order: Order
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows after the inner loop, and the errors before its last step."""

        def errors(rows: torch.Tensor, step: int) -> torch.Tensor:
            return instance_errors(self, self._packed(rows), draw(step), later(seed, step))

        start = self._start(len(targets(draw(0))))
        steps = self.config.inner_steps if steps is None else steps
        return inner_loop(errors, self._rates, start, steps, order)
