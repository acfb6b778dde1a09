"""The MASt3R two-view reconstruction network in Flax: images in, pointmaps out."""

from mast3r_jax import losses
from mast3r_jax.checkpoint import CheckpointError, load, save
from mast3r_jax.config import ConfigError, MASt3RConfig
from mast3r_jax.image import ImageTransform, PreparedImage, prepare_image
from mast3r_jax.model import MASt3R
from mast3r_jax.pointmap import Pointmap
from mast3r_jax.retrieval import RetrievalModel, has_retrieval, load_retrieval, save_retrieval

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ImageTransform",
    "MASt3R",
    "MASt3RConfig",
    "Pointmap",
    "PreparedImage",
    "RetrievalModel",
    "has_retrieval",
    "load",
    "load_retrieval",
    "losses",
    "prepare_image",
    "save",
    "save_retrieval",
]
