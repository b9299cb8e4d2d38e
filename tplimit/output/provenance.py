"""Where a number comes from: versions, date, kind of machine; written into every file."""

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax

__all__ = ["provenance"]


def provenance() -> dict[str, Any]:
    """Versions, date (UTC), and kind of device of what is computed now."""
    versions = {name: metadata.version(name) for name in ("tplimit", "jax", "jaxlib", "numpy")}
    return {
        "versions": versions | {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": jax.default_backend(),
    }
