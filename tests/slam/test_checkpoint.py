"""Runs that are killed and gone on with, and maps that a later camera finds its place in."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slam import runner
from slam.checkpoint import CHECKPOINT, MAP, Checkpointing, on_host, read
from slam.exports.cameras import cameras_of
from slam.exports.folders import COLMAP_FILES
from slam.io.frames import SourceError
from slam.io.preparation import prepare_frames
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior
from slam.reconstruction import Reconstruction
from slam.state import init_state
from tests.slam import rim


class Killed(Exception):
    """What takes the place of a power cut."""


class Dying(rim.Frames):
    """The walk, of which the process does not see all."""

    def __init__(self, last: int) -> None:
        super().__init__(rim.source().frames)
        self.last = last

    def __iter__(self):
        yield from self.frames[: self.last]
        raise Killed


def assert_same(one: Reconstruction, other: Reconstruction) -> None:
    """Bit for bit, everything but the times."""
    for name in ("frames", "keyframes", "images", "links", "observations", "timestamps"):
        jax.tree.map(np.testing.assert_array_equal, getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.trajectory().T_WC, other.trajectory().T_WC)
    np.testing.assert_array_equal(one.point_cloud().points, other.point_cloud().points)


@pytest.mark.slow
@pytest.mark.parametrize("last", [1, 7, 12])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, last):
    saving = Checkpointing(tmp_path, seconds=0.0)
    with pytest.raises(Killed):
        runner.run(Dying(last), rim.EXACT, stepper=rim.stepper(), checkpoint=saving)
    assert read(tmp_path).num_frames == last
    saving = dataclasses.replace(saving, resume=True)
    told = []
    result = runner.run(
        rim.source(), rim.EXACT, stepper=rim.stepper(), checkpoint=saving, on_progress=told.append
    )
    assert [progress.frame for progress in told] == list(range(last, result.num_frames))
    assert result.timing["resumed_at_frame"] == last
    assert_same(result, rim.result())
    # Killed after the last frame, before the results were written.
    again = runner.run(rim.source(), rim.EXACT, stepper=rim.stepper(), checkpoint=saving)
    assert_same(again, rim.result())


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """A folder with the map of the walk."""
    folder = tmp_path_factory.mktemp("mapped")
    assert rim.result().system is not None
    rim.result().system.write(folder / MAP)
    return folder


@pytest.mark.slow
def test_a_new_camera_finds_its_place_in_an_old_map(mapped, tmp_path):
    old = rim.result()
    later = rim.Frames([dataclasses.replace(f, index=i) for i, f in enumerate(rim.walk()[4:9])])
    result = runner.run(later, rim.EXACT, stepper=rim.stepper(), map=mapped)
    assert result.tracked.all() and result.submaps == (0,)
    assert result.relocalized.tolist() == [True, False, False, False, False]
    # In the world of the old map, whose first keyframe was at the walk's first camera.
    truth = np.stack([frame.T_WC for frame in rim.walk()])
    expected = np.linalg.inv(truth[0]) @ truth[4:9]
    np.testing.assert_allclose(result.trajectory().T_WC, expected, atol=1e-2)
    size = old.num_keyframes
    before = np.asarray(result.keyframes.frame_index)[:size]
    np.testing.assert_array_equal(before, old.keyframes.frame_index - old.num_frames)
    np.testing.assert_array_equal(result.images[:size], old.images)
    assert len(result.links) >= len(old.links)
    assert len(result.point_cloud().points) >= len(old.point_cloud().points)
    # Files and pictures call the old keyframes by their places, and so do those of loaded results.
    result.save(tmp_path / "later", keep_map=False)
    names = [f"map-{slot:06d}.png" for slot in range(size)]
    names += [f"{number:06d}.png" for number in np.flatnonzero(result.is_keyframe)]
    files = sorted(path.name for path in (tmp_path / "later" / "keyframes").iterdir())
    assert files == sorted(names)
    loaded = Reconstruction.load(tmp_path / "later")
    assert list(cameras_of(loaded).names) == names
    assert all(re.fullmatch(COLMAP_FILES, f"images/{name}") for name in names)
    headings = [axes.get_title() for axes in loaded.plot_keyframes(depth=False).axes]
    assert headings[:size] == [f"map keyframe {slot}" for slot in range(size)]


def other_prior():
    return RenderedGeometryPrior(GeometryNoise())


def smaller():
    return rim.source(rgb=np.zeros((64, 96, 3), np.uint8), depth=np.ones((64, 96), np.float32))


@pytest.mark.parametrize(
    ("source", "prior", "options", "words"),
    [
        (rim.source, other_prior, {}, "was made with another prior"),
        (smaller, lambda: rim.EXACT, {}, "its images are 128x96, these are 128x80"),
        (rim.source, lambda: rim.EXACT, {"calibrated": True}, "was made without intrinsics"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(mapped, source, prior, options, words):
    with pytest.raises(SourceError, match=re.escape(f"{mapped / MAP}: {words}")):
        runner.run(source(), prior(), stepper=rim.stepper(), map=mapped, **options)


def test_folders_without_a_checkpoint_are_refused(tmp_path, mapped):
    for folder, part, words in [
        (tmp_path / "none", CHECKPOINT, "no such folder"),
        (tmp_path, CHECKPOINT, "holds no checkpoint of a run"),
        (tmp_path, MAP, "holds no map of a run"),
    ]:
        with pytest.raises(SourceError, match=re.escape(f"{folder}: {words}")):
            read(folder, part)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SourceError, match="has finished"):
        read(tmp_path)
    with pytest.raises(SourceError, match="did not keep its map"):
        read(tmp_path, MAP)
    (tmp_path / CHECKPOINT).mkdir()
    with pytest.raises(SourceError, match="no complete checkpoint"):
        read(tmp_path)
    shutil.rmtree(tmp_path / CHECKPOINT)
    shutil.copytree(mapped / MAP, tmp_path / CHECKPOINT)
    data = max((tmp_path / CHECKPOINT).rglob("*"), key=lambda p: p.stat().st_size)
    content, middle = data.read_bytes(), data.stat().st_size // 2
    data.write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])
    with pytest.raises(SourceError, match="is damaged"):
        read(tmp_path)


class Looking:
    """An observer that opens its snapshots late."""

    def __init__(self) -> None:
        self.asked, self.pending = 0, []

    def ready(self) -> bool:
        self.asked += 1
        return self.asked % 2 == 1

    def take(self, snapshot) -> None:
        self.pending.append(snapshot)

    def resume(self) -> None:
        pass


def test_an_observer_sees_the_map_grow_and_disturbs_nothing():
    looking = Looking()
    result = runner.run(rim.source(), rim.EXACT, stepper=rim.stepper(), observer=looking)
    assert_same(result, rim.result())
    assert looking.asked == result.num_frames
    shots = [pending() for pending in looking.pending]
    # However the observer answered at the last frame, it is shown the end.
    assert [shot.num_frames for shot in shots] == [*range(1, result.num_frames, 2), 14]
    seen = {}
    for shot in shots:
        seen |= shot.changed
        keyframe = int(result.frames.num_keyframes[shot.num_frames - 1])
        assert set(seen) == set(range(keyframe)) and len(shot.keyframe_poses) == keyframe
        np.testing.assert_array_equal(shot.image.shape, (96, 128, 3))
        assert np.nanmedian(shot.depth) > 0.5  # metres: it is a room
    last, whole = shots[-1], result.snapshot()
    np.testing.assert_allclose(last.positions, whole.positions, atol=1e-6)
    np.testing.assert_allclose(last.pose[4:7], result.trajectory().positions[-1], atol=1e-6)
    np.testing.assert_array_equal(last.links, whole.links)
    for slot, view in seen.items():
        np.testing.assert_array_equal(view.image, whole.changed[slot].image)
        assert view.frame_index == whole.changed[slot].frame_index
    # All but the last keyframe are shown as they ended.
    done = max(seen) - 1
    np.testing.assert_allclose(seen[done].points, whole.changed[done].points, atol=1e-6)


def test_copies_do_not_follow_the_state():
    """What is kept survives the step that consumes the state and, on a CPU, reuses its memory."""
    _, frame = next(iter(prepare_frames(rim.source(1), 128)))
    state = init_state(rim.EXACT, rim.CONFIG, frame)
    host = on_host(state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: jnp.full_like(x, 7), s), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    assert (host.keyframes.T_WC.wxyz_xyz_scale[:, 7] == 1).all()
    assert not host.keyframes.pointmap.points.any()
