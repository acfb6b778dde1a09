"""Eight devices, and two processes, train as one device does."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.training import metrics
from experiments.training.hosts import join
from experiments.training.run_folder import Start, open_start
from slam.io.frames import SourceError
from tests.experiments.training import distributed

ROOT = pathlib.Path(__file__).parents[3]


def start(
    out: pathlib.Path, *, devices: int, processes: int, double: bool
) -> list[subprocess.Popen]:
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    return [
        subprocess.Popen(
            [sys.executable, "-m", distributed.__name__, *map(str, (out, processes, i, port))],
            cwd=ROOT,
            env=os.environ
            | {
                "XLA_FLAGS": flags,
                "JAX_PLATFORMS": "cpu",
                "JAX_ENABLE_X64": str(int(double)),
                "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]


def finish(children: list[subprocess.Popen]) -> None:
    try:
        said = [child.communicate(timeout=300)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * len(children), said


def losses_of(start: Start) -> list[float]:
    assert [row["step"] for row in start.rows] == list(range(1, 13))
    return [row["loss"] for row in start.rows]


def pairs_of(out: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(out / "pairs.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.slow
def test_devices_and_processes_train_as_one_device_does(tmp_path, monkeypatch):
    """Their pairs are equal bit for bit, their sums over the batch up to rounding.

    Shown in float64, where nothing else is left: after 12 steps all weights and moments are equal
    to 1e-12. And in float32, whose sums of n = 36,864 terms in another order differ by 2^-24 times
    sqrt(n) if roundings are random, 1e-5, and by n at worst: here to 1e-4. (Adam divides a gradient
    by its own size, so updates inherit the relative difference; no gradient here is nearly zero.)
    """
    monkeypatch.setattr(metrics, "draw_curves", lambda path, rows: None)
    cases = (("eight", 8, 1, True, 1e-12), ("two", 2, 2, False, 1e-4))
    for name, devices, processes, double, tolerance in cases:
        children = start(
            tmp_path / name, devices=devices // processes, processes=processes, double=double
        )
        alone_in = tmp_path / f"{name} in one"
        alone_in.mkdir()
        with jax.enable_x64(double):
            distributed.main(alone_in)
        finish(children)
        alone = open_start(alone_in / "run", distributed.CONFIG, None)
        together = open_start(tmp_path / name / "run", distributed.CONFIG, None)
        assert alone.arrays is not None and together.arrays is not None
        assert alone.arrays["params.kernel.value"].dtype == ("float64" if double else "float32")
        assert losses_of(alone)[0] > 1.5 * losses_of(alone)[-1]
        # Metrics are float32 in any case.
        np.testing.assert_allclose(losses_of(together), losses_of(alone), rtol=max(tolerance, 2e-7))
        assert together.arrays.keys() == alone.arrays.keys()
        for key, value in alone.arrays.items():
            np.testing.assert_allclose(
                together.arrays[key], value, tolerance, 0.1 * tolerance, err_msg=key
            )
        assert together.slices[-1]["devices"] == devices
        assert together.slices[-1]["processes"] == len(together.slices) == processes
        if processes == 1:
            ours, theirs = pairs_of(alone_in), pairs_of(tmp_path / name)
            assert all(theirs[name].tobytes() == value.tobytes() for name, value in ours.items())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((None, 2, 0), "--processes 2: they find each other by --coordinator HOST:PORT"),
        (("localhost:1", 2, 2), "--process-id 2: must be at least 0 and below --processes 2"),
        ((None, 1, -1), "--process-id -1: must be at least 0 and below --processes 1"),
    ],
)
def test_hosts_that_cannot_be(values, words):
    with pytest.raises(SourceError, match=words):
        join(*values)
