"""Distances to the surfaces of a room, against what its ray caster sees; and the report."""

import numpy as np

from experiments.export_accuracy import distance_to_surfaces, report
from slam.io.procedural import parse_procedural
from tests.slam import rim


def test_what_the_ray_caster_sees_is_on_the_surfaces():
    source = parse_procedural(rim.URI)
    for frame in rim.walk()[:3]:
        height, width = frame.depth.shape
        v, u = np.mgrid[0:height, 0:width].reshape(2, -1)
        rays = np.linalg.solve(frame.K, np.stack([u, v, np.ones_like(u)]).astype(float)).T
        for scale in (1.0, 0.97):
            points = rays * (scale * frame.depth.reshape(-1, 1))
            apart = distance_to_surfaces(
                source.room, points @ frame.T_WC[:3, :3].T + frame.T_WC[:3, 3]
            )
            if scale == 1:
                assert np.percentile(apart, 99) < 1e-4  # metres
            else:
                assert np.median(apart) > 0.01


def test_a_report_of_exact_geometry(tmp_path):
    lines = list(report(rim.result(), parse_procedural(rim.URI).room, tmp_path))
    assert float(lines[0].split()[2]) < 0.5  # cm
    assert "seen" in lines[2] and "by 2" in lines[2]
    before, after = (float(line.split(" px")[0].split()[-1]) for line in lines[3:])
    assert after < before < 0.5  # it minimises the reprojection error
