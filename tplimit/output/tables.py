"""Tables that are text for whoever prints them, and have borders and colours on a rich console."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

__all__ = ["TextTable"]


class TextTable(str):
    """Tables and sentences as plain text; a rich console draws the tables with colours."""

    parts: "tuple[Table | str, ...]"

    def __new__(cls, *parts: "Table | str") -> "TextTable":
        from rich.console import Console  # slow to import

        buffer = io.StringIO()
        console = Console(file=buffer, width=100, color_system=None)
        for part in parts:
            if isinstance(part, str):
                buffer.write(f"{part}\n")
            else:
                console.print(part)
        text = super().__new__(cls, buffer.getvalue().removesuffix("\n"))
        text.parts = parts
        return text

    def __rich__(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        return Group(*(Text(part) if isinstance(part, str) else part for part in self.parts))
