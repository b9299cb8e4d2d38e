"""Tables that are text for whoever prints them, and have borders and colours on a rich console."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

__all__ = ["TextTable"]


class TextTable(str):
    """A table and the sentences below it as plain text; a rich console draws them with colours."""

    parts: "tuple[Table, str]"

    def __new__(cls, table: "Table", below: str) -> "TextTable":
        from rich.console import Console  # slow to import

        buffer = io.StringIO()
        Console(file=buffer, width=100, color_system=None).print(table)
        text = super().__new__(cls, buffer.getvalue() + below)
        text.parts = (table, below)
        return text

    def __rich__(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        return Group(self.parts[0], Text(self.parts[1]))
