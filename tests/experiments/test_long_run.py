"""A compilation is explained by a stage's first call or by a buffer that doubled, and only so."""

from experiments.long_run import unexplained


def _records(*compiled_by_frame):
    return [
        {"frame": frame, "seconds": {"commit": 0.1}, "compiled": compiled}
        for frame, compiled in enumerate(compiled_by_frame)
    ]


def test_first_call_and_doubling_explain():
    records = _records({"commit": 1}, {}, {"commit": 1}, {})
    assert unexplained(records, [{"frame": 1, "factors": 512}]) == []


def test_a_stage_may_be_called_late_after_a_doubling():
    records = _records({"commit": 1}, {}, {}, {"optimize": 1})
    for record in records[::3]:
        record["seconds"]["optimize"] = 0.1
    assert unexplained(records, [{"frame": 1, "keyframes": 128}]) == []


def test_anything_else_is_named():
    records = _records({"commit": 1}, {"commit": 1}, {}, {"commit": 2})
    strange = unexplained(records, [{"frame": 2, "factors": 512}])
    assert strange == ["commit 1 times at frame 1", "commit 2 times at frame 3"]
