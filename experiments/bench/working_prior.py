"""A prior that says what the rendered geometry says, and works as hard as a network."""

from typing import Any

import jax
import jax.numpy as jnp

from mast3r_jax.retrieval import RetrievalModel
from ops.records import Record, record
from slam.priors import MASt3RPrior, RenderedGeometryPrior
from slam.types import Frame


@record
class WorkingPrior(Record):
    """The rendered geometry, and the whole work of a network, whose answers are not used."""

    geometry: RenderedGeometryPrior
    """What is said."""
    network: MASt3RPrior
    """What is computed."""

    def encode(self, frame: Frame) -> Any:
        """Both encodings."""
        geometry = self.geometry.encode(frame)
        return BothEncodings(geometry.features, geometry, self.network.encode(frame))

    def decode(self, encoding_1: Any, encoding_2: Any) -> Any:
        """The geometry's pointmaps; a number of the network's is added to them times 0."""
        views = self.geometry.decode(encoding_1.geometry, encoding_2.geometry)
        worked = self.network.decode(encoding_1.network, encoding_2.network)

        def marked(view: Any, work: Any) -> Any:
            nothing = 0 * sum(jnp.mean(leaf) for leaf in jax.tree.leaves(work))
            return view.replace(points=view.points + jnp.nan_to_num(nothing).astype(jnp.float32))

        return tuple(marked(view, work) for view, work in zip(views, worked, strict=True))

    @property
    def retrieval(self) -> RetrievalModel:
        """Looks up earlier views by the geometry's features."""
        return self.geometry.retrieval


@record
class BothEncodings(Record):
    """What both priors need of a frame."""

    features: Any
    """The geometry's, for retrieval."""
    geometry: Any
    network: Any
