"""The judge of the relocalisation experiment sees wrong poses, mixed rooms and late recoveries."""

import dataclasses
import types

import numpy as np
import pytest

from experiments.relocalization import SCENARIOS, judge
from slam.evaluation import AteResult
from slam.io.trajectory_file import Trajectory

FRAMES, MOVED, STARTED, BACK = 200, 60, 90, 130


class Pieces:
    """As much of a reconstruction as the judge reads; piece 0 is the room, piece 1 the other."""

    def __init__(self, T_WC, submap):
        self.T_WC, self.submap, self.notes = T_WC, submap, ()
        self.num_frames, self.tracked = len(submap), submap >= 0
        self.relocalized = np.arange(len(submap)) == BACK
        self.is_keyframe = np.isin(np.arange(len(submap)), (0, STARTED, BACK))
        links = (self.is_keyframe & self.relocalized).astype(int)
        self.frames = types.SimpleNamespace(submap=submap, new_links=links)
        self.submaps = tuple(sorted(set(submap[submap >= 0].tolist())))

    def placed_in(self, submap):
        return self.submap == submap

    def trajectory(self, submap):
        inside = self.placed_in(submap)
        return Trajectory(np.flatnonzero(inside).astype(float), self.T_WC[inside])

    def evaluate(self):
        return AteResult(0.0, 0.0, 0.0, 0.0, 3, 1.0, 0.0, True, 1.0)


@pytest.fixture
def story():
    """The truth of the scenario ``other-room``, and a run that got everything right."""
    rng = np.random.default_rng(0)
    T_WC = np.tile(np.eye(4), (FRAMES, 1, 1))
    T_WC[:, :3, 3] = np.cumsum(rng.normal(size=(FRAMES, 3)), axis=0)
    frame = np.arange(FRAMES)
    elsewhere = (frame >= MOVED) & (frame < BACK)
    submap = np.where(elsewhere, np.where(frame >= STARTED, 1, -1), 0)
    return types.SimpleNamespace(T_WC=T_WC, elsewhere=elsewhere), Pieces(T_WC.copy(), submap)


def _faults(source, result, **changes):
    scenario = dataclasses.replace(SCENARIOS["other-room"], **changes)
    return judge(scenario, source, result, limit=0.15, patience=20).faults


def test_a_right_run_has_no_faults(story):
    assert _faults(*story) == ()


def test_a_wrong_pose_is_a_fault(story):
    source, result = story
    result.T_WC[BACK + 5, 0, 3] += 1.0
    assert _faults(source, result) == ("wrong poses",)


def test_frames_of_both_rooms_in_one_piece_are_a_fault(story):
    source, result = story
    result.submap[MOVED + 10] = 0
    assert _faults(source, result) == ("piece 0 holds frames of both rooms",)


def test_a_late_recovery_is_a_fault(story):
    source, result = story
    result.submap[BACK : BACK + 25] = -1
    assert _faults(source, result) == ("not found again in time",)


def test_a_submap_at_another_time_is_a_fault(story):
    assert _faults(*story, starts=None) == ("submaps started at [90], not []",)
    assert _faults(*story, pieces=1) == ("2 pieces",)
