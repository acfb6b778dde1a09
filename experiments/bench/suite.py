"""Runs all stages that are asked for, one after the other, and writes what it has after each."""

import pathlib
from collections.abc import Callable, Iterator

from experiments.bench.ceilings import Ceilings, measure_ceilings
from experiments.bench.geometry import geometry_stages
from experiments.bench.linear import solver_stages
from experiments.bench.machine import describe_machine
from experiments.bench.matching import matching_stages
from experiments.bench.network import network_stages
from experiments.bench.plan import Plan
from experiments.bench.results import Results, StageResult
from experiments.bench.stage import OURS, Stage
from experiments.bench.system import measure_system
from experiments.bench.timing import take_turns


def run(
    plan: Plan,
    folder: pathlib.Path,
    report: Callable[[str], None],
    ceilings: Ceilings | None = None,
) -> Results:
    """Measure.

    Args:
        plan: what.
        folder: where ``bench.json`` is written, anew after every stage.
        report: told a line about whatever was measured or is begun.
        ceilings: of this machine, if they are known already.
    """
    if ceilings is None:
        report("ceilings of this machine")
        ceilings = measure_ceilings(quick=plan.quick)
        report(f"  {described(ceilings)}")
    results = Results(plan, describe_machine(), ceilings)
    results.write(folder)
    for stage in stages(plan):
        results.stages.append(measured(stage, plan, results.ceilings))
        report(f"{stage.label}: {_summary(results.stages[-1])}")
        results.write(folder)
    if plan.wants("system"):
        report(f"system: {plan.frames} frames, twice")
        results.system = measure_system(plan)
        report(f"  {results.system.frames_per_second:.3g} frames per second")
    results.complete = True
    results.write(folder)
    return results


def stages(plan: Plan) -> Iterator[Stage]:
    """All stages but the whole system, each made when it is its turn."""
    yield from network_stages(plan)
    yield from matching_stages(plan)
    yield from geometry_stages(plan)
    yield from solver_stages(plan)


def measured(stage: Stage, plan: Plan, ceilings: Ceilings) -> StageResult:
    """Time a stage and those of its peers that are here and agree, in turns."""
    calls = {OURS: stage.call}
    for peer in stage.peers:
        if peer.status == "measured" and peer.call is not None:
            calls[peer.name] = peer.call
    samples = take_turns(calls, plan.repeats, plan.seconds)
    return StageResult(stage.without_calls(), samples, ceilings)


def described(ceilings: Ceilings) -> str:
    """One line."""
    products = [f"{name} product {rate:.3g}" for name, rate in ceilings.gflop_per_s.items()]
    return f"copy {ceilings.copy_gb_per_s:.3g} GB/s; {', '.join(products)} GFLOP/s"


def _summary(result: StageResult) -> str:
    ours = f"{result.samples[OURS].median:.3g} ms"
    others = [
        f"{name} {samples.median:.3g}" for name, samples in result.samples.items() if name != OURS
    ]
    return f"{ours} ({', '.join(others)})" if others else ours
