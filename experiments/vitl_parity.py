"""Full-size parity: the ViT-Large network against one stored pair of the original's outputs.

    python -m experiments.vitl_parity

The weights come from a formula over their published names, so no checkpoint is needed; the golden
file has a ``.json`` of the same name beside it with the images' seeds. Takes minutes on a CPU and
about 10 GB of memory. In float32 the exit status is 1 if any field is outside its tolerance; in
bfloat16 the errors are only reported.
"""

import dataclasses
import importlib.util
import json
import pathlib
import resource
import sys
import time
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from mast3r_jax import MASt3R
from weights_conversion.convert import convert_mast3r

# |x - golden| <= tolerance (1 + |golden|). Float32 rounding of the original against its own
# float64 run is about a fifth of it; points sit behind an exponential.
TOLERANCE = {
    "feat": 2e-5,
    "dec": 2e-5,
    "desc": 1e-5,
    "desc_conf": 3e-5,
    "conf": 5e-5,
    "pts3d": 4e-4,
}
PIXEL_STEP, TOKEN_STEP = 8, 16
"""The golden file keeps every 8th pixel of both axes and every 16th token."""


DATA = pathlib.Path(__file__).parent.parent / "tests" / "data" / "network"
"""In a checkout of the repository."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the full-size network with the original's stored outputs."""

    formula: pathlib.Path = DATA / "formula.py"
    """Python file with ``weight(name, shape)``, ``image(seed, h, w)`` and ``selfcheck()``."""
    keys: pathlib.Path = DATA / "mast3r_vitl_keys.json"
    """JSON table of the published names and shapes."""
    golden: pathlib.Path = DATA / "vitl_512x384.npz"
    """Stored outputs (.npz), with their description (.json) beside it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; bfloat16 also stores the parameters so."""


def compare(options: Options) -> bool:
    """Runs the pair once, prints a table, and says whether every field is within tolerance."""
    formula = _module(options.formula)
    formula.selfcheck()
    case = json.loads(options.golden.with_suffix(".json").read_text())
    with np.load(options.golden) as archive:
        golden = dict(archive)
    model = _network(formula, json.loads(options.keys.read_text()), options.dtype)
    images = [
        jnp.asarray(formula.image(case[k]["seed"], case[k]["h"], case[k]["w"]))[None]
        for k in ("image1", "image2")
    ]
    found = _run(model, images)

    exact = options.dtype == "float32"
    print(f"{'field':<12}{'max error':>12}{'/ tolerance':>13}{'relative RMS':>14}")
    within = True
    for name, expected in golden.items():
        difference = np.abs(found[name] - expected)
        worst = float((difference / (1 + np.abs(expected))).max())
        tolerance = TOLERANCE[name.rstrip("12").rstrip("_")]
        spread = np.linalg.norm(expected - expected.mean())
        relative = np.linalg.norm(difference) / spread
        within &= worst <= tolerance
        print(f"{name:<12}{worst:>12.2e}{worst / tolerance:>13.2f}{relative:>14.2e}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GiB")
    if exact:
        print("every field within tolerance" if within else "OUTSIDE tolerance")
    return within or not exact


def _module(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("formula", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _network(formula: ModuleType, shapes: dict[str, list[int]], dtype: str) -> MASt3R:
    start = time.perf_counter()
    tensors = {name: formula.weight(name, shape) for name, shape in shapes.items()}
    drawn = time.perf_counter()
    model = convert_mast3r(tensors, dtype=dtype, param_dtype=dtype)
    print(f"weights: drawn {drawn - start:.1f} s, converted {time.perf_counter() - drawn:.1f} s")
    return model


def _run(model: MASt3R, images: list[jax.Array]) -> dict[str, np.ndarray]:
    """The golden file's fields, subsampled like it; prints compile and run times apart."""
    shape_1, shape_2 = (image.shape[1:3] for image in images)

    def decode(model, tokens_1, tokens_2):
        pair, taps = model.decode_with_intermediates(tokens_1, tokens_2, shape_1, shape_2)
        return pair, taps["decoder"]["tokens_1"], taps["decoder"]["tokens_2"]

    encode = _timed_compile("encode", lambda m, x: m.encode(x), model, images[0])
    tokens = [_timed("encode", encode, model, image) for image in images]
    compiled = _timed_compile("decode", decode, model, *tokens)
    pair, *last = _timed("decode", compiled, model, *tokens)

    found = {}
    for view in (1, 2):
        found[f"feat{view}"] = tokens[view - 1][0, ::TOKEN_STEP]
        found[f"dec{view}"] = last[view - 1][0, ::TOKEN_STEP]
        pointmap = jax.tree.map(lambda x: x[0, ::PIXEL_STEP, ::PIXEL_STEP], pair[view - 1])
        found[f"pts3d_{view}"] = pointmap.points
        found[f"conf_{view}"] = pointmap.confidence
        found[f"desc_{view}"] = pointmap.descriptors
        found[f"desc_conf_{view}"] = pointmap.descriptor_confidence
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def _timed_compile(name: str, function, *args):
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    print(f"{name}: compiled in {time.perf_counter() - start:.1f} s")
    return compiled


def _timed(name: str, compiled, *args):
    start = time.perf_counter()
    result = jax.block_until_ready(compiled(*args))
    print(f"{name}: ran in {time.perf_counter() - start:.1f} s")
    return result


if __name__ == "__main__":
    sys.exit(0 if compare(tyro.cli(Options)) else 1)
