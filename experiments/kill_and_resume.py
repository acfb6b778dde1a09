"""Kill a run in the middle, go on with it, and compare with a run that nobody killed.

The program is killed by ``kill -9``, at three places, wherever it happens to be then (a checkpoint
may be half-written), and resumed by ``mast3r-slam run --resume``. Poses and points have to be the
same to the last byte.

    python -m experiments.kill_and_resume [--frames 60]
"""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import tyro

FILES = ("trajectory.txt", "keyframes.txt", "map.ply")


@dataclasses.dataclass(frozen=True)
class KillAndResume:
    """Kill runs at three places, resume them, compare."""

    frames: int = 60
    """Length of the walk."""
    at: tuple[float, ...] = (0.15, 0.5, 0.8)
    """When to kill, as shares of the frames that a checkpoint has."""

    def execute(self) -> int:
        """Returns 0 if all runs came to the same."""
        failed = 0
        with tempfile.TemporaryDirectory() as folder:
            unbroken = pathlib.Path(folder) / "unbroken"
            self._start(unbroken).wait()
            for share in self.at:
                out = pathlib.Path(folder) / f"killed_{share:g}"
                process = self._start(out)
                seen = _wait_for(out, share * self.frames, process)
                process.send_signal(signal.SIGKILL)
                process.wait()
                subprocess.run(
                    [*_PROGRAM, "run", "--resume", str(out)], check=True, stdout=subprocess.DEVNULL
                )
                same = all((out / f).read_bytes() == (unbroken / f).read_bytes() for f in FILES)
                failed += not same
                told = "the same bytes" if same else "NOT the same"
                print(f"killed after checkpoint {seen} of {self.frames} frames: {told}")
        return int(failed > 0)

    def _start(self, out: pathlib.Path) -> subprocess.Popen:
        source = f"procedural:room?seed=3&frames={self.frames}&size=128x96"
        options = ("--prior", "rendered", "--config.size", "128", "--checkpoint-seconds", "0")
        command = [*_PROGRAM, "run", source, *options, "--out", str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)


_PROGRAM = ("mast3r-slam",)


def _wait_for(out: pathlib.Path, frames: float, process: subprocess.Popen) -> int:
    """Wait for a checkpoint with so many frames; returns how many it has."""
    while process.poll() is None:
        steps = [int(p.name) for p in (out / "checkpoint").glob("[0-9]*") if p.name.isdigit()]
        if steps and max(steps) >= frames:
            time.sleep(0.1)  # into the next one
            return max(steps)
        time.sleep(0.01)
    raise RuntimeError("the run ended before it could be killed; choose more frames")


if __name__ == "__main__":
    sys.exit(tyro.cli(KillAndResume, description=__doc__).execute())
