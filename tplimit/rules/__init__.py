"""The rules, one file per family. Importing this package enters them all in the table."""

from tplimit.rules import (
    arithmetic,
    comparisons,
    contraction,
    control_flow,
    declared,
    discrete,
    entrywise,
    functions,
    indexing,
    inner,
    layout,
    orders,
    probing,
    reductions,
    selection,
    terms,
)

__all__ = [
    "arithmetic",
    "comparisons",
    "contraction",
    "control_flow",
    "declared",
    "discrete",
    "entrywise",
    "functions",
    "indexing",
    "inner",
    "layout",
    "orders",
    "probing",
    "reductions",
    "selection",
    "terms",
]
