"""What is measured: a stage, the work it has to do, and who else does the same."""

import dataclasses
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]
"""Does all of its work before it returns."""
OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage cannot do without, counted by formula; see ``experiments.bench.work``."""

    operations: float
    """Additions, multiplications, and what else takes about as long."""
    moved: float
    """Bytes of inputs and outputs, each once."""
    dtype: str = "float32"
    """What it computes in: which ceiling applies."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far a peer's result is from ours, and how far it may be."""

    what: str
    """What the error is."""
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the peer computes the same; an error that is no number is too large."""
        return self.error <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Peer:
    """Somebody else who does what a stage does, or why there is nobody."""

    name: str
    call: Call | None = None
    why_not: str = ""
    """Why it cannot be measured here, if so."""
    agreement: Agreement | None = None
    same_method: bool = True
    """It computes the same numbers; otherwise it has another way to the same end, and ``agreement``
    says how often it comes to the same."""

    @property
    def status(self) -> str:
        """``measured``, ``not here`` or ``disagrees``."""
        if self.why_not:
            return "not here"
        return "measured" if self.agreement is None or self.agreement.holds else "disagrees"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One thing the system does, ready to be called again and again."""

    name: str
    """As in ``STAGES``."""
    on: str
    """What it is done to, such as a size of images."""
    call: Call
    compile_s: float
    work: Work
    peers: tuple[Peer, ...] = ()
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Facts of the input that the time depends on."""
    gate_ceiling: bool = False
    """Whether the share of the ceiling belongs into the baseline."""

    @property
    def label(self) -> str:
        """Name and what it is done to."""
        return f"{self.name} {self.on}"

    def without_calls(self) -> "Stage":
        """The same without anything to call, and so without the arrays that calls hold."""
        peers = tuple(dataclasses.replace(peer, call=None) for peer in self.peers)
        return dataclasses.replace(self, call=_measured_already, peers=peers)


def _measured_already() -> None:
    raise RuntimeError("this stage was measured, its inputs are gone")


def absent(name: str, why: str) -> Peer:
    """A peer that is not here."""
    return Peer(name, why_not=why)
