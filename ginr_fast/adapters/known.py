"""The published code that :func:`ginr_fast.accelerate` knows, in the order in which it is asked."""

from __future__ import annotations

from ginr_fast.adapters import anr, ginr_ipc, la_ginr, mnif, trans_inr
from ginr_fast.adapters.frame import Adapter

ADAPTERS: tuple[Adapter, ...] = (
    *trans_inr.ADAPTERS,
    *ginr_ipc.ADAPTERS,
    mnif.ADAPTER,
    anr.ADAPTER,
    *la_ginr.ADAPTERS,
)
