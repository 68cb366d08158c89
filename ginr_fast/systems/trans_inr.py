"""TransINR: a Transformer that gives every weight of an image's field."""

from __future__ import annotations

from dataclasses import dataclass

from ginr_fast.decoders.token_field import GroupedFieldDecoder
from ginr_fast.ops.group_weights.op import Layout
from ginr_fast.systems.image_inr import ImageFieldConfig, ImageInr


@dataclass(frozen=True)
class TransInrConfig(ImageFieldConfig):
    """The sizes of a TransINR of images; the defaults are the published ones at 178×178.

    Args:
        groups: columns' groups of a layer, or one number a layer.
        layout: which columns form a group, see :class:`ginr_fast.GroupedFieldDecoder`.
    """

    groups: int | tuple[int, ...] = 64
    layout: Layout = "blocks"


class TransInr(ImageInr):
    """Transformers as meta-learners for INRs of images (ECCV 2022, arXiv 2208.02801, Figure 3).

    Args:
        config: the sizes.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.trans_inr import TransInr, TransInrConfig
        >>> model = TransInr(TransInrConfig(image_size=16, patch_size=4, encoder_dim=32,
        ...     encoder_depth=1, encoder_heads=2, encoder_head_dim=16, encoder_mlp_dim=64,
        ...     hidden_dim=32, hidden_layers=1, frequencies=8, bandwidth=16.0, groups=4))
        >>> tokens = model.encode(torch.rand(2, 3, 16, 16))
        >>> tokens.shape
        torch.Size([2, 11, 32])
        >>> model.decode(ginr_fast.grid(5, 7), tokens).shape
        torch.Size([2, 5, 7, 3])
    """

    config: TransInrConfig
    decoder: GroupedFieldDecoder

    def __init__(self, config: TransInrConfig | None = None) -> None:
        config = config or TransInrConfig()
        width = config.token_dim or config.encoder_dim
        decoder = GroupedFieldDecoder(config.spec, width, config.groups, config.layout)
        super().__init__(config, decoder, decoder.tokens, config.token_dim)
