"""What was measured, as tables of at most 80 columns."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from experiments.bench.results import Results, StageResult
from experiments.bench.stage import OURS
from experiments.bench.suite import described
from experiments.bench.system import SystemTimes
from experiments.bench.timing import Samples, quartiles


def report(results: Results) -> RenderableType:
    """Everything, for a terminal."""
    machine = results.machine
    heading = f"{machine['cpu']}, {machine['cores']} cores"
    if machine["device"] != "cpu":
        heading += f"; {machine['device']}"
    parts: list[RenderableType] = [
        Text(heading, style="bold"),
        Text(f"ceilings: {described(results.ceilings)}"),
    ]
    if results.stages:
        parts += [_stages(results.stages), Text(EXPLANATION, style="dim")]
    parts += [Text(line) for line in (*_absent(results.stages), *results.disagreements)]
    if results.system is not None:
        parts += list(_system(results.system))
    return Group(*parts)


EXPLANATION = (
    "Milliseconds of a call: median, and first to third quartile. ceiling: what the nearer ceiling "
    "of this machine would take, in percent of ours. ours/it: above 1, the peer is faster. A peer "
    "marked * has another method, and is compared with the truth only."
)


def as_text(results: Results) -> str:
    """The same as plain text, 80 columns wide."""
    console = Console(width=80, no_color=True, highlight=False)
    with console.capture() as said:
        console.print(report(results))
    return said.get()


def _stages(stages: list[StageResult]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("stage, and its peers", max_width=31)
    for name in ("comp. s", "median", "quartiles", "ceiling", "ours/it"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in stages:
        share, _ = result.share_of_ceiling
        ours = result.samples[OURS]
        table.add_row(
            Text(result.stage.label),
            f"{result.stage.compile_s:.2f}",
            *_times(ours),
            f"{digits(100 * share)} %",
            "",
        )
        for peer in result.stage.peers:
            if peer.name in result.samples:
                over = result.over(peer)
                table.add_row(
                    Text(f"  {peer.name}{'' if peer.same_method else ' *'}"),
                    "",
                    *_times(result.samples[peer.name]),
                    "",
                    "" if over is None else digits(over),
                )
    return table


def _times(samples: Samples) -> tuple[str, str]:
    low, middle, high = quartiles(samples.ms)
    return digits(middle), f"{digits(low)}-{digits(high)}"


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _absent(stages: list[StageResult]) -> Iterator[str]:
    """Who is not here, each with every reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in stages:
        for peer in result.stage.peers:
            why = peer.why_not
            if peer.status == "disagrees" and not peer.same_method and peer.agreement:
                why = f"{100 * peer.agreement.error:.0f} % of its matches are wrong"
            if why:
                reasons.setdefault((peer.name, why), []).append(result.stage.label)
    for (name, why), labels in reasons.items():
        yield f"not measured: {name}: {why} ({', '.join(labels)})"


def _system(system: SystemTimes) -> Iterator[RenderableType]:
    latency = system.to_json()["latency"]
    yield Text(
        f"\nsystem {system.on}: {system.frames_per_second:.3g} frames per second; a frame takes "
        f"{digits(latency['median_ms'])} ms (median), {digits(latency['p99_ms'])} (99 %)",
        style="bold",
    )
    yield Text(
        f"{len(system.latency.ms)} of {system.frames} frames counted, {system.compiled_frames} at "
        f"which something was compiled; {system.tracked} tracked, {system.keyframes} keyframes; "
        f"{system.first_pass_s:.1f} s for the walk before it, which compiles everything"
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("for every")
    table.add_column("", no_wrap=True)
    table.add_column("median ms", justify="right")
    for kind, rows in system.rows.items():
        for number, (row, ms) in enumerate(rows.items()):
            table.add_row("" if number else kind, row, digits(ms))
    yield table
