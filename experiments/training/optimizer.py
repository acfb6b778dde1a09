"""AdamW with warm-up and cosine, clipping, and steps that are not finite left out."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.training.config import OptimizerConfig, ScheduleConfig

F = TypeVar("F", bound=Callable[..., Any])


def learning_rate(config: OptimizerConfig, schedule: ScheduleConfig) -> optax.Schedule:
    """Learning rate by the number of updates made: linear warm-up, then a cosine."""
    peak = config.learning_rate
    rate = optax.warmup_cosine_decay_schedule(
        init_value=peak / (schedule.warmup + 1),  # 0 would waste the first step
        peak_value=peak,
        warmup_steps=schedule.warmup,
        decay_steps=schedule.steps,
        end_value=peak * schedule.final,
    )
    return _relaxed(rate)


def make_optimizer(
    config: OptimizerConfig, schedule: ScheduleConfig
) -> optax.GradientTransformation:
    """The optimiser; its state is an ``optax.ApplyIfFiniteState``, which counts skipped steps."""
    update = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, schedule),
            b1=config.beta_1,
            b2=config.beta_2,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )
    # Never let a step through that is not finite: whoever runs this gives up instead.
    guarded = optax.apply_if_finite(update, max_consecutive_errors=np.iinfo(np.int32).max)
    return optax.GradientTransformation(guarded.init, _relaxed(guarded.update))


def _relaxed(function: F) -> F:
    """Optax multiplies floats by whole numbers, which strict dtype promotion would refuse."""

    @functools.wraps(function)
    def relaxed(*arguments: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments)

    return cast(F, relaxed)


def decays(params: Any) -> Any:
    """Which parameters are drawn towards zero: the kernels."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(getattr(part, "key", None) == "kernel" for part in path), params
    )


def ema_decay(config: OptimizerConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Memory of the weights' average in a step: at most ``(1 + step) / (10 + step)``.

    So the random weights of the start are forgotten at once.
    """
    t = step.astype(jnp.float32)
    return jnp.minimum(config.ema_decay, (1 + t) / (10 + t))
