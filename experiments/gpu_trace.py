"""A profile of some frames of a run on a device."""

import pathlib
import shutil
import sys
import time
from typing import Any

import jax

import slam
from experiments.bench.plan import Plan
from experiments.bench.system import walk
from slam.runner import Progress
from slam.stepper import Stepper

LARGEST_TRACE = 16 * 10**6
"""Bytes of a file that is carried away from a borrowed machine."""
BEFORE = 20
"""Frames before the profile: by then keyframes have come and the map is a map."""


def trace(plan: Plan, out: pathlib.Path) -> dict[str, Any]:
    """A profile of the frames of ``plan`` after the first ``BEFORE``, as ``slam.run`` takes them.

    ``OUT/trace.xplane.pb`` is for TensorBoard or XProf, ``OUT/trace.trace.json.gz`` for
    ui.perfetto.dev; a file of more than ``LARGEST_TRACE`` bytes is left out, and with both of them
    out ``holds`` is False.
    """
    source, prior, config = walk(plan)
    stepper, raw = Stepper(config), out / "trace"
    slam.run(source, prior, stepper=stepper)
    shutil.rmtree(raw, ignore_errors=True)
    profile = _Profile(raw, stepper)
    result = slam.run(source, prior, stepper=stepper, on_progress=profile, time_every=sys.maxsize)
    files = kept(raw, out)
    return {
        "size": plan.system_size,
        "tracked": int(result.tracked[BEFORE:].sum()),
        "keyframes": int(result.is_keyframe[BEFORE:].sum()),
        **profile.figures(),
        "bytes": files,
        "holds": any(size <= LARGEST_TRACE for size in files.values()),
    }


class _Profile:
    """Told of every frame, it records after the first ``BEFORE``, to the last."""

    def __init__(self, folder: pathlib.Path, stepper: Stepper) -> None:
        self.folder, self.stepper = folder, stepper
        self.ends: list[float] = []
        self.programs: dict[str, int] = {}
        self.compiled = False

    def __call__(self, progress: Progress) -> None:
        if progress.frame == BEFORE - 1:
            options = jax.profiler.ProfileOptions()
            # or the host's part is most of it
            options.python_tracer_level, options.host_tracer_level = 0, 1
            options.enable_hlo_proto = False
            self.programs = self.stepper.cache_sizes()
            jax.profiler.start_trace(self.folder, profiler_options=options)
        elif progress.frame >= BEFORE:
            self.ends.append(time.perf_counter())
        if progress.frame + 1 == progress.total:  # what a run does after that is no frame's work
            jax.profiler.stop_trace()
            self.compiled = self.stepper.cache_sizes() != self.programs

    def figures(self) -> dict[str, Any]:
        """How many frames, how fast, and whether anything was compiled meanwhile."""
        return {
            "frames": len(self.ends),
            "frames_per_second": (len(self.ends) - 1) / (self.ends[-1] - self.ends[0]),
            "compiled_meanwhile": self.compiled,
        }


ENDINGS = (".xplane.pb", ".trace.json.gz")
"""Of a profile's files; what comes before is the name of the machine."""


def kept(raw: pathlib.Path, out: pathlib.Path) -> dict[str, int]:
    """Move a profile's files out of their folders, but for what is too large; bytes by name."""
    files = {}
    for path in sorted(path for path in raw.rglob("*") if path.is_file()):
        ending = next((e for e in ENDINGS if path.name.endswith(e)), f".{path.name}")
        name = f"trace{ending}"
        files[name] = path.stat().st_size
        if files[name] <= LARGEST_TRACE:
            path.replace(out / name)
    shutil.rmtree(raw)
    return files
