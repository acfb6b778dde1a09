"""States on disk: bit for bit, complete or absent, whatever kills the process."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments.training import metrics
from experiments.training.leaves import from_named_arrays, local_copy, named_arrays
from experiments.training.parts import MANIFEST, export_parts, import_parts
from experiments.training.run_folder import CHECKPOINTS, PARTS
from experiments.training.step import new_state
from experiments.training.trainer import Outcome, train
from mast3r_jax import CheckpointError
from slam.io.checkpoints import Checkpoints
from tests.experiments.training import cheap, killed

ROOT = pathlib.Path(__file__).parents[3]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Equal names, dtypes, shapes and bits."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (value.dtype, value.shape) == (b[name].dtype, b[name].shape), name
        assert value.tobytes() == b[name].tobytes(), name


def final_state(folder: pathlib.Path) -> dict[str, np.ndarray]:
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep=2)
    step = checkpoints.latest()
    assert step is not None
    arrays = checkpoints.load(step)
    checkpoints.close()
    return arrays


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Of all shapes and kinds, with numbers that only bits tell apart."""
    rng = np.random.default_rng(0)
    odd = np.array([np.nan, -0.0, 0.0, np.inf, 1e-45], np.float32)
    return {
        "params.kernel.value": rng.normal(size=(40, 7, 30)).astype(np.float32),
        "optimizer.odd": odd,
        "step": np.asarray(7, np.int32),
        "last_finite": np.asarray(True),
        "key": np.array([1, 2**32 - 1], np.uint32),
        "nothing": np.zeros(0, np.uint8),
        "text": rng.integers(0, 256, 5000).astype(np.uint8),
    }


# names


def test_a_state_is_named_and_rebuilt():
    recipe = cheap.recipe()
    seed = jnp.asarray(3, jnp.uint32)
    state = new_state(recipe, cheap.Colours, seed)
    named = named_arrays(local_copy(state))
    assert {"params.kernel.value", "ema.bias.value", "key", "step"} <= named.keys()
    assert "optimizer.total_notfinite" in named and any(".mu." in name for name in named)
    like = jax.eval_shape(lambda seed: new_state(recipe, cheap.Colours, seed), seed)
    same(named_arrays(from_named_arrays(like, named, "here")), named)
    without = {name: value for name, value in named.items() if name != "key"}
    for wrong, words in (
        (without, "here: has no key; was it written"),
        (named | {"more": named["key"]}, "here: has an unknown more;"),
        (named | {"step": np.asarray(1.0)}, r"step is float64\[\] instead of int32\[\];"),
    ):
        with pytest.raises(CheckpointError, match=words):
            from_named_arrays(like, wrong, "here")


# checkpoints


def test_checkpoints_are_bit_for_bit_and_the_last_ones_are_kept(tmp_path, arrays):
    full = {name: value for name, value in arrays.items() if value.size}
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() is None
    for step in (3, 5, 11):
        checkpoints.save(step, full | {"step": np.asarray(step, np.int32)})
        checkpoints.finish()
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["11", "5"]
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() == 11
    same(checkpoints.load(11), full | {"step": np.asarray(11, np.int32)})
    # One bit of the numbers, which orbax does not notice itself. The kernel is 31 kB of this file,
    # and what lies beside it, 5 kB, comes in no fixed order: some of it is no longer in use.
    largest = max((tmp_path / "c" / "11").rglob("*"), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    for at in (len(whole) // 4, len(whole) // 2):
        largest.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="c/11: is damaged; delete this folder to go on"):
            checkpoints.load(11)
    largest.write_bytes(whole)
    same(checkpoints.load(11), checkpoints.load(5) | {"step": np.asarray(11, np.int32)})
    checkpoints.close()


def slice_of(folder: pathlib.Path) -> Outcome:
    return train(killed.CONFIG, folder, ingredients=cheap.ingredients, shares=False)


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_the_unbroken_run(tmp_path, monkeypatch):
    """Killed three times, each time somewhere else."""
    monkeypatch.setattr(metrics, "draw_curves", lambda path, rows: None)
    folder, reached = tmp_path / "run", 0
    for place in killed.PLACES:
        child = subprocess.run(
            [sys.executable, "-m", killed.__name__, str(folder), place],
            cwd=ROOT,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert child.returncode == -signal.SIGKILL, child.stderr
        left = [path.name for path in (folder / CHECKPOINTS).iterdir()]
        whole = [int(name) for name in left if name.isdigit()]
        assert max(whole) > reached, "it did not go on"
        reached = max(whole)
        if place == "while a checkpoint is written":
            assert len(left) > len(whole), "nothing was half-written"
    (folder / ".half-written").write_text("left by a process that was killed")
    outcome = slice_of(folder)
    assert (outcome.ended_by, outcome.step) == ("steps", 12)
    assert outcome.record["from_step"] >= reached
    assert not (folder / ".half-written").exists()
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *map(str, range(1, 13))]

    assert slice_of(tmp_path / "unbroken").record["from_step"] == 0
    same(final_state(folder), final_state(tmp_path / "unbroken"))


# parts


def test_parts_are_small_and_bit_for_bit(tmp_path, arrays):
    about = {"config": {"seed": 3}, "slices": []}
    export_parts(tmp_path / PARTS, {"old": arrays["text"]}, about, limit=100_000)
    export_parts(tmp_path / PARTS, arrays, about, limit=4000)
    files = sorted((tmp_path / PARTS).iterdir())
    total = sum(value.nbytes for value in arrays.values())
    parts = [path for path in files if path.name != MANIFEST]
    assert all(path.stat().st_size <= 4000 for path in parts)
    assert total / 4000 < len(parts) < 1.5 * total / 4000
    # Anybody can read them.
    assert all(safetensors.numpy.load_file(path) for path in parts)
    found, told = import_parts(tmp_path / PARTS)
    assert told == about
    same(found, arrays)
    export_parts(tmp_path / "one", arrays, about, limit=16_000_000)
    assert len(list((tmp_path / "one").iterdir())) == 2
    same(import_parts(tmp_path / "one")[0], arrays)


def test_damaged_parts_are_refused(tmp_path, arrays):
    good = tmp_path / "good"
    export_parts(good, arrays, {"slices": []}, limit=10_000)
    assert {"part-0001.safetensors", "part-0003.safetensors"} < {p.name for p in good.iterdir()}

    def refused(change, words: str) -> None:
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        change(bad)
        with pytest.raises(CheckpointError, match=words) as caught:
            import_parts(bad)
        assert "\n" not in str(caught.value)

    def flip(name: str, at: float):
        def change(folder: pathlib.Path) -> None:
            content = bytearray((folder / name).read_bytes())
            content[int(at * len(content))] ^= 1
            (folder / name).write_bytes(content)

        return change

    def edit(folder: pathlib.Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["about"]["slices"] = ["forged"]
        (folder / MANIFEST).write_text(json.dumps(manifest))

    checksum = "is damaged, its checksum is another one; copy it again"
    refused(flip("part-0003.safetensors", 0.01), f"part-0003.safetensors: {checksum}")
    refused(flip("part-0002.safetensors", 0.9), f"part-0002.safetensors: {checksum}")
    for at in np.linspace(0.02, 0.98, 9):
        refused(flip(MANIFEST, at), f"{MANIFEST}: {checksum}")
    refused(edit, f"{MANIFEST}: {checksum}")
    refused(lambda f: (f / MANIFEST).write_text("[1]"), f"{MANIFEST}: {checksum}")
    missing = r"part-0002.safetensors: is missing; copy all \d parts together"
    refused(lambda f: (f / "part-0002.safetensors").unlink(), missing)
    refused(lambda f: (f / MANIFEST).unlink(), "bad: no exported training state, it has no")


def test_exports_replace_nothing_but_exports(tmp_path, arrays):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"mine: holds other files \(thesis.tex\)"):
        export_parts(tmp_path / "mine", arrays, {}, limit=10_000)
    with pytest.raises(CheckpointError, match="exists and is no folder"):
        export_parts(tmp_path / "mine" / "thesis.tex", arrays, {}, limit=10_000)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]
