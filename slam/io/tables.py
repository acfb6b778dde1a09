"""Small text tables as the TUM RGB-D tools write them: one record a line, ``#`` for comments."""

import dataclasses
import math
import pathlib

from slam.io.frames import SourceError


@dataclasses.dataclass(frozen=True)
class Row:
    """The fields of one line and its number, from 1, for messages."""

    line: int
    fields: tuple[str, ...]

    def numbers(self, path: pathlib.Path, count: int, expected: str) -> list[float]:
        """All fields as finite numbers; raises ``SourceError`` unless there are ``count``."""
        try:
            values = [float(field) for field in self.fields]
        except ValueError:
            values = []
        if len(values) != count or not all(map(math.isfinite, values)):
            raise SourceError(
                f"{path}:{self.line}: expected {count} numbers '{expected}', "
                f"found '{' '.join(self.fields)}'"
            )
        return values


def read_table(path: pathlib.Path) -> list[Row]:
    """The lines of a text file that hold something, split at blanks and commas.

    Raises ``SourceError`` if the file cannot be read as text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a text file") from error
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.partition("#")[0].replace(",", " ").split()
        if fields:
            rows.append(Row(number, tuple(fields)))
    return rows
