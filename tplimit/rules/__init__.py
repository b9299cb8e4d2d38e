"""The rules, one file per family. Importing this package enters them all in the table."""

from tplimit.rules import (
    contraction,
    control_flow,
    elementwise,
    indexing,
    layout,
    lifted,
    probing,
    reductions,
    refused,
    selection,
)

__all__ = [
    "contraction",
    "control_flow",
    "elementwise",
    "indexing",
    "layout",
    "lifted",
    "probing",
    "reductions",
    "refused",
    "selection",
]
