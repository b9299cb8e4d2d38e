"""Reading plain JAX: tracing at several widths, powers of the width, what primitives are."""
