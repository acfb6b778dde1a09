"""What a benchmark is asked to do."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeVar

from mast3r_jax import MASt3RConfig
from slam.io.frames import SourceError

STAGES = {
    "encoder": "the network's encoder, one image",
    "decoder": "its decoders and heads, one pair",
    "encoder-block": "one block of the encoder",
    "decoder-block": "one block of a decoder",
    "projection": "iterative projection",
    "refinement": "descriptor refinement",
    "match": "matching as a whole",
    "pose-rays": "pose of a frame, uncalibrated",
    "pose-pixels": "pose of a frame, calibrated",
    "fusion": "fusion of two pointmaps",
    "edges-rays": "normal equations of edges, uncalibrated",
    "edges-pixels": "normal equations of edges, calibrated",
    "solver": "linear solver of the pose graph",
    "optimize": "optimisation of all poses, 10 iterations",
    "system": "the whole system on a walk",
}
"""Names of the stages, and what they are."""
T = TypeVar("T")
Network = Literal["small", "vit_large"]
Size = tuple[int, int]
"""Width and height in pixels."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes, repetitions and stages of one run.

    Raises:
        SourceError: something is asked for that cannot be.
    """

    network: Network = "small"
    sizes: tuple[Size, ...] = ((224, 160), (512, 384))
    """Of images, for all that follows the network."""
    network_sizes: tuple[Size, ...] = ((224, 160),)
    system_size: Size = (256, 192)
    frames: int = 60
    """Length of the walk."""
    spread: bool = False
    """Work on keyframes is spread over the frames after them."""
    keyframes: int = 32
    """Of the graph that is optimised; it has up to six directed edges a keyframe."""
    solver_keyframes: tuple[int, ...] = (64, 256)
    repeats: int = 20
    """Rounds at most."""
    seconds: float = 10.0
    """No further round of a stage is begun after so long."""
    only: tuple[str, ...] = tuple(STAGES)
    peers: bool = True
    """Measure others who do the same, too."""
    quick: bool = False
    """Sizes are tiny: programs may come from a cache, ceilings are rough."""

    def __post_init__(self) -> None:
        for option, sizes in (
            ("sizes", self.sizes),
            ("network-sizes", self.network_sizes),
            ("system-size", (self.system_size,)),
        ):
            for width, height in sizes:
                if min(width, height) < 32 or width % 16 or height % 16:
                    raise SourceError(
                        f"--{option} {width}x{height}: width and height must be multiples of 16, "
                        "and at least 32"
                    )
        width, height = self.system_size
        if width <= height or width == 224:
            raise SourceError(
                f"--system-size {width}x{height}: must be wider than high, and not 224 wide: the "
                "system makes that one square"
            )
        for option, value, least in (
            ("frames", self.frames, 4),
            ("keyframes", self.keyframes, 4),
            ("repeats", self.repeats, 1),
            *(("solver-keyframes", count, 2) for count in self.solver_keyframes),
        ):
            if value < least:
                raise SourceError(f"--{option} {value}: must be at least {least}")
        if not self.seconds > 0:
            raise SourceError(f"--seconds {self.seconds:g}: must be above 0")
        unknown = [name for name in self.only if name not in STAGES]
        if unknown:
            raise SourceError(f"--only {unknown[0]}: there are {', '.join(STAGES)}")

    def beside(self, *peers: Callable[[], T]) -> tuple[T, ...]:
        """Who does the same, each made by its function; nobody if none are asked for."""
        return tuple(make() for make in peers) if self.peers else ()

    def wants(self, *names: str) -> bool:
        """Whether one of these stages is asked for."""
        return any(name in self.only for name in names)

    @property
    def network_config(self) -> MASt3RConfig:
        """Sizes of the network."""
        return MASt3RConfig.small() if self.network == "small" else MASt3RConfig.vit_large()


def quick_plan(only: tuple[str, ...] = tuple(STAGES)) -> Plan:
    """A plan that only shows that everything runs; its figures say nothing."""
    return Plan(
        sizes=((64, 48),),
        network_sizes=((64, 48),),
        system_size=(64, 48),
        frames=6,
        keyframes=4,
        solver_keyframes=(4,),
        repeats=3,
        seconds=1.0,
        only=only,
        quick=True,
    )


def parse_size(option: str, text: str) -> Size:
    """Width and height of ``WIDTHxHEIGHT``.

    Raises:
        SourceError: it is something else.
    """
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise SourceError(f"--{option} {text}: a size is WIDTHxHEIGHT, such as 224x160")
    return int(width), int(height)


def written(size: Size) -> str:
    """``WIDTHxHEIGHT``."""
    return f"{size[0]}x{size[1]}"
