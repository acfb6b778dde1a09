"""Compile time and frame rate of the procedural renderer: ``python -m experiments.render_speed``.

Compilation is timed without the persistent cache; rates are the best of three repetitions.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slam.world import RenderConfig, camera_path, random_room, render


def intrinsics(shape: tuple[int, int], fov: float = 65.0) -> Array:
    """Pinhole intrinsics of an image with the given horizontal field of view in degrees."""
    height, width = shape
    focal = 0.5 * width / np.tan(0.5 * np.deg2rad(fov))
    return jnp.array(
        [[focal, 0, 0.5 * (width - 1)], [0, focal, 0.5 * (height - 1)], [0, 0, 1]], jnp.float32
    )


def measure(shape: tuple[int, int], batch: int, config: RenderConfig) -> tuple[float, float]:
    """Compile seconds and frames a second of a batch of views by ``vmap``."""
    room = random_room(jax.random.key(0))
    poses = camera_path(jax.random.key(1), room, batch)
    K = intrinsics(shape)

    def views(poses: Array) -> tuple[Array, Array]:
        view = jax.vmap(lambda T_WC: render(room, T_WC, K, shape, config=config))(poses)
        return view.rgb, view.depth

    start = time.perf_counter()
    compiled = jax.jit(views).lower(poses).compile()
    seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(poses))
    repeats, best = max(1, 32 // batch), float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(repeats):
            result = compiled(poses)
        jax.block_until_ready(result)
        best = min(best, (time.perf_counter() - start) / (repeats * batch))
    return seconds, 1.0 / best


def main() -> None:
    """Print one line for each image size and batch."""
    parser = argparse.ArgumentParser(description="Speed of the procedural renderer.")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--sizes", nargs="+", default=["128x96", "320x240", "512x384"])
    parser.add_argument("--no-shadows", action="store_true")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    config = RenderConfig(shadows=not arguments.no_shadows)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {config}")
    start = time.perf_counter()
    jax.block_until_ready(random_room(jax.random.key(0)))
    print(f"a room: {time.perf_counter() - start:.1f} s to compile and draw")
    print(f"{'size':>9} {'batch':>5} {'compile s':>10} {'frames/s':>9}")
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        for batch in arguments.batches:
            seconds, rate = measure((height, width), batch, config)
            print(f"{size:>9} {batch:>5} {seconds:>10.1f} {rate:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
