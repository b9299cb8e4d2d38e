"""``limit``, ``leading``, ``series``; sampling, opaque values, compilation, devices."""
