"""Training as a pure function: many steps in one program, on one device or on all of them.

The batch is divided over the devices, the parameters are on each of them, and the compiler adds the
sums in between: the same program, and the same numbers up to rounding, on any number of devices and
hosts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from experiments.training.config import OptimizerConfig, ScheduleConfig
from experiments.training.optimizer import ema_decay, learning_rate, make_optimizer
from experiments.training.types import PairBatch
from ops.records import Record, record

AXIS = "pairs"
"""The one axis of the mesh of devices: that of the batch."""

Metrics = dict[str, Float[Array, "..."]]
"""Figures of a step, or of several along the leading axis, by name."""


@record
class TrainState(Record):
    """All that a step changes, and the random key; arrays of plain numbers throughout."""

    params: Any
    """The network's parameters, an ``nnx.State``."""
    optimizer: Any
    """Of ``make_optimizer``."""
    ema: Any
    """Average of the parameters over the last steps, float32 as they are."""
    key: UInt32[Array, "2"]
    """Words of the random key that all pairs follow from; never changes."""
    step: Int[Array, ""]
    """Steps made, the skipped ones included."""

    @property
    def skipped(self) -> Int[Array, ""]:
        """Steps whose loss or gradient was not finite, and which therefore changed nothing."""
        return self.optimizer.total_notfinite


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a step needs and does not change."""

    graph: nnx.GraphDef
    """The network without its parameters."""
    draw: Callable[[Array, Int[Array, ""]], PairBatch]
    """From keys and the number of the step to pairs, one for each key."""
    objective: Callable[[Any, PairBatch], tuple[Float[Array, ""], Any]]
    """From network and pairs to the loss, and a record of figures that are worth watching."""
    batch: int
    """Pairs of a step, over all devices."""
    optimizer: OptimizerConfig
    """How the loss is minimised."""
    schedule: ScheduleConfig
    """What changes over the run."""
    mesh: Mesh
    """The devices."""
    cycle: int = 0
    """The pairs repeat after so many; 0: never."""

    @property
    def replicated(self) -> NamedSharding:
        """The same on all devices."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def divided(self) -> NamedSharding:
        """The leading axis divided over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))


def all_devices() -> Mesh:
    """The mesh of all devices, of all hosts."""
    return Mesh(np.array(jax.devices()), (AXIS,))


@functools.partial(jax.jit, static_argnums=(0, 1))
def new_state(
    recipe: Recipe, initial: Callable[[PRNGKeyArray], nnx.Module], seed: UInt32[Array, ""]
) -> TrainState:
    """The state before the first step, replicated: weights and pairs follow from the seed."""
    weights_key, pairs_key = jax.random.split(jax.random.key(seed))
    params = nnx.state(initial(weights_key))
    state = TrainState(
        params=params,
        optimizer=make_optimizer(recipe.optimizer, recipe.schedule).init(params),
        ema=jax.tree.map(jnp.copy, params),
        key=jax.random.key_data(pairs_key),
        step=jnp.zeros((), jnp.int32),
    )
    return jax.lax.with_sharding_constraint(state, recipe.replicated)


def pairs_of_step(recipe: Recipe, state: TrainState) -> PairBatch:
    """The pairs of the state's step, divided over the devices; each makes its own.

    Pair number n since the start comes from ``fold_in(key, n)``, whatever the number of devices and
    however steps are cut into dispatches.
    """
    first = state.step.astype(jnp.uint32) * recipe.batch
    numbers = first + jnp.arange(recipe.batch, dtype=jnp.uint32)
    if recipe.cycle:
        numbers = numbers % recipe.cycle
    root = jax.random.wrap_key_data(state.key)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, numbers)
    on_each = jax.shard_map(
        recipe.draw,
        mesh=recipe.mesh,
        in_specs=(PartitionSpec(AXIS), PartitionSpec()),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,  # rendering loops start from constants, which this check does not allow
    )
    return on_each(keys, state.step)


def loss(recipe: Recipe, params: Any, pairs: PairBatch) -> tuple[Float[Array, ""], Any]:
    """The objective as a function of the parameters."""
    return recipe.objective(nnx.merge(recipe.graph, params), pairs)


def gradient(recipe: Recipe, params: Any, pairs: PairBatch) -> tuple[tuple[Array, Any], Any]:
    """``((loss, figures), gradient)``."""
    return jax.value_and_grad(loss, argnums=1, has_aux=True)(recipe, params, pairs)


def train_step(recipe: Recipe, state: TrainState) -> tuple[TrainState, Metrics]:
    """One step: make pairs, forward, backward, update.

    Metrics are ``loss``, the objective's figures, ``gradient_norm`` (before clipping),
    ``learning_rate``, ``skipped`` (steps so far) and ``skipped_in_a_row``.
    """
    pairs = pairs_of_step(recipe, state)
    (value, figures), grads = gradient(recipe, state.params, pairs)
    # A loss that is not finite may well have a gradient that is, of the wrong branch of a `where`.
    grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(value), g, jnp.nan), grads)
    transform = make_optimizer(recipe.optimizer, recipe.schedule)
    updates, optimizer = transform.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(recipe.optimizer, state.step)
    ema = jax.tree.map(
        lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old), state.ema, params
    )
    updates_before = state.step - state.skipped
    state = state.replace(params=params, optimizer=optimizer, ema=ema, step=state.step + 1)
    metrics = {
        "loss": value,
        **{f.name: getattr(figures, f.name) for f in dataclasses.fields(figures)},
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": learning_rate(recipe.optimizer, recipe.schedule)(updates_before),
        "skipped": state.skipped,
        "skipped_in_a_row": state.optimizer.notfinite_count,
    }
    return state, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}


@record
class Dispatch(Record):
    """What came out of one dispatch."""

    steps: Int[Array, ""]
    """Steps made."""
    metrics: Metrics
    """A row for each step; those from ``steps`` on are zero."""


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_many(
    recipe: Recipe,
    max_steps: int,
    state: TrainState,
    proposals: Int[Array, " d"],
    last_step: Int[Array, ""],
) -> tuple[TrainState, Dispatch]:
    """Makes as many steps as the most modest device proposes, in one program; donates the state.

    Each host fills in ``proposals`` for its own devices; 0 stops. There are at most ``max_steps``
    of them, and none beyond step ``last_step``.

    The number of steps is data, and therefore the loop is a ``fori_loop``: a scan of another length
    would be another program, compiled again, and rounding might differ. For ``max_steps=1`` there
    is no loop, and the step is made in any case but may be thrown away.
    """
    steps = jnp.clip(jnp.minimum(proposals.min(), last_step - state.step), 0, max_steps)
    _, row = jax.eval_shape(lambda state: train_step(recipe, state), state)

    def body(at: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, rows = carry
        state, row = train_step(recipe, state)
        rows = jax.tree.map(lambda rows, row: rows.at[at].set(row), rows, row)
        return jax.lax.with_sharding_constraint((state, rows), recipe.replicated)

    rows = jax.tree.map(lambda x: jnp.zeros((max_steps, *x.shape), x.dtype), row)
    start = (state, rows)
    if max_steps == 1:
        state, rows = jax.tree.map(
            lambda new, old: jnp.where(steps == 1, new, old), body(jnp.int32(0), start), start
        )
    else:
        state, rows = jax.lax.fori_loop(0, steps, body, start)
    dispatch = Dispatch(steps=steps, metrics=rows)
    return jax.lax.with_sharding_constraint((state, dispatch), recipe.replicated)
