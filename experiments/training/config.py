"""Every choice of a training run, in frozen records, and their JSON form."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

from experiments.training.objective import ObjectiveConfig
from experiments.training.pairs import PairConfig
from mast3r_jax import CheckpointError, MASt3RConfig
from slam.config import config_from_dict


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The network and its first weights."""

    sizes: MASt3RConfig = dataclasses.field(default_factory=MASt3RConfig.small)
    """Width and depth of every part."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of products; parameters are float32. auto: bfloat16 on a GPU, float32 on a CPU,
    decided when the run starts."""
    tie_views: bool = True
    """Start decoder and head of view 2 as copies of view 1's. Drawn independently, the two views'
    descriptors have nothing in common at first, and the matching loss gets stuck."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), and the average of the weights."""

    learning_rate: float = 1e-3
    """At the end of the warm-up."""
    weight_decay: float = 0.05
    """Decoupled; of kernels only, not of biases and normalisation."""
    beta_1: float = 0.9
    """Memory of the gradient's mean."""
    beta_2: float = 0.95
    """Memory of the gradient's square; short, because rooms differ a lot."""
    clip_norm: float = 1.0
    """Gradients of a larger norm, over all parameters, are scaled down to it."""
    ema_decay: float = 0.999
    """Memory of the average of the weights, which is what is exported; shorter at the start."""
    patience: int = 50
    """So many steps in a row whose gradient is not finite end the run. Single ones are skipped and
    counted."""

    def __post_init__(self) -> None:
        _check(self, "learning_rate", lambda x: x > 0, "above 0")
        _check(self, "weight_decay", lambda x: x >= 0, "at least 0")
        for name in ("beta_1", "beta_2", "ema_decay"):
            _check(self, name, lambda x: 0 <= x < 1, "at least 0 and below 1")
        _check(self, "clip_norm", lambda x: x > 0, "above 0")
        _check(self, "patience", lambda x: x >= 1, "at least 1")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """What changes over a run."""

    steps: int = 50_000
    """Length of the run: where the learning rate's cosine ends."""
    warmup: int = 1_000
    """Steps over which the learning rate rises from almost nothing."""
    final: float = 0.01
    """Learning rate at the end, in parts of the largest."""
    motion: float = 0.4
    """Motion between the two cameras at the start, in parts of the whole range of the pairs."""
    motion_steps: int = 10_000
    """Steps until the motion has grown to the whole range."""

    def __post_init__(self) -> None:
        _check(self, "steps", lambda x: x >= 1, "at least 1")
        within = f"at least 0 and below steps={self.steps}"
        _check(self, "warmup", lambda x: 0 <= x < self.steps, within)
        _check(self, "final", lambda x: 0 <= x <= 1, "between 0 and 1")
        _check(self, "motion", lambda x: 0 <= x <= 1, "between 0 and 1")
        _check(self, "motion_steps", lambda x: x >= 0, "at least 0")


@dataclasses.dataclass(frozen=True)
class DispatchConfig:
    """How many steps the device is sent at once; the results do not depend on the number."""

    loop: Literal["auto", "yes", "no"] = "auto"
    """Send many steps at once, as a loop. auto: on a GPU, decided when the run starts. XLA's CPU
    compiler takes three times as long for gradients of convolutions within a loop, and rounds them
    differently there."""
    seconds: float = 2.0
    """What a dispatch should last: the device never waits for Python, and a signal not for long.
    Also the time between two rows of metrics."""
    most_steps: int = 256
    """Most steps of a dispatch."""

    def __post_init__(self) -> None:
        _check(self, "seconds", lambda x: x > 0, "above 0")
        _check(self, "most_steps", lambda x: x >= 2, "at least 2")

    @property
    def max_steps(self) -> int:
        """Most steps of a dispatch, with or without a loop."""
        return self.most_steps if self.loop == "yes" else 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When everything is written, and how much is kept."""

    minutes: float = 2.0
    """Between checkpoints; exports and curves are brought up to date with each."""
    keep: int = 2
    """How many checkpoints stay on disk."""
    reserve: float = 20.0
    """Seconds kept free at the end of a slice for writing, until it has been measured."""
    part_megabytes: float = 16.0
    """Largest size of an exported file, in millions of bytes."""

    def __post_init__(self) -> None:
        _check(self, "minutes", lambda x: x > 0, "above 0")
        _check(self, "keep", lambda x: x >= 1, "at least 1")
        _check(self, "reserve", lambda x: x >= 0, "at least 0")
        _check(self, "part_megabytes", lambda x: x >= 0.1, "at least 0.1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training run; hashable."""

    seed: int = 0
    """First weights and all pairs follow from it."""
    fixed_pairs: int = 0
    """Train on so many pairs over and over, with the whole range of motion: a test of the pipeline,
    which has to learn them by heart. 0: pairs that nobody has seen, for ever."""
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    """The network and its first weights."""
    pairs: PairConfig = dataclasses.field(default_factory=PairConfig)
    """What is learnt from; `pairs` is the size of a batch, over all devices."""
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    """What is minimised."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """How."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    """What changes over a run."""
    dispatch: DispatchConfig = dataclasses.field(default_factory=DispatchConfig)
    """Steps that are sent to the device at once."""
    checkpoints: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    """Checkpoints and exports."""

    def __post_init__(self) -> None:
        _check(self, "fixed_pairs", lambda x: x >= 0, "at least 0")
        patch, (width, height) = self.network.sizes.patch_size, self.pairs.size
        if width % patch or height % patch:
            raise ValueError(
                f"images of {width}x{height} pixels, as pairs.size says, do not divide into the "
                f"network's patches of {patch}x{patch}"
            )

    def to_json(self) -> str:
        """The configuration as a JSON object, one field per line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Reads what ``to_json`` wrote.

        Raises:
            ValueError: it is no JSON object, has an unknown field, or a value is out of range.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"a JSON object was expected, not {type(fields).__name__}")
        return config_from_dict(cls, _with_tuples(fields))


WITHOUT_EFFECT = ("dispatch.seconds", "dispatch.most_steps", "checkpoints", "optimizer.patience")
"""Fields of ``TrainConfig`` that no weight depends on: they may change while a run goes on."""
AUTO = "auto"
"""What is decided on the device that a run starts on."""


def read_config(path: pathlib.Path) -> TrainConfig:
    """Reads a configuration file.

    Raises:
        CheckpointError: the file cannot be understood.
        OSError: it cannot be read.
    """
    try:
        return TrainConfig.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is no configuration of a training run ({error}); was it written by another "
            "version, or changed by hand?"
        ) from None


def check_unchanged(place: str, saved: TrainConfig, asked: TrainConfig) -> None:
    """Refuses to go on with a run under settings that would have led to other weights.

    A setting that is asked to be "auto" is what the run's first device decided.

    Raises:
        CheckpointError: naming the first such setting, and both its values.
    """
    values = dict(_leaves(dataclasses.asdict(asked)))
    for name, value in _leaves(dataclasses.asdict(saved)):
        if not name.startswith(WITHOUT_EFFECT) and values[name] not in (value, AUTO):
            raise CheckpointError(
                f"{place}: was started with {name}={value}, not {values[name]}; leave that option "
                "out to go on with it, or start a run in a new folder"
            )


def as_begun(asked: TrainConfig, saved: TrainConfig | None) -> TrainConfig:
    """Settings for going on: what is asked to be "auto" is what was decided when the run began."""

    def filled(asked: Any, saved: Any) -> Any:
        if isinstance(asked, dict):
            return {name: filled(value, saved[name]) for name, value in asked.items()}
        return saved if asked == AUTO else asked

    if saved is None:
        return asked
    values = filled(dataclasses.asdict(asked), dataclasses.asdict(saved))
    return TrainConfig.from_json(json.dumps(values))


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _with_tuples(value: Any) -> Any:
    """JSON has lists only; records hold tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(_with_tuples(inner) for inner in value) if isinstance(value, list) else value


def _check(config: Any, name: str, holds: Any, what: str) -> None:
    value = getattr(config, name)
    if not holds(value):
        raise ValueError(f"{name}={value:g} must be {what}")
