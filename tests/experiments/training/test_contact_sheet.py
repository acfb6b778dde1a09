import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.training.contact_sheet import draw_pairs
from experiments.training.types import PairBatch


def plain_pairs(count):
    """Views of one colour each, orange and blue, with a few matches of the second pair only."""
    shape = (count, 12, 16, 3)
    pixels = np.stack([np.arange(4), np.arange(4)], axis=-1)[None].repeat(count, axis=0)
    matched = np.zeros((count, 4), bool)
    matched[1, :3] = True
    return PairBatch(
        images_1=jnp.broadcast_to(jnp.array([1.0, 0.0, -1.0]), shape),
        images_2=jnp.broadcast_to(jnp.array([-1.0, -1.0, 1.0]), shape),
        points_1=jnp.ones(shape),
        points_2=jnp.ones(shape),
        valid_1=jnp.ones(shape[:3], bool),
        valid_2=jnp.ones(shape[:3], bool),
        pixels_1=jnp.asarray(pixels),
        pixels_2=jnp.asarray(pixels),
        matched=jnp.asarray(matched),
        metric=jnp.ones(count, bool),
        T_12=jnp.broadcast_to(jnp.eye(4), (count, 4, 4)),
    )


@pytest.mark.parametrize("count", [2, 5])
def test_sheet_shows_both_views_of_every_pair_and_lines_where_they_match(tmp_path, count):
    draw_pairs(tmp_path / "pairs.png", plain_pairs(count), most=4)
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.png"]
    picture = np.asarray(Image.open(tmp_path / "pairs.png").convert("RGB")).astype(int)
    shown = min(count, 4)
    rows = -(-shown // 2)
    cells = [
        cell for row in np.array_split(picture, rows) for cell in np.array_split(row, 2, axis=1)
    ]
    lines = []
    for n, cell in enumerate(cells):
        orange = np.abs(cell - [255, 128, 0]).max(axis=-1) < 3
        blue = np.abs(cell - [0, 0, 255]).max(axis=-1) < 3
        if n >= shown:
            assert not orange.any() and not blue.any()
            continue
        assert 0.2 < orange.mean() < 0.5 and 0.2 < blue.mean() < 0.5
        # Orange is left of blue, and only lines lie over them.
        left = np.flatnonzero(orange.any(axis=0)).max()
        assert left < np.flatnonzero(blue.any(axis=0)).min()
        over = cell[:, np.flatnonzero(orange.any(axis=0)).min() : left]
        inside = over[orange.any(axis=1)]
        lines.append((np.abs(inside - [255, 128, 0]).max(axis=-1) > 60).mean())
    assert lines[1] > 0.005 and max(lines[:1] + lines[2:]) < 0.001
