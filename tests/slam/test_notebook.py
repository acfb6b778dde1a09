"""What a reconstruction shows of itself in a terminal and in a notebook."""

import base64
import dataclasses
import html.parser
import io
import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from slam import plots
from tests.slam import pieces
from tests.slam.pieces import made_up


class Parsed(html.parser.HTMLParser):
    """Rows of a table by their heading, images, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, str] = {}
        self.images: list[np.ndarray] = []
        self.open, self.texts = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            kind, _, data = dict(attrs)["src"].partition(",")
            assert kind == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                self.images.append(np.asarray(image.convert("RGB")))
        else:
            assert tag in ("div", "table", "caption", "tr", "th", "td")
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            name, value = self.texts[-2:]
            self.rows[name] = value

    def handle_data(self, data):
        self.texts.append(data)


def test_one_line_tells_name_sizes_and_verdict():
    assert repr(made_up("KtK", ((0, 1),))) == (
        "<Reconstruction 'pieces', 3 frames, 2 keyframes: all 3 frames have a pose, 2 keyframes>"
    )
    lost = made_up("K...", ())
    assert repr(lost) == f"<Reconstruction 'pieces', 4 frames, 1 keyframe: {lost.verdict()}>"


def test_a_notebook_shows_a_table_and_the_trajectory():
    result = dataclasses.replace(made_up(), name="<b>R&D</b>", notes=("cut short",))
    shown = Parsed(result._repr_html_())
    assert shown.texts[0] == "<b>R&D</b>"
    assert shown.rows == {
        "verdict": result.verdict(),
        "frames with a pose": "12 of 16",
        "keyframes": "6",
        "links": "5, 0 of them loop links",
        "pieces of the map": "2",
        "error, every frame": str(result.evaluate()),
        "speed": "15.2 frames per second after the first",
        "note": "cut short",
    }
    (picture,) = shown.images
    blue = np.abs(picture.astype(int) - (31, 95, 191)).max(axis=2) <= 2
    assert blue.sum() > 20 and max(picture.shape) < 400
    assert len(result._repr_html_()) < 40_000  # it is stored with the notebook


def test_a_notebook_shows_what_there_is_of_a_failed_run():
    result = dataclasses.replace(made_up("...", (), with_truth=False), timing={})
    shown = Parsed(result._repr_html_())
    assert set(shown.rows) == {"verdict", "frames with a pose", "keyframes", "links"}
    assert shown.rows["frames with a pose"] == "0 of 3" and shown.images == []


def test_the_trajectory_goes_onto_axes_that_are_there():
    axes = Figure().subplots()
    result = made_up()
    assert result.plot_trajectory(axes, submap=3) is axes
    (truth, estimate, *_) = axes.get_lines()
    assert (truth.get_label(), estimate.get_label()) == ("ground truth", "estimate")
    # In true coordinates, seen along the axis in which the circle is flat.
    expected = pieces.truth(16)[12:16, :3, 3][:, [2, 0]]
    for line in (truth, estimate):
        np.testing.assert_allclose(line.get_xydata(), expected, atol=1e-5)


def test_figures_show_themselves():
    result = made_up()
    for picture in (result.plot_trajectory(), result.plot_map(), result.plot_keyframes()):
        with Image.open(io.BytesIO(picture._repr_png_())) as image:
            assert image.format == "PNG" and min(image.size) > 100


@pytest.mark.parametrize(
    ("limit", "submap", "slots", "title"),
    [
        (12, None, [0, 1, 2, 3], "pieces: largest of 2 pieces: 4 of 4 keyframes"),
        (3, 0, [0, 2, 3], "pieces: largest of 2 pieces: 3 of 4 keyframes"),
        (1, 3, [4], "pieces: number 2 by size of 2 pieces: 1 of 2 keyframes"),
    ],
)
def test_keyframes_are_shown_with_their_depth_in_the_map(monkeypatch, limit, submap, slots, title):
    told, draw = {}, plots.plot_views

    def remember(images, names, depths, **options):
        told.update(images=images, names=names, depths=depths, **options)
        return draw(images, names, depths, **options)

    monkeypatch.setattr(plots, "plot_views", remember)
    made_up().plot_keyframes(limit, submap=submap)
    scale = pieces.WORLDS[1 if submap == 3 else 0][0]
    depths = [scale * pieces.points_C(slot)[:, 2].reshape(4, 6) for slot in slots]
    np.testing.assert_allclose(told["depths"], depths, rtol=1e-6)  # float32
    assert told["images"][:, 0, 0, 0].tolist() == [10 * slot for slot in slots]
    frames = [0, 2, 7, 9, 12, 14]
    assert told["names"] == [f"frame {frames[slot]}" for slot in slots] and told["title"] == title


def test_keyframes_without_depth_or_without_any():
    assert len(made_up().plot_keyframes(depth=False).axes) == 4
    assert made_up("...", ()).plot_keyframes().axes == []
    with pytest.raises(ValueError, match="limit=0: at least one keyframe must be shown"):
        made_up().plot_keyframes(0)


class FakeViewer:
    """Stands in for the browser's viewer, and remembers what happened."""

    def __init__(self, host, port, *, live):
        assert host == "127.0.0.1" and port == 0 and not live
        self.url, self.closed, self.shown = "http://127.0.0.1:1234", False, []

    def show(self, snapshot):
        self.shown.append(snapshot.submap)

    def html(self):
        return f'<p class="x">map {self.shown[0]} & more</p>'

    def close(self):
        self.closed = True


def test_the_map_is_shown_live_or_alone(monkeypatch):
    made = []

    def make(*args, **options):
        made.append(FakeViewer(*args, **options))
        return made[-1]

    module = types.ModuleType("slam.viewer")
    monkeypatch.setitem(sys.modules, "slam.viewer", module)
    monkeypatch.setattr(module, "Viewer", make, raising=False)

    live = made_up().show(height=321)
    assert 'src="http://127.0.0.1:1234"' in live._repr_html_() and "321" in live._repr_html_()
    assert live.url == "http://127.0.0.1:1234" and made[0].shown == [0] and not made[0].closed
    live.close()
    assert made[0].closed

    alone = made_up().show(standalone=True, submap=3)
    (attributes,) = windows(alone._repr_html_())
    assert attributes["srcdoc"] == '<p class="x">map 3 & more</p>' and "src" not in attributes
    assert made[1].closed and alone.url is None
    alone.close()
    with pytest.raises(ValueError, match="no submap has the number 7"):
        made_up().show(submap=7)
    assert len(made) == 2  # none is left behind


def windows(text: str) -> list[dict]:
    """Attributes of the inner windows of a page."""
    found = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append(dict(attrs))
    parser.feed(text)
    return found
