"""Writes docs/operations.md, the table of supported operations, from the rules themselves."""

from pathlib import Path

import tplimit

PAGE = Path(__file__).with_name("operations.md")
HEAD = """# Supported operations

Generated from the rules (`python docs/operations.py`). A primitive of JAX has a rule, is refused
with a reason, or is unknown; without a rule, an operation on finite arrays that do not scale with
the width is simply evaluated. Calls (`jit`, `checkpoint`, `custom_jvp_call`, `custom_vjp_call`) are
expanded in place. `tplimit.RULES` is the table: `@tplimit.RULES(primitive)` enters a rule of your
own.

"""


def page() -> str:
    """The page as it should be."""
    return HEAD + tplimit.RULES.describe() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
