"""The small prior that ships with the package, from nothing: one command, called again and again.

    python -m experiments.small_prior WORK_FOLDER --minutes 9

Every call does what is due next: a slice of training until all steps are made; then the retrieval
model from the network's own tokens, its errors on held-out rooms and perhaps a recording, and the
package with its card. Each part is written as it ends, so that a call may be cut off at any time.
The work folder may be carried to another machine, without ``run/checkpoints`` if its files are too
large for the way: ``run/parts`` holds the same in small ones. ``--finish`` leaves out the steps
that were not made.

Exit status: 0 all is done, 3 more is due (call again), 1 training diverged, 2 the input cannot be
used, 130 interrupted.
"""

import dataclasses
import datetime
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import mast3r_jax
from experiments.prior_quality import judge_prior
from experiments.quality.evaluation import QualityOptions
from experiments.quality.report import card_figures
from experiments.quality.truth import PairChoice
from experiments.training.config import ScheduleConfig, TrainConfig, check_unchanged
from experiments.training.loop import Progress
from experiments.training.metrics import CURVES
from experiments.training.presets import PRESETS
from experiments.training.retrieval import (
    RetrievalFit,
    fit_retrieval,
    look_up_views,
    view_tokens,
)
from experiments.training.run_folder import CHECKPOINTS, MODEL, PARTS, RECORD, saved_config
from experiments.training.trainer import train
from mast3r_jax import CheckpointError, ConfigError
from mast3r_jax.card import ModelCard, sha256_of
from mast3r_jax.checkpoint import PRETRAINED, WEIGHTS, replacing
from mast3r_jax.packaging import package
from slam.io.atomic import atomic_write
from slam.io.frames import SourceError
from slam.priors import MASt3RPrior

RUN, CANDIDATE, LOOKUP, QUALITY = "run", "candidate", "lookup.json", "quality"
COMPILED = "compiled"
"""In the work folder: the training run, the network as it will be packaged, how well its retrieval
model finds views again, its errors, and the programs compiled for all that."""
DONE, MORE = 0, 3
_VIEWS = 2**31 - 1
"""Seed of the views that the retrieval model is made from and tried on; ``quality.FIRST_SEED`` says
why no training run has seen their rooms."""
_RETRIEVAL_SECONDS = 60.0
"""Making the retrieval model is not begun with less time left."""


@dataclasses.dataclass(frozen=True)
class SmallPriorPlan:
    """Everything that decides what comes out."""

    train: TrainConfig
    """Network, data, and how it is trained."""
    retrieval: RetrievalFit
    """How its retrieval model is made."""
    quality: QualityOptions
    """What it is tried on."""
    lookups: int = 512
    """Views that are looked for among as many, to try the retrieval model."""

    @classmethod
    def small(cls) -> "SmallPriorPlan":
        """The network that ships, as ``mast3r-slam train`` would train it: see its presets."""
        return cls(train=PRESETS["small"], retrieval=RetrievalFit(), quality=QualityOptions())

    @classmethod
    def toy(cls) -> "SmallPriorPlan":
        """The same path in a few minutes on two cores; what comes out knows nothing."""
        schedule = ScheduleConfig(steps=40, warmup=5, motion_steps=20)
        return cls(
            train=dataclasses.replace(PRESETS["toy"], schedule=schedule),
            retrieval=RetrievalFit(views=32, num_centroids=16, iterations=5),
            quality=QualityOptions(
                sequences=2, frames=24, pairs=PairChoice(starts=2, overlaps=(0.9, 0.7), reach=15)
            ),
            lookups=16,
        )


class OutOfTime(Exception):
    """The next piece of work might not end before the minutes are over."""


@dataclasses.dataclass(frozen=True)
class SmallPrior:
    """Train, try and package the small prior; call again until it is done."""

    work: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORK_FOLDER")]
    """Where everything is kept between calls."""
    minutes: float = 9.0
    """This call is over by then."""
    finish: bool = False
    """Package what there is, however many steps were made."""
    toy: bool = False
    """A tiny network and few steps: the whole path in a few minutes on two cores."""
    walk: pathlib.Path | None = None
    """A recording with depth, poses and intrinsics, in the layout of TUM's, to try it on too."""
    depth_scale: float | None = None
    """Units per metre of its depth images; 5000 by default."""
    out: pathlib.Path | None = None
    """Folder of the package; by default that of the presets in this source tree."""

    @property
    def plan(self) -> SmallPriorPlan:
        """What is to be done."""
        return SmallPriorPlan.toy() if self.toy else SmallPriorPlan.small()

    def execute(self, began: float | None = None) -> int:
        """Do what is due; returns the exit status.

        Args:
            began: ``time.monotonic()`` when the minutes began; now by default.
        """
        try:
            return Work(self, time.monotonic() if began is None else began).go_on()
        except OutOfTime as part:
            say(f"time is up before {part}; call again to go on")
            return MORE
        except (SourceError, CheckpointError, ConfigError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            say("interrupted; what was written stays, call again to go on")
            return 130


class Work:
    """One call, part by part.

    Args:
        asked: the command.
        began: ``time.monotonic()`` when the call began.
    """

    def __init__(self, asked: SmallPrior, began: float):
        self.asked, self.plan, self.folder = asked, asked.plan, asked.work
        self.began = began
        self.target = asked.out or PRETRAINED / ("toy" if asked.toy else "small")
        if asked.toy and asked.out is None:
            raise SourceError("--toy: what comes out is no use to anybody; say where with --out")

    def go_on(self) -> int:
        """Does what is due; returns the exit status."""
        self.check_plan()
        keep_compiled(self.folder / COMPILED)
        if not (self.trained() or self.asked.finish):
            status = self.train()
            if status != DONE:
                return status
        folder = self.candidate()
        quality = self.judge(folder)
        self.package(folder, quality)
        return DONE

    def check_plan(self) -> None:
        """Refuses to go on with the work of another plan."""
        run = self.folder / RUN
        saved = saved_config(run)
        if saved is not None:
            check_unchanged(str(run), saved, self.plan.train)

    @property
    def seconds_left(self) -> float:
        """Until the minutes are over."""
        return 60 * self.asked.minutes - (time.monotonic() - self.began)

    def trained(self) -> bool:
        """Whether all steps were made."""
        return self._progress()["step"] >= self.plan.train.schedule.steps

    def train(self) -> int:
        """A slice of training; ``DONE`` if it was the last."""
        run = self.folder / RUN
        carried = (run / PARTS).is_dir() and not any((run / CHECKPOINTS).glob("[0-9]*"))
        outcome = train(
            self.plan.train,
            run,
            minutes=self.asked.minutes,
            parts=run / PARTS if carried else None,
            began=self.began,
            report=_reporter(time.monotonic),
            on_signal=lambda: say("stopping after the steps under way"),
        )
        say(f"step {outcome.step} of {self.plan.train.schedule.steps}, written to {run}/")
        if outcome.ended_by == "steps":
            return DONE
        if outcome.ended_by == "divergence":
            say("error: the loss is no number any more; start anew with a smaller learning rate")
            return 1
        say("more is due: call again to go on")
        return 130 if outcome.ended_by == "signal" else MORE

    def candidate(self) -> pathlib.Path:
        """The network with its retrieval model, as it is to be packaged."""
        model, folder = self.folder / RUN / MODEL, self.folder / CANDIDATE
        if not (model / WEIGHTS).is_file():
            raise CheckpointError(f"{model}: there is no network yet; leave out --finish")
        digest = sha256_of(model / WEIGHTS)
        if _read(self.folder / LOOKUP).get("of") == digest:
            return folder
        if self.seconds_left < _RETRIEVAL_SECONDS:
            raise OutOfTime("the retrieval model is made")
        say("making the retrieval model")
        network = mast3r_jax.load(model)
        views, lookups = self.plan.retrieval.views, self.plan.lookups
        # Photographs of pairs as in training, of other rooms.
        fit_key, try_key, means_key = jax.random.split(jax.random.key(_VIEWS), 3)
        tokens = view_tokens(network, fit_key, self.plan.train.pairs, views)
        retrieval = fit_retrieval(tokens, means_key, self.plan.retrieval)
        retrieval = jax.tree.map(lambda x: x.astype(jnp.float16), retrieval)
        with replacing(folder) as draft:
            mast3r_jax.save(draft, network, dtype=np.float16)
            mast3r_jax.save_retrieval(draft, retrieval)
        found = look_up_views(
            mast3r_jax.load_retrieval(folder),
            view_tokens(network, try_key, self.plan.train.pairs, 2 * lookups),
        )
        _write(self.folder / LOOKUP, {"of": digest, **dataclasses.asdict(found)})
        say(f"of {found.views} views {100 * found.found:.0f} % find the other view of their room")
        return folder

    def judge(self, folder: pathlib.Path) -> dict[str, Any]:
        """Errors of the candidate."""
        dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else None
        return judge_prior(
            MASt3RPrior.load(folder, dtype=dtype),
            "toy" if self.asked.toy else "small",
            self.folder / QUALITY,
            files=sorted(folder.glob("*.safetensors")),
            size=self.plan.train.pairs.size,
            options=self.plan.quality,
            walk=self.asked.walk,
            depth_scale=self.asked.depth_scale,
            before_each=self._in_time(),
            say=say,
        )

    def package(self, folder: pathlib.Path, quality: Mapping[str, Any]) -> None:
        """Puts everything where it belongs, with its card."""
        card = self.card(quality)
        curves = self.folder / RUN / CURVES
        written = package(
            self.target,
            mast3r_jax.load(folder),
            mast3r_jax.load_retrieval(folder),
            card,
            curves=curves if curves.is_file() else None,
        )
        sizes = [path.stat().st_size for path in self.target.iterdir()]
        say("")
        say(f"{self.target}/: {sum(sizes) / 1e6:.2f} MB, {written.parameters:,} parameters")

    def card(self, quality: Mapping[str, Any]) -> ModelCard:
        """What is to be known of the network."""
        config, progress = self.plan.train, self._progress()
        slices, step = progress["slices"], progress["step"]
        rated = [s for s in slices if s["pairs_per_second"]]
        seconds = sum(s["pairs"] / s["pairs_per_second"] for s in rated)
        o, lookup = config.optimizer, _read(self.folder / LOOKUP)
        notes = [
            "Errors of points are medians of the distance between predicted and true point over "
            "the true point's, after dividing the points of both views by their mean distance. "
            "Held-out rooms are of seeds that no training run can meet.",
            f"Retrieval: of {lookup['views']} views of other rooms {100 * lookup['found']:.0f} % "
            f"find the other view of theirs first; its score is {lookup['related']:.3g} (median), "
            f"one in a hundred of those that show another room exceeds {lookup['unrelated']:.3g}.",
        ]
        if step < config.schedule.steps:
            notes.append(f"Training was ended early: {config.schedule.steps:,} steps were planned.")
        return ModelCard(
            name=self.target.name,
            date=datetime.date.today().isoformat(),
            licence="Apache-2.0",
            data="procedural rooms of this package, rendered while training, each pair in its own",
            image_size=config.pairs.size,
            parameters=0,
            steps=step,
            pairs=step * config.pairs.pairs,
            pairs_per_second=sum(s["pairs"] for s in rated) / seconds if rated else None,
            device=", ".join(dict.fromkeys(f"{s['devices']} x {s['device']}" for s in slices)),
            optimizer=f"AdamW, learning rate {o.learning_rate:g} with {config.schedule.warmup} "
            f"steps of warm-up and a cosine, weight decay {o.weight_decay:g}, betas {o.beta_1:g} "
            f"and {o.beta_2:g}, gradients clipped at {o.clip_norm:g}, batches of "
            f"{config.pairs.pairs}, average of the weights over {1 / (1 - o.ema_decay):.0f} steps",
            versions=slices[-1]["versions"] if slices else {},
            errors={group: card_figures(found) for group, found in quality.items()},
            notes=tuple(notes),
        )

    def _progress(self) -> dict[str, Any]:
        """What the run has come to."""
        return {"step": 0, "slices": [], **_read(self.folder / RUN / RECORD)}

    def _in_time(self) -> Callable[[str], None]:
        """Refuses a sequence that might not end in time, if it takes as long as the one before."""
        last: float | None = None

        def check(name: str) -> None:
            nonlocal last
            now = time.monotonic()
            if self.seconds_left < (0.0 if last is None else 1.5 * (now - last)):
                raise OutOfTime(f"{name} is judged")
            last = now

        return check


def keep_compiled(folder: pathlib.Path) -> None:
    """Lets later calls, each a process of its own, start without compiling."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def _reporter(clock: Callable[[], float]) -> Callable[[Progress], None]:
    """Prints a line every ten seconds."""
    said = -np.inf

    def report(progress: Progress) -> None:
        nonlocal said
        if clock() - said >= 10 or progress.written:
            said = clock()
            parts = [f"step {progress.step} of {progress.last_step}"]
            parts += [f"loss {progress.loss:.4f}"] if np.isfinite(progress.loss) else ["compiling"]
            if np.isfinite(progress.pairs_per_second):
                parts.append(f"{progress.pairs_per_second:.0f} pairs/s")
                parts.append(f"{progress.seconds_left:.0f} s left")
            say(", ".join(parts) + ("; written" if progress.written else ""))

    return report


def _read(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged ({error}); delete it") from None


def _write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    # Processor time so far: about how long ago this process was started.
    sys.exit(tyro.cli(SmallPrior).execute(time.monotonic() - time.process_time()))
