"""Training over devices and processes: ``python -m ...distributed OUT PROCESSES PROCESS_ID PORT``.

Process 0 leaves the run in ``OUT/run``, and one process alone the pairs of its first step in
``OUT/pairs.npz``; the number of devices is that of XLA_FLAGS. With several processes, the run is
broken once and gone on with.
"""

import pathlib
import sys

import jax
import numpy as np

import ops  # noqa: F401  (sets a flag before JAX starts)
from experiments.training import metrics
from experiments.training.hosts import join
from experiments.training.step import new_state, pairs_of_step
from experiments.training.trainer import train
from tests.experiments.training import cheap

# A row of metrics for each step.
CONFIG = cheap.changed(cheap.CONFIG, dispatch={"loop": "no", "seconds": 1e-6})


def main(out: pathlib.Path, processes: int = 1, process_id: int = 0, port: str = "") -> None:
    join(f"localhost:{port}", processes, process_id)
    metrics.draw_curves = lambda path, rows: None  # which takes longer than all the rest
    # Only process 0 knows the folder: the others need none in common with it.
    folder = out / "run" if process_id == 0 else pathlib.Path("/nowhere")
    for last_step in (5, 12) if processes > 1 else (12,):
        outcome = train(
            CONFIG, folder, last_step=last_step, ingredients=cheap.ingredients, shares=False
        )
        assert (outcome.ended_by, outcome.step) == ("steps", last_step)
    if processes == 1:
        save_pairs(out)


def save_pairs(out: pathlib.Path) -> None:
    """Checks that each device draws its share of the pairs, and writes all of them."""
    recipe = cheap.recipe(CONFIG)

    state = new_state(recipe, cheap.Colours, np.asarray(CONFIG.seed, np.uint32))
    pairs = jax.jit(pairs_of_step, static_argnums=0)(recipe, state)
    assert pairs.images_1.addressable_data(0).shape[0] == 8 // jax.device_count()
    np.savez(out / "pairs.npz", **{k: np.asarray(v) for k, v in vars(pairs).items()})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
