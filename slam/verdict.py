"""How a run went, in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slam.reconstruction import Reconstruction


def verdict(result: "Reconstruction") -> str:
    """One honest sentence."""
    broken_off = "; the source broke off" if result.broken_off else ""
    return f"{_of_the_frames(result)}{broken_off}"


def _of_the_frames(result: "Reconstruction") -> str:
    frames, placed, pieces = result.num_frames, int(result.tracked.sum()), len(result.submaps)
    if placed == 0:
        return f"NOT STARTED: none of {frames} frames was usable as a first keyframe"
    if frames == 1:
        return "the only frame is the first keyframe; nothing was tracked"
    if not result.succeeded and pieces == 1:
        return f"LOST: the first keyframe was made, but none of {frames - 1} later frames fits"
    if not result.succeeded:
        return f"LOST: {pieces} of {frames} frames became keyframes, but none fits another"
    found = _count(result.num_keyframes, "keyframe")
    if result.is_loop_link.any():
        found += f" with {_count(int(result.is_loop_link.sum()), 'loop link')}"
    if result.relocalized.any():
        times = int(result.relocalized.sum())
        found += "; relocalised " + ("once" if times == 1 else f"{times} times")
    if pieces > 1:
        largest = int(result.placed_in().sum())
        found += f"; {pieces} pieces that were never joined, the largest has {largest} frames"
    if placed < frames:
        first = result.frame_numbers[~result.tracked][0]
        return (
            f"PARTLY LOST: {placed} of {frames} frames have a pose, the first without one is "
            f"frame {first}; {found}"
        )
    return f"all {frames} frames have a pose, {found}"


def one_line(result: "Reconstruction") -> str:
    """Name, sizes and verdict of a run."""
    frames, keyframes = _count(result.num_frames, "frame"), _count(result.num_keyframes, "keyframe")
    return f"<Reconstruction {result.name!r}, {frames}, {keyframes}: {verdict(result)}>"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
