"""The card of a pretrained network: where it comes from, how good it is, and its checksums.

``card.json`` is for machines, ``README.md`` beside it is made from it. A folder with a card holds
exactly the files that the card names, bit for bit: what was measured is what is loaded.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

CARD, README = "card.json", "README.md"

Figures = Mapping[str, Mapping[str, float | None]]
"""By what was looked at, by figure; None where a figure is not defined."""


class CardError(ValueError):
    """A card that cannot be read, or files that are not those of the card; one sentence."""


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is to be known of a pretrained network."""

    name: str
    """Of the preset."""
    date: str
    """Day it was packaged, YYYY-MM-DD."""
    licence: str
    """Terms of the weights."""
    data: str
    """What it has seen."""
    image_size: tuple[int, int]
    """Width and height in pixels of the images it has seen."""
    parameters: int
    """Of the network."""
    steps: int
    """Updates of its weights."""
    pairs: int
    """Pairs of images seen in all of them."""
    pairs_per_second: float | None
    """While training, at full speed; None if it was not measured."""
    device: str
    """What it was trained on."""
    optimizer: str
    """How it was trained."""
    versions: Mapping[str, str | None]
    """Of the software, by package."""
    errors: Figures
    """How wrong it is, by what it was tried on."""
    notes: tuple[str, ...] = ()
    """What the figures mean, and what else to know."""
    curves: str | None = None
    """File with a picture of the metrics while training."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 of every file beside the card, as 64 hexadecimal digits, but for ``README.md``."""

    def to_json(self) -> str:
        """The card as a JSON object; a figure that is not a finite number becomes null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Reads what ``to_json`` wrote.

        Raises:
            CardError: the text is no JSON object, or its fields are not those of a card.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise CardError(f"is not a JSON object: {error}") from None
        wanted = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or fields.keys() != wanted:
            found = set(fields) if isinstance(fields, dict) else set()
            listed = ", ".join(sorted(wanted ^ found))
            raise CardError(f"is no card, its fields are missing or unknown: {listed}")
        if not isinstance(fields["files"], dict) or not _is_size(fields["image_size"]):
            raise CardError("is no card: files must be an object, image_size two numbers")
        fields |= {name: tuple(fields[name]) for name in ("image_size", "notes")}
        return cls(**fields)

    def to_markdown(self) -> str:
        """The card for people."""
        width, height = self.image_size
        rate = "" if self.pairs_per_second is None else f", {self.pairs_per_second:,.0f} a second"
        facts = {
            "parameters": f"{self.parameters:,}",
            "data": self.data,
            "images": f"{width}x{height}",
            "steps": f"{self.steps:,}",
            "pairs": f"{self.pairs:,}{rate}",
            "device": self.device,
            "optimiser": self.optimizer,
            "versions": ", ".join(f"{k} {v}" for k, v in self.versions.items() if v is not None),
            "packaged": self.date,
            "licence": self.licence,
        }
        lines = [f"# {self.name}", "", "Made from `card.json` beside this file.", ""]
        lines += _table(("what", "value"), facts.items())
        if self.errors:
            names = list(dict.fromkeys(name for row in self.errors.values() for name in row))
            rows = [(n, *(_shown(row.get(n)) for row in self.errors.values())) for n in names]
            lines += ["", "## How good it is", "", *_table(("", *self.errors), rows)]
        lines += [line for note in self.notes for line in ("", note)]
        if self.curves:
            lines += ["", "## How it was trained", "", f"![metrics]({self.curves})"]
        lines += ["", "## Files", "", *_table(("file", "SHA-256"), self.files.items())]
        return "\n".join(lines) + "\n"


def has_card(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has a card."""
    return (pathlib.Path(folder) / CARD).is_file()


def read_card(folder: str | os.PathLike[str]) -> ModelCard:
    """The card of a folder.

    Raises:
        CardError: it has none, or one that cannot be understood.
    """
    path = pathlib.Path(folder) / CARD
    if not path.is_file():
        raise CardError(f"{folder}: has no {CARD}; {_AGAIN}")
    try:
        return ModelCard.from_json(path.read_text(encoding="utf-8"))
    except (CardError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: {error}; {_AGAIN}") from None


def check_files(folder: str | os.PathLike[str]) -> ModelCard:
    """The card of a folder, after comparing every file with it.

    Raises:
        CardError: there is no card, or a file is missing, another one, or not on the card.
    """
    folder = pathlib.Path(folder)
    card = read_card(folder)
    found = {path.name for path in folder.iterdir()} - {CARD, README}
    for name, digest in card.files.items():
        if name not in found:
            raise CardError(f"{folder / name}: is missing, but {CARD} names it; {_AGAIN}")
        if sha256_of(folder / name) != digest:
            raise CardError(
                f"{folder / name}: is not the file of its card, the checksum differs; {_AGAIN}"
            )
    if unknown := sorted(found - card.files.keys()):
        raise CardError(f"{folder / unknown[0]}: is not on the card beside it; remove it")
    return card


def sha256_of(path: pathlib.Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_AGAIN = "install the package again, or take the folder from where it was made"


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _table(header: tuple[str, ...], rows: Any) -> list[str]:
    cells = [header, tuple("---" for _ in header), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]
