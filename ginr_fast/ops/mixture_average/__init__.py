"""Weighted averages of basis networks, the weights of mNIF."""

from ginr_fast.ops.mixture_average.op import mixture_average

__all__ = ["mixture_average"]
