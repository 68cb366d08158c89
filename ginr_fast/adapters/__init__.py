"""Other people's models on ginr_fast: ``accelerate`` and what it is made of."""

from ginr_fast.adapters.frame import Accelerated, Adapter, Match, accelerate, restore
from ginr_fast.adapters.la_ginr import LocalityLayout, locality_adapter
from ginr_fast.adapters.probes import Probe, drawn
from ginr_fast.adapters.report import Difference, Left, Replaced, Report

__all__ = [
    "Accelerated",
    "Adapter",
    "Difference",
    "Left",
    "LocalityLayout",
    "Match",
    "Probe",
    "Replaced",
    "Report",
    "accelerate",
    "drawn",
    "locality_adapter",
    "restore",
]
