"""Batches of small MLPs with packed weights, evaluated at coordinates."""

from ginr_fast.ops.field_mlp.op import field_mlp

__all__ = ["field_mlp"]
