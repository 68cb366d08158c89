"""Weights of which one layer is a low-rank product, the weights of IPC."""

from ginr_fast.ops.low_rank_weights.op import low_rank_weights

__all__ = ["low_rank_weights"]
