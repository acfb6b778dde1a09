"""Which two-view prior a command uses: that asked for, or the one that comes with the package."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro

from mast3r_jax import CheckpointError, checkpoint
from mast3r_jax.card import CardError, has_card, read_card
from mast3r_jax.checkpoint import CONFIG, WEIGHTS
from slam.io.frames import SourceError
from slam.priors.mast3r import MASt3RPrior
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior
from slam.types import TwoViewPrior

RENDERED = "rendered"
"""Name of the prior that takes its geometry from the source."""
PACKAGED = "small"
"""Name of the network that is used when none is asked for, if it comes with the package."""


def _prior_option(without: str) -> Any:
    """Type of ``--prior``; ``without`` is what its help says where the package has no network."""
    hint = f"(default: {PACKAGED})" if PACKAGED in checkpoint.presets() else without
    option = tyro.conf.arg(metavar="WEIGHTS|rendered", help_behavior_hint=hint)
    return Annotated[str | None, option]


PriorName = _prior_option("(required)")
DemoPriorName = _prior_option(f"(default: {RENDERED})")
Precision = Literal["auto", "float32", "bfloat16"]

ADVICE_NETWORK = (
    "next: the prior's predictions do not agree between frames. Are these trained weights, and do "
    "neighbouring images overlap? See keyframes/ and run.json."
)
ADVICE_RENDERED = (
    "next: the source's depth and poses do not agree between frames. Are --depth-scale and the "
    "intrinsics right, and do neighbouring images overlap? See keyframes/ and run.json."
)
"""What to look into when no frame fits the first."""


@dataclasses.dataclass(frozen=True)
class ChosenPrior:
    """A prior, and how to speak of it."""

    prior: TwoViewPrior
    """The prior."""
    name: str
    """What to call it."""
    about: dict[str, Any]
    """Its entry in ``run.json``."""
    advice: str
    """What to look into when the run got lost at once."""


def default_prior() -> str | None:
    """The prior of ``demo`` and ``run`` when none is asked for; None if the package has none."""
    # Its path and not its name: there may be a folder of that name where the command is called.
    return str(checkpoint.PRETRAINED / PACKAGED) if PACKAGED in checkpoint.presets() else None


def chosen_or_default(asked: str | None) -> str:
    """What ``--prior`` says, or the network that comes with the package.

    Raises:
        SourceError: nothing was asked for, and there is none.
    """
    name = asked or default_prior()
    if name is None:
        raise SourceError(
            "--prior is missing, and this installation comes without weights; pass the folder that "
            "`mast3r-slam convert FILE OUT` has made of published ones, or --prior rendered for a "
            "source with depth, poses and intrinsics"
        )
    return name


def trained_size(asked: str | None) -> tuple[int, int] | None:
    """Width and height of the images that a prior was trained on, if its card tells.

    Raises:
        CheckpointError: there is a card that cannot be understood.
    """
    name = asked or default_prior()
    if name is None or name == RENDERED or not has_card(weights_folder(name)):
        return None
    try:
        return read_card(weights_folder(name)).image_size
    except CardError as error:
        raise CheckpointError(str(error)) from None


def weights_folder(name: str) -> pathlib.Path:
    """Folder of the weights that ``--prior`` names: of a preset, unless it is a path."""
    folder = pathlib.Path(name)
    is_preset = not folder.exists() and name in checkpoint.presets()
    return checkpoint.PRETRAINED / name if is_preset else folder


def rendered_prior(noise: GeometryNoise) -> ChosenPrior:
    """The prior that knows the geometry."""
    return ChosenPrior(
        RenderedGeometryPrior(noise),
        rendered_name(noise),
        {"kind": RENDERED, "noise": dataclasses.asdict(noise)},
        ADVICE_RENDERED,
    )


def rendered_name(noise: GeometryNoise) -> str:
    """What to call the prior that knows the geometry, with all that it gets wrong."""
    sizes = [
        f"{name} {100 * value:g} %"
        for name, value in dataclasses.asdict(noise).items()
        if name in ("depth", "bias", "scale", "drift") and value
    ]
    sizes += [f"descriptors {noise.descriptor:g}"] if noise.descriptor else []
    return f"rendered geometry; noise: {', '.join(sizes) or 'none'}"


def network_prior(weights: str, precision: Precision = "auto") -> ChosenPrior:
    """The network of a folder or preset, with its retrieval model if there is one.

    Raises:
        CheckpointError: the weights cannot be used.
    """
    if precision == "auto":
        precision = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    dtype = None if precision == "float32" else jnp.bfloat16
    folder = weights_folder(weights)
    packaged = folder.parent == checkpoint.PRETRAINED
    return ChosenPrior(
        MASt3RPrior.load(folder, dtype=dtype),
        f"MASt3R, the {folder.name} one of this package" if packaged else f"MASt3R from {weights}",
        {
            "kind": "mast3r",
            "weights": folder.name if packaged else weights,
            "precision": precision,
        },
        ADVICE_NETWORK,
    )


def require_weights(weights: str) -> None:
    """Refuse, before any work is done, what ``--prior`` may say but is no network.

    Raises:
        SourceError: there are no such weights.
    """
    path = weights_folder(weights)
    if path.is_file():
        if (path.parent / CONFIG).is_file() and path.suffix == ".safetensors":
            raise SourceError(f"{path}: is one file of the weights; pass the folder {path.parent}")
        raise SourceError(
            f"{path}: is a file, not a folder of converted weights; convert it first: "
            f"mast3r-slam convert {path} {path.with_suffix('').name}-jax"
        )
    if not path.exists():
        raise SourceError(
            f"{weights}: no such weights; convert published ones with "
            "`mast3r-slam convert FILE OUT`, or say --prior rendered for a source with "
            "depth, poses and intrinsics"
        )
    missing = [name for name in (WEIGHTS, CONFIG) if not (path / name).is_file()]
    if missing:
        raise SourceError(
            f"{path}: no checkpoint folder, it has no {' and no '.join(missing)}; published "
            "weights are converted with `mast3r-slam convert FILE OUT`"
        )
