"""``train`` and ``compare``: one loop, records, checkpoints."""
