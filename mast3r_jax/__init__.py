"""The MASt3R two-view reconstruction network in Flax: images in, pointmaps out."""

from mast3r_jax.checkpoint import CheckpointError, load, save
from mast3r_jax.config import ConfigError, MASt3RConfig
from mast3r_jax.image import ImageTransform, PreparedImage, prepare_image
from mast3r_jax.model import MASt3R
from mast3r_jax.pointmap import Pointmap

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ImageTransform",
    "MASt3R",
    "MASt3RConfig",
    "Pointmap",
    "PreparedImage",
    "load",
    "prepare_image",
    "save",
]
