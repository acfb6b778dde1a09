"""Derivatives of solutions: implicit = numeric = unrolled, forward = reverse, batched, finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ops import (
    MatchConfig,
    PixelFactorConfig,
    RayFactorConfig,
    Sim3,
    SolverStatus,
    constrain_to_rays,
    iterative_projection,
    optimize_graph,
    pinhole,
    solve_relative_pose,
    solve_spd,
)
from ops.cholesky import solve_spd_linear
from ops.relative_pose import relative_pose_curvature
from tests.ops.test_pose_graph import K_SMALL, SMALL, scene
from tests.quick import quick_jit

pytestmark = pytest.mark.slow

TIGHT = {"rel_error": 0.0, "delta_norm": 1e-13}
H, W = 6, 7
K_POSE = np.array([[6.0, 0, 3], [0, 6, 2.5], [0, 0, 1]])


def factor(mode, **limits):
    return (RayFactorConfig if mode == "rays" else PixelFactorConfig)(**limits)


def pose_problem(mode, seed, dtype=np.float64):
    """Two views of random points, some of them far off: about a third are beyond Huber's limit."""
    rng = np.random.default_rng(seed)
    pixels = pinhole.pixel_grid((H, W), dtype)
    K = jnp.asarray(K_POSE, dtype)
    points_f = pinhole.unproject(pixels, jnp.asarray(rng.uniform(1, 3, H * W), dtype), K)
    T = Sim3.exp(jnp.asarray(0.05 * rng.normal(size=7), dtype))
    points_k = T.apply(points_f) * jnp.asarray(1 + 0.02 * rng.normal(size=(H * W, 1)), dtype)
    points_k = points_k + jnp.asarray(0.01 * rng.normal(size=points_k.shape), dtype)
    if mode == "pixels":
        points_k = constrain_to_rays(points_k, K, (H, W))
    q = jnp.asarray(rng.uniform(1, 4, H * W), dtype)
    valid = jnp.asarray(rng.random(H * W) < 0.8)
    noise = factor(mode).noise(dtype)
    return {"f": points_f, "k": points_k, "q": q, "K": K, "pixels": pixels, "noise": noise}, valid


@functools.partial(jax.jit, static_argnames=("config", "derivative"))
def solve_pose(p, valid, config, derivative="implicit"):
    start = Sim3.identity(dtype=p["f"].dtype)
    return solve_relative_pose(
        p["f"], p["k"], p["q"], valid, start, config, p["K"], (H, W),
        pixels=p["pixels"], noise=p["noise"], derivative=derivative,
    )  # fmt: skip


def graph_problem(mode, seed, dtype=np.float64):
    """Views of random points in wrong places, one of them held fixed; what they depend on."""
    T, points, confidence, edges = scene("calib" if mode == "pixels" else mode, dtype, seed)
    moved = {
        "xi": jnp.zeros((5, 7), dtype), "points": points, "q": edges.q,
        "K": jnp.asarray(K_SMALL, dtype), "noise": factor(mode).noise(dtype),
    }  # fmt: skip
    return moved, (T, confidence, edges)


@functools.partial(jax.jit, static_argnames=("config", "derivative"))
def solve_graph(p, rest, config, derivative="implicit"):
    T, confidence, edges = rest
    return optimize_graph(
        T.retract(p["xi"]), p["points"], confidence, edges.replace(q=p["q"]), config, p["K"],
        SMALL, noise=p["noise"], derivative=derivative,
    )  # fmt: skip


PROBLEMS = {
    "pose": (pose_problem, solve_pose, lambda s: s.T_kf.wxyz_xyz_scale),
    "graph": (graph_problem, solve_graph, lambda s: s.T_WC.wxyz_xyz_scale),
}
CALM = {"rays": 120, "pixels": 400}
"""Iterations after which all problems here have come to rest."""


def along(p, seed):
    """A random direction in everything a problem depends on, in proportion to its size."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype)
            * jnp.maximum(jnp.max(jnp.abs(x)), 0.5)
        ),
        p,
    )


def moved(p, direction, step):
    return jax.tree.map(lambda x, d: np.asarray(x) + step * np.asarray(d), p, direction)


def inner(a, b):
    return sum(np.sum(np.asarray(x) * np.asarray(y)) for x, y in pairs(a, b))


def pairs(a, b):
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


@functools.cache
def gradient_of(kind, config, derivative="implicit"):
    """Gradient of a weighted sum of the solution's numbers, and the solution."""
    _, solve, value = PROBLEMS[kind]

    def scalar(p, rest, weight):
        solution = solve(p, rest, config, derivative)
        return jnp.sum(weight * value(solution)), solution

    return quick_jit(jax.grad(scalar, has_aux=True))


@functools.cache
def batched(kind, config):
    return quick_jit(jax.vmap(gradient_of(kind, config).__wrapped__))


@functools.cache
def both_ways(kind, config):
    """The solution; its numbers' change by forward mode; and the gradient of their weighted sum.

    One program, in which the problem is solved once, for compiling is most of the time here.
    """
    _, solve, value = PROBLEMS[kind]

    def program(p, rest, weight, direction):
        def numbers(p):
            solution = solve(p, rest, config)
            return value(solution), solution

        _, push, solution = jax.linearize(numbers, p, has_aux=True)
        return solution, push(direction), jax.linear_transpose(push, p)(weight)[0]

    return quick_jit(program)


def weights(kind):
    shape = {"pose": (8,), "graph": (5, 8)}[kind]
    return np.random.default_rng(7).normal(size=shape)


@pytest.mark.parametrize("mode", ["rays", "pixels"])
@pytest.mark.parametrize("kind", ["pose", "graph"])
def test_implicit_is_numeric_in_forward_and_reverse_mode(kind, mode):
    program = both_ways(kind, factor(mode, max_iterations=CALM[mode], **TIGHT))
    value = PROBLEMS[kind][2]
    with jax.enable_x64(True):
        weight = weights(kind)
        for seed in range(3):
            p, rest = PROBLEMS[kind][0](mode, seed)
            direction = along(p, seed + 10)
            h = 1e-7  # at 1e-6 one of the problems crosses a kink of Huber's weight
            right, left, far_right, far_left = (
                np.sum(
                    weight * value(program(moved(p, direction, k * h), rest, weight, direction)[0])
                )
                for k in (1, -1, 2, -2)
            )
            numeric = (8 * (right - left) - far_right + far_left) / (12 * h)
            solution, change, pulled = program(p, rest, weight, direction)
            reverse = inner(pulled, direction)
            assert SolverStatus(int(solution.status)) is SolverStatus.CONVERGED_STEP
            np.testing.assert_allclose(reverse, numeric, rtol=1e-6)
            np.testing.assert_allclose(np.sum(weight * change), reverse, rtol=1e-9)


@pytest.mark.parametrize("kind", ["pose", "graph"])
def test_long_unrolling_comes_to_the_same(kind):
    config = factor("rays", max_iterations=CALM["rays"], **TIGHT)
    with jax.enable_x64(True):
        p, rest = PROBLEMS[kind][0]("rays", 0)
        solution, _, implicit = both_ways(kind, config)(p, rest, weights(kind), along(p, 10))
        unrolled, same = gradient_of(kind, config, "unrolled")(p, rest, weights(kind))
        assert int(same.iterations) == int(solution.iterations)
        value = PROBLEMS[kind][2]
        np.testing.assert_allclose(value(same), value(solution), rtol=0, atol=1e-12)
        for a, b in pairs(implicit, unrolled):
            if kind == "pose" or a.shape != (5, 7):  # unrolled, the start of the others counts too
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.max(np.abs(a)) + 1e-12)


@pytest.mark.parametrize(
    ("kind", "of", "tolerance"),
    [("pose", "sight", 1e-3), ("pose", "scale", 5e-2), ("graph", "all", 1e-2)],
)
def test_single_precision_and_batches(kind, of, tolerance):
    """Without Huber's kinks, which single precision may cross where double does not.

    Rays say how a view is turned and where it moved, in units of its scale. Of the scale itself
    only distances speak, which weigh 1e-7 of the rest, as much as rounding leaves of that: two
    digits of its derivative are all there is.
    """
    exact_config = factor("rays", max_iterations=CALM["rays"], **TIGHT)
    config = factor("rays", max_iterations=40, rel_error=0.0, delta_norm=1e-6)

    def smooth(seed, dtype):
        p, rest = PROBLEMS[kind][0]("rays", seed, dtype)
        return {**p, "noise": p["noise"].replace(huber=jnp.asarray(1e3, dtype))}, rest

    def weight_at(solution):
        """What of the solution is looked at: weights of its numbers."""
        if of == "all":
            return weights(kind)
        *_, s = T = np.asarray(solution.T_kf.wxyz_xyz_scale)
        if of == "scale":  # together with the scale, the translation grows
            return np.concatenate([np.zeros(4), T[4:]]) / (T[4:] @ T[4:])
        weight = weights(kind)
        weight[7] = -(weight[4:7] @ T[4:7]) / s
        return weight

    with jax.enable_x64(True):
        program = both_ways(kind, exact_config)
        problems = [smooth(seed, np.float64) for seed in range(2)]
        ones = [(p, rest, weights(kind), along(p, 10)) for p, rest in problems]
        chosen = [weight_at(program(*one)[0]) for one in ones]
        exact = [
            program(p, rest, weight, direction)[2]
            for (p, rest, _, direction), weight in zip(ones, chosen, strict=True)
        ]
    problems = [smooth(seed, np.float32) for seed in range(2)]
    narrow = batched(kind, config)
    together, solution = narrow(
        *jax.tree.map(lambda *x: jnp.stack(x), *problems), jnp.asarray(chosen, jnp.float32)
    )
    assert (np.asarray(solution.status) < SolverStatus.NOT_FINITE).all()
    for k in range(2):
        # Per relative change of what the poses depend on, so that all can be compared.
        leaves = (jax.tree.leaves(tree) for tree in (problems[k][0], exact[k], together))
        rows = [(max(np.max(np.abs(x)), 0.5), a, b[k]) for x, a, b in zip(*leaves, strict=True)]
        largest = max(size * np.max(np.abs(a)) for size, a, _ in rows)
        for size, a, b in rows:
            assert b.dtype == jnp.float32
            np.testing.assert_allclose(
                size * np.asarray(b), size * np.asarray(a), rtol=0, atol=tolerance * largest
            )


def test_points_behind_the_camera_have_no_say_and_leave_all_finite():
    p, valid = pose_problem("pixels", 0, np.float32)
    valid = valid.at[jnp.array([3, 5])].set(True)
    p["f"] = p["f"].at[3].set(jnp.array([0.1, 0.2, 1e-30])).at[5, 2].set(-1.0)

    @quick_jit
    def curvature(p, valid):
        def at(points):
            return relative_pose_curvature(
                points, p["k"], p["q"], valid, Sim3.identity(), factor("pixels"), p["K"], (H, W),
                pixels=p["pixels"], noise=p["noise"],
            )  # fmt: skip

        return at(p["f"]), jax.grad(lambda points: jnp.sum(at(points).gradient))(p["f"])

    found, back = curvature(p, valid)
    without, same = curvature(p, valid.at[jnp.array([3, 5])].set(False))
    for a, b in zip(jax.tree.leaves((found, back)), jax.tree.leaves((without, same)), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def calm_pose(*arguments):
    """``both_ways`` of a pose from rays, the program that is compiled once for all of these."""
    return both_ways("pose", factor("rays", max_iterations=CALM["rays"], **TIGHT))(*arguments)


def degenerate(name):
    """Problems that do not determine the pose, or hardly."""
    p, valid = pose_problem("rays", 0)
    if name == "one point":
        p = {**p, "f": jnp.tile(p["f"][:1], (H * W, 1)), "k": jnp.tile(p["k"][:1], (H * W, 1))}
    elif name == "a line":
        t = jnp.linspace(1, 2, H * W)[:, None]
        p = {**p, "f": t * jnp.asarray([[0.1, 0.2, 1.0]]), "k": t * jnp.asarray([[0.1, 0.2, 1.0]])}
    elif name == "no match":
        valid = jnp.zeros_like(valid)
    elif name == "no weight":
        p = {**p, "q": jnp.zeros_like(p["q"])}
    elif name == "not a number":
        p = {**p, "f": p["f"].at[3].set(jnp.nan)}
        valid = valid.at[3].set(True)
    return p, valid


@pytest.mark.parametrize("name", ["one point", "a line", "no match", "no weight", "not a number"])
def test_a_degenerate_pose_says_so_and_has_a_finite_gradient(name):
    with jax.enable_x64(True):
        p, valid = degenerate(name)
        solution, _, gradient = calm_pose(p, valid, weights("pose"), along(p, 10))
        expected = "NOT_FINITE" if name == "not a number" else "NOT_POSITIVE_DEFINITE"
        assert SolverStatus(int(solution.status)).name == expected
        for leaf in jax.tree.leaves(gradient):
            np.testing.assert_array_equal(leaf, 0)


def test_what_is_not_valid_may_hold_anything():
    with jax.enable_x64(True):
        p, valid = pose_problem("rays", 0)
        bad = {**p, "f": p["f"].at[0].set(jnp.nan), "k": p["k"].at[0].set(jnp.inf)}
        valid = valid.at[0].set(False)
        results = (calm_pose(q, valid, weights("pose"), along(p, 10)) for q in (p, bad))
        for a, b in pairs(*results):
            np.testing.assert_array_equal(a, b)


def test_nearly_degenerate_poses_stay_exact_or_are_given_up():
    """Points ever closer to one point: the derivative is right until the solver gives up."""
    with jax.enable_x64(True):
        given_up = []
        curvature_of = quick_jit(relative_pose_curvature, static_argnames="config")
        base, valid = pose_problem("rays", 1)
        direction = along(base, 5)
        for spread in (1e-1, 1e-3, 1e-5, 1e-9):
            p = {k: base[k] for k in base}
            for name in "fk":
                centre = jnp.asarray([0.1, -0.2, 2.0])
                p[name] = centre + spread * (base[name] - centre)
            solution, change, _ = calm_pose(p, valid, weights("pose"), direction)
            assert np.isfinite(change).all()
            given_up.append(SolverStatus(int(solution.status)).failed)
            if not given_up[-1]:
                curvature = curvature_of(
                    p["f"], p["k"], p["q"], valid, solution.T_kf, factor("rays"), noise=p["noise"]
                )
                assert bool(curvature.definite)
                assert np.abs(change).max() > 0
        assert given_up[-1] and not given_up[0]


def test_a_floating_view_and_a_fixed_one():
    """A view without matches has derivative 0; a fixed one takes all others along."""
    with jax.enable_x64(True):
        p, (T, confidence, edges) = graph_problem("rays", 0)
        cut = (edges.i == 2) | (edges.j == 2)
        edges = edges.replace(valid=edges.valid & ~cut[:, None])
        config = factor("rays", max_iterations=CALM["rays"], **TIGHT)
        world = jnp.asarray([0.3, -0.2, 0.1, 0.05, 0.02, -0.04, 0.1])
        all_but_floating = np.array([0, 1, 3, 4])
        direction = {**jax.tree.map(jnp.zeros_like, p), "xi": p["xi"].at[0].set(world)}
        solution, change, _ = both_ways("graph", config)(
            p, (T, confidence, edges), weights("graph"), direction
        )

        @quick_jit
        def rigidly(world):
            def seen(w):
                return (Sim3.exp(w) @ solution.T_WC).wxyz_xyz_scale

            return jax.jvp(seen, (0 * world,), (world,))

        rigid = rigidly(world)
        np.testing.assert_allclose(
            change[all_but_floating], rigid[1][all_but_floating], rtol=0, atol=1e-9
        )
        np.testing.assert_array_equal(change[2], 0)


def test_solving_a_linear_system_has_derivatives():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        A = jnp.asarray(rng.normal(size=(9, 9)))
        H, g = A @ A.T + jnp.eye(9), jnp.asarray(rng.normal(size=9))
        weight = rng.normal(size=9)
        H = H.at[7:].set(0).at[:, 7:].set(0) + jnp.diag(jnp.arange(9) >= 7).astype(H.dtype)

        def ours(H, g, size):
            return jnp.sum(weight * solve_spd_linear((H + H.T) / 2, g, size=size))

        def plain(H, g, _):
            inner = jnp.linalg.solve((H + H.T)[:7, :7] / 2, g[:7])
            return jnp.sum(weight[:7] * inner)

        size = jnp.int32(7)
        solved = jax.jit(lambda H, g, n: (solve_spd_linear(H, g, size=n), solve_spd(H, g, size=n)))
        linear, (solution, _) = solved(H, g, size)
        np.testing.assert_array_equal(linear, solution)
        gradients = (jax.jit(jax.grad(f, (0, 1)))(H, g, size) for f in (ours, plain))
        for a, b in zip(*gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def test_matched_positions_move_as_their_condition_asks():
    shape = (12, 16)
    rng = np.random.default_rng(0)
    v, u = np.mgrid[0 : shape[0], 0 : shape[1]]
    depth = 2 + 0.3 * np.sin(u / 3) + 0.2 * np.cos(v / 2)
    smooth = np.stack([(u - 7.5) / 12 * depth, (v - 5.5) / 12 * depth, depth], -1)
    config = MatchConfig(max_iterations=60)
    with jax.enable_x64(True):
        X11 = jnp.asarray(smooth * (1 + 0.002 * rng.normal(size=(*shape, 1))))
        T = Sim3.exp(jnp.asarray([0.05, 0.02, -0.03, 0.01, -0.02, 0.03, 0.01]))
        X21 = T.apply(jnp.asarray(smooth)) + 0.01 * rng.normal(size=smooth.shape)
        directions = tuple(jnp.asarray(rng.normal(size=smooth.shape)) for _ in range(2))

        @jax.jit
        def project(X11, X21):
            return iterative_projection(X11, X21, None, config)

        found = project(X11, X21)
        border = jnp.asarray([shape[1] - 2.0, shape[0] - 2.0])
        inside = np.asarray(found.converged & ((found.uv > 1) & (found.uv < border)).all(-1))
        assert inside.mean() > 0.5

        h = 1e-7
        right, left = (
            project(X11 + k * directions[0], X21 + k * directions[1]).uv for k in (h, -h)
        )
        numeric = np.asarray(right - left) / (2 * h)
        forward = jax.jvp(lambda *X: project(*X).uv, (X11, X21), directions)[1]
        np.testing.assert_allclose(forward[inside], numeric[inside], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(forward[~inside], 0)

        weight = jnp.asarray(rng.normal(size=found.uv.shape))
        pulled = jax.grad(lambda *X: jnp.sum(weight * project(*X).uv), (0, 1))(X11, X21)
        reverse = sum(jnp.vdot(a, b) for a, b in zip(pulled, directions, strict=True))
        np.testing.assert_allclose(reverse, jnp.sum(weight * forward), rtol=1e-11)
