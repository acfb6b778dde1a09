"""Settings to start a run from, by name."""

from collections.abc import Mapping

from experiments.training.config import (
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from experiments.training.pairs import PairConfig
from mast3r_jax import MASt3RConfig

_TOY = MASt3RConfig(
    enc_dim=64,
    enc_depth=3,
    enc_heads=2,
    dec_dim=64,
    dec_depth=2,
    dec_heads=2,
    mlp_ratio=2.0,
    descriptor_dim=8,
    dpt_dim=16,
    dpt_last_dim=16,
    dpt_layer_dims=(16, 16, 24, 32),
)

PRESETS: Mapping[str, TrainConfig] = {
    "small": TrainConfig(pairs=PairConfig(size=(128, 96), pairs=64)),
    "toy": TrainConfig(
        network=NetworkConfig(sizes=_TOY),
        pairs=PairConfig(size=(64, 48), pairs=4, correspondences=128),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        schedule=ScheduleConfig(steps=2_000, warmup=50, motion_steps=500),
    ),
}
"""``small`` is the network that ships with the package, for a GPU: 3.2 million pairs. ``toy`` shows
within minutes on a CPU that everything works; what it learns is good for nothing."""
