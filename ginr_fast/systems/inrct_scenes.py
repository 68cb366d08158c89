"""INRCT of radiance fields: one network that takes a picture to 3D, or noise to a new scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ginr_fast.decoders.token_field import GroupedFieldDecoder
from ginr_fast.encoders import PatchTokenizer
from ginr_fast.generation.averaging import AveragedModel
from ginr_fast.generation.consistency import ConsistencySchedule, per_instance
from ginr_fast.generation.sampling import Between, SamplingOptions, noise
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.group_weights.op import Layout
from ginr_fast.ops.volume_render.random import Seed
from ginr_fast.rays import look_at, random_poses
from ginr_fast.systems.hyper_network import HyperConfig
from ginr_fast.systems.inrct import TrainingOutputs
from ginr_fast.systems.radiance_views import RadianceConfig, RadianceViews

_CAMERA_STREAM = 12
_SRN_FOCAL = 131.25 / 128


@dataclass(frozen=True)
class InrctScenesConfig(RadianceConfig):
    """The sizes of an INRCT of radiance fields; the defaults are the published ones for SRN Cars.

    Args:
        encoder_depth: signal encoder blocks of the hyper-network.
        decoder_depth: its INR decoder blocks.
        token_self_attention: see :class:`ginr_fast.systems.hyper_network.HyperConfig`.
        groups: columns' groups of a layer of the field, or one number a layer; INRCT does not print
            them, 32 are TransINR's.
        layout: which columns form a group, see :class:`ginr_fast.GroupedFieldDecoder`.
        focal: focal length of the views, in heights of a view; sampling in several steps needs it.
        schedule: of the noise levels.
    """

    encoder_depth: int = 8
    decoder_depth: int = 6
    token_self_attention: bool = True
    camera_distance: float = 1.3
    near: float = 0.8
    far: float = 1.8
    focal: float = _SRN_FOCAL
    groups: int | tuple[int, ...] = 32
    layout: Layout = "blocks"
    schedule: ConsistencySchedule = field(default_factory=ConsistencySchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.focal > 0:
            raise ValueError(f"focal: expected above 0, got {self.focal}")

    @property
    def hyper(self) -> HyperConfig:
        """The sizes of the hyper-network."""
        return HyperConfig(
            dim=self.encoder_dim,
            encoder_depth=self.encoder_depth,
            decoder_depth=self.decoder_depth,
            hyper_heads=self.encoder_heads,
            hyper_head_dim=self.encoder_head_dim,
            mlp_dim=self.encoder_mlp_dim,
            token_self_attention=self.token_self_attention,
        )


class EarlierViews(NamedTuple):
    """What the teacher is given of the instances whose earlier level r is above 0.

    Args:
        noisy: s_r, ``(M, 3, image_size, image_size)``, in data space.
        t: r, ``(M,)``.
        origins: of the query views' rays, ``(M, N, 3)``.
        directions: the same shape.
        values: q_r along them, ``(M, N, 3)``, in data space.
        seed: of the samples' jitter along these rays; None for none.
    """

    noisy: torch.Tensor
    t: torch.Tensor
    origins: torch.Tensor
    directions: torch.Tensor
    values: torch.Tensor
    seed: Seed | None = None


class InrctScenes(RadianceViews, AveragedModel):
    """Encoding and generating radiance fields by consistency training, from single pictures.

    A hyper-network G turns a picture with noise of level t into tokens, from which come the packed
    weights β of a radiance field M_β: β = G(x, 0) takes one view to 3D, β = G(T·z, T) makes a new
    scene. G is told no pose: there is none for noise. So all fields lie in the frame that the poses
    of the training data share, in which SRN's cars all face the same way, and G finds out from
    where a picture was taken.

    In data space, values in [-1, 1], a scene is seen twice: in its support view, which G is given
    with noise, and along rays of a query view with values q, rendered as T_q(M_β). The consistency
    function (INRCT, Equation 12) is

        f = c_skip(t)·q_t + (1 − c_skip(t))·T_q(M_β),   β = G(c_in(t)·s_t, t),

    with s_t = s + t·z and q_t = q + t·z′. Two things differ from the paper's letter:

    * The factor of T_q(M_β), which there is c_out(t). With it, f at T would be σ_data times the
      rendered view, and in between the field would have to show (x − c_skip·x_t) / c_out, a white
      background in a level's own grey. With 1 − c_skip the field is the clean scene at every level,
      and f(x, 0) = x as before.
    * z′ is drawn apart from z. Support and query are different pictures of a scene: noise of the
      same pixel has nothing to do with the same place.

    Several steps of sampling render the field from a camera drawn at random, add noise of the next
    level and ask G again: each is one evaluation of the network, and the last field is the sample.

    As every system of views it has ``encode``, ``color``, ``march`` and ``render_view``, see
    :class:`ginr_fast.systems.radiance_views.RadianceViews`.

    Args:
        config: the sizes.

    Example:
        >>> import torch
        >>> from ginr_fast.rays import orbit_poses
        >>> from ginr_fast.systems.inrct_scenes import InrctScenes, InrctScenesConfig
        >>> model = InrctScenes(InrctScenesConfig(image_size=16, patch_size=4, encoder_dim=32,
        ...     encoder_depth=1, decoder_depth=1, encoder_heads=2, encoder_head_dim=16,
        ...     encoder_mlp_dim=64, hidden_dim=32, hidden_layers=1, frequencies=4, samples=8,
        ...     groups=4))
        >>> model.encode(torch.rand(2, 1, 3, 16, 16)).shape
        torch.Size([2, 12, 32])
        >>> model.render_view(model.draw([0, 1]), orbit_poses(3, 1.3), 20, 20, focal=20.5).shape
        torch.Size([2, 3, 3, 20, 20])
    """

    config: InrctScenesConfig
    decoder: GroupedFieldDecoder

    def __init__(self, config: InrctScenesConfig | None = None) -> None:
        config = config or InrctScenesConfig()
        width = config.token_dim or config.encoder_dim
        super().__init__(
            config, GroupedFieldDecoder(config.spec, width, config.groups, config.layout)
        )

    def make_encoder(self, latents: int, token_dim: int | None) -> None:
        config = self.config
        self.patch_tokenizer = PatchTokenizer(
            config.image_size, config.patch_size, dim=config.encoder_dim
        )
        self.hyper_network = config.hyper.hyper_network(latents, token_dim, config.schedule.t_min)
        self.hyper_network.initialise_places(
            self.patch_tokenizer.position, self.patch_tokenizer.side
        )

    def hyper(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """G: tokens of noisy views.

        Args:
            noisy: s_t, ``(B, 3, image_size, image_size)``, in data space.
            t: levels, ``(B,)``.

        Returns:
            ``(B, R, token_dim)``.
        """
        scale = per_instance(self.config.schedule.c_in(t), noisy)
        return self.hyper_network(self.patch_tokenizer(scale * noisy), t)

    def encode(
        self,
        images: torch.Tensor,
        origins: torch.Tensor | None = None,
        directions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """G(x, 0): tokens of scenes from one view of each.

        Args:
            images: ``(B, 1, 3, image_size, image_size)``, values in [0, 1].
            origins: of the view's rays; not looked at, so that the pose need not be known.
            directions: likewise.

        Returns:
            ``(B, R, token_dim)``.

        Raises:
            TypeError: no floating-point tensor. ValueError: another shape, or several views.
        """
        size = self.config.image_size
        check_tensor("images", images, ("B", 1, 3, size, size))
        if not images.is_floating_point():
            raise TypeError(f"images: expected floating point in [0, 1], got {images.dtype}")
        return self.hyper(images[:, 0] * 2 - 1, images.new_zeros(len(images)))

    def forward(  # type: ignore[override]  # training compares more than one view synthesis does
        self,
        noisy: torch.Tensor,
        t: torch.Tensor,
        origins: torch.Tensor,
        directions: torch.Tensor,
        values: torch.Tensor,
        earlier: EarlierViews | None = None,
        seed: Seed | None = None,
    ) -> TrainingOutputs:
        """What a training step compares, of the twin in training and of this model, its teacher.

        Args:
            noisy: s_t, ``(B, 3, image_size, image_size)``, in data space.
            t: levels, ``(B,)``.
            origins: of the query view's rays, ``(B, N, 3)``.
            directions: the same shape.
            values: q_t along them, ``(B, N, 3)``, in data space.
            earlier: for the teacher; of any instances, None for none.
            seed: of the samples' jitter along rays; None for none.
        """
        student = self.twin()
        signal = student.color(origins, directions, student.hyper(noisy, t), seed) * 2 - 1
        denoised = self._consistent(values, t, signal)
        if earlier is None:
            return TrainingOutputs(denoised, signal, None)
        with torch.no_grad():
            tokens = self.hyper(earlier.noisy, earlier.t)
            shown = self.color(earlier.origins, earlier.directions, tokens, earlier.seed) * 2 - 1
            followed = self._consistent(earlier.values, earlier.t, shown)
        return TrainingOutputs(denoised, signal, followed)

    def _consistent(
        self, noisy: torch.Tensor, t: torch.Tensor, shown: torch.Tensor
    ) -> torch.Tensor:
        skip = per_instance(self.config.schedule.c_skip(t), shown)
        return skip * noisy + (1 - skip) * shown

    @torch.no_grad()
    def draw(self, indices: Sequence[int], options: SamplingOptions | None = None) -> torch.Tensor:
        """Tokens of new scenes, for ``color`` and ``render_view``.

        Args:
            indices: the numbers of the samples, B of them.
            options: steps (1 if None) and seed.

        Returns:
            ``(B, R, token_dim)``.

        Raises:
            ValueError: a label or guidance: the model has no classes.
        """
        options = options or SamplingOptions()
        size, device = self.config.image_size, self.patch_tokenizer.position.device
        tokens, shown = None, torch.zeros((), device=device)
        levels = self.config.schedule.levels(self.evaluations(options))
        for step, level in enumerate(levels):
            if tokens is not None:
                shown = self._seen(tokens, indices, options.seed, step) * 2 - 1
            fresh = noise((3, size, size), indices, options.seed, step, device)
            tokens = self.hyper(shown + level * fresh, fresh.new_full((len(indices),), level))
        assert tokens is not None  # there is a level
        return tokens

    def _seen(
        self, tokens: torch.Tensor, indices: Sequence[int], seed: int, step: int
    ) -> torch.Tensor:
        """Samples from a camera of their own, ``(B, 3, image_size, image_size)`` in [0, 1]."""
        config, size = self.config, self.config.image_size
        views = []
        for row, index in enumerate(indices):
            own, pose = tokens[row : row + 1], self._camera(index, seed, step)
            views.append(self.render_view(own, pose, size, size, config.focal * size))
        return torch.cat(views) if views else tokens.new_empty(0, 3, size, size)

    def _camera(self, index: int, seed: int, step: int) -> torch.Tensor:
        """A pose ``(4, 4)``; between samples it moves over the sphere as their noise does."""
        if isinstance(index, Between):
            corners = [self._camera(corner, seed, step)[:3, 3].numpy() for corner in index.corners]
            return look_at(torch.from_numpy(index.blended(corners)))
        distance = self.config.camera_distance
        return random_poses(1, distance, (seed, index, step, _CAMERA_STREAM))[0]

    def evaluations(self, options: SamplingOptions | None = None) -> int:
        """Evaluations of the network that one sample of :meth:`draw` takes: its steps.

        Args:
            options: how samples are drawn.

        Raises:
            ValueError: as :meth:`draw`.
        """
        options = options or SamplingOptions()
        options.check_no_classes()
        return options.steps or 1
