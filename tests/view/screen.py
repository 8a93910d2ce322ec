"""A terminal small enough to read: what a person would see after a program wrote to it."""

import re

_TOKEN = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """Lines of text after carriage returns, line feeds, cursor up and erase line; colours are dropped.

    Raises:
        ValueError: for a control sequence that it does not know.
    """

    def __init__(self, text: str):
        self.lines, self.row, self.column, self.cursor_shown = [""], 0, 0, True
        end = 0
        for match in _TOKEN.finditer(text):
            if match.start() != end:
                raise ValueError(f"unknown control in {text[end : match.start()]!r}")
            end = match.end()
            self._apply(*match.groups())

    def _apply(self, numbers: str | None, letter: str | None, control: str | None, text: str | None) -> None:
        if text is not None:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
            self.column += len(text)
        elif control == "\r":
            self.column = 0
        elif control == "\n":
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif letter == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif letter == "K" and numbers == "2":
            self.lines[self.row] = ""
        elif numbers == "?25":
            self.cursor_shown = letter == "h"
        elif letter != "m":
            raise ValueError(f"unknown control ESC [ {numbers} {letter}")

    @property
    def shown(self) -> list[str]:
        """Lines that are not empty, without blanks at their ends."""
        return [line.rstrip() for line in self.lines if line.strip()]
