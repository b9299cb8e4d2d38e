"""Where a number comes from: versions, date, machine, precision; written into every file."""

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["provenance"]


def provenance() -> dict[str, Any]:
    """Versions, date (UTC), kind of device and precision of what is computed now."""
    versions = {name: metadata.version(name) for name in ("tplimit", "jax", "jaxlib", "numpy")}
    return {
        "versions": versions | {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": jax.default_backend(),
        "dtype": jnp.result_type(float).name,
    }
