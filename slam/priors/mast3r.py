"""The MASt3R network as the SLAM's two-view prior."""

import os

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from mast3r_jax import CheckpointError, MASt3R, Pointmap, load
from mast3r_jax.checkpoint import find
from mast3r_jax.retrieval import RetrievalModel, has_retrieval, load_retrieval
from ops.records import Record, record, static_field
from slam.types import Frame


@record
class MASt3REncoding(Record):
    """Encoder tokens of one image (or of a batch, with a leading axis)."""

    features: Float[Array, "*batch n c"]
    """Tokens after the encoder's last normalisation, row-major over 16x16 patches."""
    image_shape: tuple[int, int] = static_field()
    """Height and width of the image the tokens came from."""


@record
class MASt3RPrior(Record):
    """MASt3R: pixels in, pointmaps out; reads nothing of a frame but its image."""

    model: MASt3R
    """The network."""
    retrieval: RetrievalModel | None = None
    """Looks up earlier views by the encoder's tokens; None leaves loops and lost frames open."""

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], *, dtype: DTypeLike | None = None
    ) -> "MASt3RPrior":
        """The network of a folder or preset, with the retrieval model beside it if there is one.

        ``dtype`` is that of ``MASt3R``.

        Raises:
            CheckpointError: one of them cannot be used, or they do not belong together.
        """
        folder = find(name_or_path)
        model = load(folder, dtype=dtype)
        if not has_retrieval(folder):
            return cls(model)
        retrieval = load_retrieval(folder)
        if retrieval.token_dim != model.config.enc_dim:
            raise CheckpointError(
                f"{folder}: its retrieval weights read {retrieval.token_dim} channels but its "
                f"network makes {model.config.enc_dim}; convert the retrieval checkpoint of this "
                "network"
            )
        return cls(model, retrieval)

    def encode(self, frame: Frame) -> MASt3REncoding:
        """Tokens of the frame's image, normalised as the network was trained (spec: [-1, 1])."""
        image = (jnp.asarray(frame.image).astype(jnp.float32) / 255.0 - 0.5) / 0.5
        height, width = frame.image.shape[:2]
        return MASt3REncoding(self.model.encode(image[None])[0], (height, width))

    def keep(self, encoding: MASt3REncoding) -> MASt3REncoding:
        """In the type that the decoder reads tokens in: halved by a network in bfloat16."""
        return encoding.replace(features=encoding.features.astype(self.model.token_dtype))

    def decode(
        self, encoding_1: MASt3REncoding, encoding_2: MASt3REncoding
    ) -> tuple[Pointmap, Pointmap]:
        """Pointmaps of a batch of pairs, both in view 1's camera."""
        return self.model.decode(
            encoding_1.features,
            encoding_2.features,
            encoding_1.image_shape,
            encoding_2.image_shape,
        )
