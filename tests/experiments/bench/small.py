"""Results made of nothing: machinery is tested without measuring anything."""

from experiments.bench.ceilings import Ceilings
from experiments.bench.plan import quick_plan
from experiments.bench.results import Results, StageResult
from experiments.bench.stage import OURS, Agreement, Peer, Stage, Work, absent
from experiments.bench.system import SystemTimes
from experiments.bench.timing import Samples

CEILINGS = Ceilings(10.0, {"float32": 100.0, "float64": 50.0}, {})
MACHINE = {"cpu": "a processor", "cores": 2, "backend": "cpu", "device": "cpu", "versions": {}}


def samples(*ms: float) -> Samples:
    return Samples(tuple(ms))


def stage_result(ours: float = 2.0, error: float = 0.0) -> StageResult:
    """A stage that takes ``ours`` ms, one peer that takes 1 ms, and three others."""
    agreement = Agreement("difference", error, 1e-4)
    stage = Stage(
        "optimize", "512x384, 32 kf", lambda: None, 1.25, Work(1e7, 1e6),
        (
            Peer("C++ OpenMP", lambda: None, agreement=agreement),
            absent("PyTorch", "PyTorch is not installed: pip install torch"),
            Peer("k-d tree, points", lambda: None, same_method=False),
            Peer("brute force, desc.", agreement=Agreement("wrong", 0.75, 0.5), same_method=False),
        ),
        about={"iterations": 10},
        gate_ceiling=True,
    )  # fmt: skip
    taken = {OURS: samples(ours, ours, ours), "k-d tree, points": samples(1234.5, 1e3, 54321.0)}
    if agreement.holds:
        taken["C++ OpenMP"] = samples(1.0, 1.0, 1.0)
    return StageResult(stage.without_calls(), taken, CEILINGS)


def results(ours: float = 2.0, error: float = 0.0) -> Results:
    stages = {
        name: {"median_s": s, "p99_s": s, "first_s": s, "later_sum_s": s, "calls": 3}
        for name, s in {"encode": 1e-3, "decode": 2e-3, "match": 1e-3, "solve": 1e-3}.items()
    }
    stages["verify"] = {**stages["encode"], "median_s": float("nan")}
    system = SystemTimes(
        on="small 256x192", frames_per_second=69.8, latency=samples(6.0, 7.0, 30.0), frames=5,
        compiled_frames=1, first_pass_s=20.0, tracked=5, keyframes=2, stages=stages,
    )  # fmt: skip
    return Results(quick_plan(), MACHINE, CEILINGS, [stage_result(ours, error)], system, True)
