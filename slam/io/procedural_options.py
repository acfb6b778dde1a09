"""The keys of ``procedural:room?seed=3&frames=150``: what they mean and what they accept."""

import dataclasses
import itertools
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

from slam.io.frames import SourceError


@dataclasses.dataclass(frozen=True)
class ProceduralOptions:
    """A walk through a random room; every field is a key of the URI."""

    seed: int = 0
    """Which room and which walk."""
    frames: int = 150
    size: tuple[int, int] = (128, 96)
    """Width and height in pixels, ``size=128x96``."""
    laps: float = 1.0
    """Rounds of the loop, at most: the camera turns by no more than 2.45 degrees a frame, so a lap
    takes 148 frames or the walk ends before it closes."""
    zoom: float = 1.0
    """The focal length changes smoothly between 1 and ``zoom`` times that of ``fov``."""
    fov: float = 65.0
    """Horizontal field of view of the pinhole part, degrees."""
    fps: float = 30.0
    """Frames a second, for the timestamps."""
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    """Lens distortion (Brown-Conrady, OpenCV's meaning). ``K`` is then the pinhole part only."""
    spp: int = 1
    """Colour samples a pixel along each side; depth is always that of the centre."""
    noise: float = 0.0
    """Standard deviation of sensor noise, grey levels of 255."""
    blur: float = 0.0
    """Standard deviation of a Gaussian blur, pixels."""
    exposure: float = 0.0
    """Amplitude of a slow drift of the exposure, stops."""
    cover: tuple[tuple[int, int], ...] = ()
    """Frames with a covered lens, black without noise, both ends included: ``cover=30-39``; several
    as ``cover=30-39,80-85``."""
    jump: tuple[tuple[int, int | None], ...] = ()
    """The camera is carried off: with ``jump=60:20`` it is at frame 60 where the walk was at frame
    20, and walks on from there (beyond the end of the walk too, at the same pace). With
    ``jump=60:other``, here ``(60, None)``, it walks through another room, from the start of a walk
    of its own. Several, in order, as ``jump=60:other,90:20``."""


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "frames": (1, 1_000_000),
    "laps": (1e-3, 1000),
    "zoom": (1, 4),
    "fov": (20, 120),
    "fps": (0.1, 1000),
    "k1": (-2, 2),
    "k2": (-2, 2),
    "p1": (-0.5, 0.5),
    "p2": (-0.5, 0.5),
    "spp": (1, 8),
    "noise": (0, 100),
    "blur": (0, 20),
    "exposure": (0, 4),
}
_SIZES = (16, 4096)
_OTHER = "other"
_KEYS = tuple(field.name for field in dataclasses.fields(ProceduralOptions))


def parse_options(uri: str) -> ProceduralOptions:
    """The options written as ``procedural:room?key=value&...``.

    Raises ``SourceError`` naming the key, the value and what is accepted.
    """
    head, _, query = uri.partition("?")
    if head not in ("procedural:room", "procedural:"):
        raise SourceError(
            f"{uri}: unknown scene '{head.removeprefix('procedural:')}'; "
            "write procedural:room?seed=0&frames=150"
        )
    values: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        key, equals, text = part.partition("=")
        text = urllib.parse.unquote(text)
        if key not in _KEYS:
            raise SourceError(f"{uri}: unknown key '{key}'; accepted keys: {', '.join(_KEYS)}")
        if not equals or not text:
            raise SourceError(f"{uri}: key '{key}' has no value; write {key}=VALUE")
        if key in values:
            raise SourceError(f"{uri}: key '{key}' is given twice; leave one out")
        values[key] = _parse_value(uri, key, text)
    return ProceduralOptions(**values)


def _parse_value(uri: str, key: str, text: str) -> Any:
    if key == "size":
        width, cross, height = text.partition("x")
        if not (cross and width.isdecimal() and height.isdecimal()):
            raise SourceError(f"{uri}: size={text} is not WIDTHxHEIGHT, for example size=128x96")
        return int(width), int(height)
    if key == "cover":
        usage = "START-END, for example cover=30-39"
        return tuple(
            (int(start), int(end))
            for start, end in _parse_list(uri, key, text, r"([0-9]+)-([0-9]+)", usage)
        )
    if key == "jump":
        usage = f"AT:TO, for example jump=60:20 or jump=60:{_OTHER}"
        return tuple(
            (int(at), None if to == _OTHER else int(to))
            for at, to in _parse_list(uri, key, text, rf"([0-9]+):([0-9]+|{_OTHER})", usage)
        )
    whole = key in ("seed", "frames", "spp")
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise SourceError(f"{uri}: {key}={text} is not {kind}") from None


def _parse_list(
    uri: str, key: str, text: str, pattern: str, usage: str
) -> Iterator[tuple[str, ...]]:
    for part in text.split(","):
        match = re.fullmatch(pattern, part)
        if not match:
            raise SourceError(f"{uri}: {key}={part} is not {usage}")
        yield match.groups()


def format_uri(options: ProceduralOptions) -> str:
    """The URI that ``parse_options`` reads these options from."""
    default = ProceduralOptions()
    changed = [
        f"{key}={_format_value(key, getattr(options, key))}"
        for key in _KEYS
        if getattr(options, key) != getattr(default, key)
    ]
    return "procedural:room" + ("?" + "&".join(changed) if changed else "")


def _format_value(key: str, value: Any) -> str:
    """What ``_parse_value`` reads."""
    if key == "size":
        return f"{value[0]}x{value[1]}"
    if key == "cover":
        return ",".join(f"{start}-{end}" for start, end in value)
    if key == "jump":
        return ",".join(f"{at}:{_OTHER if to is None else to}" for at, to in value)
    return str(value)


def check_options(uri: str, options: ProceduralOptions) -> None:
    """Raises ``SourceError`` naming the option out of range, its value and the range."""
    for key, (low, high) in _RANGES.items():
        value = getattr(options, key)
        if not low <= value <= high:  # also refuses NaN
            raise SourceError(f"{uri}: {key}={value:g} is not between {low:g} and {high:g}")
    if not all(_SIZES[0] <= side <= _SIZES[1] for side in options.size):
        width, height = options.size
        raise SourceError(
            f"{uri}: size={width}x{height} is not between {_SIZES[0]} and {_SIZES[1]} a side"
        )
    last = options.frames - 1
    for start, end in options.cover:
        if not 0 <= start <= end <= last:
            raise SourceError(
                f"{uri}: cover={start}-{end} is not a range of frames between 0 and {last}, the "
                "last of the walk"
            )
    for at, to in options.jump:
        if not (0 <= at <= last and 0 <= (to or 0) <= last):
            raise SourceError(
                f"{uri}: jump={_format_value('jump', ((at, to),))} names a frame that is not "
                f"between 0 and {last}, the last of the walk"
            )
    times = [at for at, _ in options.jump]
    if any(later <= earlier for earlier, later in itertools.pairwise(times)):
        jumps = _format_value("jump", options.jump)
        raise SourceError(f"{uri}: jump={jumps} is out of order; each must be at a later frame")
