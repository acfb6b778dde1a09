"""The table, the curves and TensorBoard's files, whole and after a run went on."""

import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments.training.metrics import (
    CURVES,
    TABLE,
    TENSORBOARD,
    MetricLog,
    draw_curves,
    rows_until,
    table_of,
)


def row(step: int, **more: float) -> dict[str, float]:
    return {"step": float(step), "loss": 1.0 / step, **more}


def events(folder) -> list[Event]:
    """All events of the folder's files, in the order of their names."""
    found = []
    for path in sorted((folder / TENSORBOARD).iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, checksum, event, checksum
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_rows_are_in_the_table_and_in_tensorboard(tmp_path):
    log = MetricLog(tmp_path, [])
    rows = [row(1), row(3, rate=7.0), row(4, rate=float("nan"))]
    for each in rows:
        log.add(each)
    log.draw()
    log.close()
    lines = (tmp_path / TABLE).read_text().splitlines()
    assert lines == ["step,loss,rate", "1,1,", "3,0.333333333,7", "4,0.25,nan"]
    read = rows_until((tmp_path / TABLE).read_text(), 100)
    assert [list(r) for r in read] == [["step", "loss"], ["step", "loss", "rate"], list(rows[2])]
    assert read[1] == pytest.approx(rows[1]) and np.isnan(read[2]["rate"])
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    expected = [(1, "loss", 1.0), (3, "loss", 1 / 3), (3, "rate", 7.0), (4, "loss", 0.25)]
    assert [s[:2] for s in scalars] == [e[:2] for e in expected]
    assert [s[2] for s in scalars] == pytest.approx([e[2] for e in expected])


def test_no_step_appears_twice_when_a_run_goes_on(tmp_path):
    log = MetricLog(tmp_path, [])
    for step in (2, 4, 6, 8):
        log.add(row(step))
    log.close()
    # The process was killed while writing its last line; the checkpoint is that of step 4.
    with open(tmp_path / TABLE, "a") as file:
        file.write("1")
    kept = rows_until((tmp_path / TABLE).read_text(), 4)
    assert [r["step"] for r in kept] == [2, 4]
    log = MetricLog(tmp_path, kept)
    log.add(row(5))
    log.close()
    lines = (tmp_path / TABLE).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "2", "4", "5"]
    # TensorBoard forgets what comes after the checkpoint where it reads this.
    begins = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert begins[-1] == 5


def test_a_line_that_was_cut_short_is_left_out():
    whole = table_of([row(2), row(10)])
    assert [r["step"] for r in rows_until(whole, 100)] == [2, 10]
    for cut in range(1, len("10,0.1\r\n") + 1):
        assert [r["step"] for r in rows_until(whole[:-cut], 100)] == [2], cut
    assert rows_until("", 5) == rows_until("step,loss\n", 5) == []


def test_curves_are_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    few = [row(1)]
    many = [row(n, noise=float(rng.normal()), gap=float("nan")) for n in range(1, 200)]
    for rows in (few, few + many[1:]):
        draw_curves(tmp_path / CURVES, rows)
        with Image.open(tmp_path / CURVES) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
