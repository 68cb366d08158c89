"""Weights grouped by row, the weights of TransINR."""

from ginr_fast.ops.group_weights.op import group_weights

__all__ = ["group_weights"]
