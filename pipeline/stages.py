"""How busy the stages of a run are, and which of them limits it. Pure arithmetic on `Counts`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.progress import Counts
from pipeline.workers import MOST_ACTORS, Workers

# A stage that is the limit works nearly all the time; what is left of it goes into handing over.
_BUSY = 0.75
# Speeds that are nearer to each other than this are equal.
_EVEN = 0.1
# Of a CPU, for an actor that needs a whole one. Beside its own decoder process on two cores, one
# had 0.82 to 0.92 of it; in a whole run that others left few of these, 0.2 to 0.5.
_STARVED = 0.7
# Of the token budget: whole segments seldom fill all of it; photos filled 0.87.
_FULL = 0.8
# Less than this, or fewer blocks an actor, and blocks cut off at either end decide what is seen.
_LEAST_S = 10.0
_LEAST_BLOCKS = 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one stage did over some seconds.

    Attributes:
        actors: Those that share its work: tasks of the source, decoder processes, encoders, and
            the most commits at once.
        blocks: Calls that have ended.
        items_s: Items a second that it was through with.
        busy: Share of its actors' time in which they were at work, up to 1.
        queue: Items that were through with the stage before, and not with this one, at the end;
            None for the first stage.
    """

    actors: int
    blocks: int
    items_s: float
    busy: float
    queue: int | None = None

    @property
    def speed(self) -> float:
        """Items a second, were it always at work."""
        return self.items_s / self.busy if self.busy else math.inf


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How all stages did over some seconds.

    Attributes:
        seconds: How long.
        driver: Share of a CPU that the driver had.
        source: Reads manifest rows; its blocks are shards.
        fetch: Share of the preprocessing actors' time in which they waited for storage.
        decode: The same, for their decoder processes.
        resize: The same, in which they worked themselves.
        cpu: Share of that work in which they had a CPU; None before there is any.
        tokens_s: Tokens a second.
        fill: Share of the token budget that the packs used.
        ceiling: What encoders' packs did, as a share of what matrix products alone could do on
            their devices in the same time; None where that is not measured.
        on_gpus: Whether encoders have GPUs.
    """

    seconds: float
    driver: float
    source: Stage
    preprocess: Stage
    encode: Stage
    commit: Stage
    fetch: float
    decode: float
    resize: float
    cpu: float | None
    tokens_s: float
    fill: float
    ceiling: float | None
    on_gpus: bool

    @classmethod
    def of(cls, now: Counts, before: Counts, seconds: float, workers: Workers) -> Figures:
        """Those of the seconds from `before` until `now`.

        Args:
            now: The sums by then.
            before: Earlier ones.
            seconds: Between them, more than 0.
            workers: Actors of each kind.
        """
        done = now.since(before)

        def share(spent_s: float, actors: int) -> float:
            return min(1.0, spent_s / (actors * seconds))

        at_work_s = done.fetch_s + done.decode_s + done.resize_s
        preprocess = share(at_work_s, workers.decoders)

        def part(spent_s: float) -> float:
            return preprocess * spent_s / at_work_s if at_work_s else 0.0

        return cls(
            seconds=seconds,
            driver=done.driver_s / seconds,
            source=Stage(
                actors=workers.source_tasks,
                blocks=done.shards_read,
                items_s=done.read / seconds,
                busy=share(done.read_s, workers.source_tasks),
            ),
            preprocess=Stage(
                actors=workers.decoders,
                blocks=done.preprocessed_blocks,
                items_s=done.preprocessed / seconds,
                busy=preprocess,
                queue=max(0, now.read - now.preprocessed),
            ),
            encode=Stage(
                actors=workers.encode,
                blocks=done.encoded_blocks,
                items_s=done.items / seconds,
                busy=share(done.encode_s, workers.encode),
                queue=max(0, now.preprocessed - now.items),
            ),
            commit=Stage(
                actors=workers.most_commits,
                blocks=done.commits,
                items_s=done.committed / seconds,
                busy=share(done.commit_s, workers.most_commits),
                queue=max(0, now.items - now.committed),
            ),
            fetch=part(done.fetch_s),
            decode=part(done.decode_s),
            resize=part(done.resize_s),
            cpu=min(1.0, done.cpu_s / done.resize_s) if done.resize_s else None,
            tokens_s=done.tokens / seconds,
            fill=done.fill,
            ceiling=done.flop / done.ceiling_flop if done.ceiling_flop else None,
            on_gpus=workers.encode_gpus > 0,
        )

    @property
    def is_telling(self) -> bool:
        """Whether this was long enough to tell one stage from another."""
        stages = (self.preprocess, self.encode)
        enough = all(stage.blocks >= _LEAST_BLOCKS * stage.actors for stage in stages)
        return self.seconds >= _LEAST_S and enough

    @property
    def is_starved(self) -> bool:
        """Whether what computes on CPUs gets too little of them."""
        return self.cpu is not None and self.cpu < _STARVED

    def lines(self) -> dict[str, str]:
        """A line a stage, by its name."""
        parts = f"fetch {self.fetch:.0%}, decode {self.decode:.0%}, resize {self.resize:.0%}"
        return {
            "source": _described(self.source),
            "preprocess": f"{_described(self.preprocess)}: {parts}",
            "encode": f"{_described(self.encode)}, {self._packs()}",
            "commit": _described(self.commit),
        }

    def in_short(self) -> str:
        """All of it that matters most, in a few words."""
        return (
            f"preprocess {self.preprocess.busy:.0%} busy, encode {self.encode.busy:.0%}, "
            f"queue {self.encode.queue:,}, {self._packs()}"
        )

    def _packs(self) -> str:
        ceiling = "" if self.ceiling is None else f", {self.ceiling:.0%} of the ceiling"
        return f"fill {self.fill:.0%}{ceiling}"


def _described(stage: Stage) -> str:
    queue = "" if stage.queue is None else f", queue {stage.queue:,}"
    return f"{stage.busy:.0%} busy, {stage.items_s:,.1f} items/s{queue}"


def limit(figures: Figures | None, *, items: int, seconds: float) -> str:
    """What limited a run, and what to change: the stage that is slowest even when it is at work.

    Args:
        figures: Of the part of the run in which all stages were at work; None if there was none.
        items: Of the whole run.
        seconds: Of the whole run.
    """
    if figures is None or not figures.is_telling:
        steady_s = 0.0 if figures is None else figures.seconds
        if steady_s < seconds / 2:
            return f"starting up, for most of the time: {items:,} items are too few to tell more"
        return f"not known: {items:,} items in {seconds:.0f} s are too few to tell"
    shares = (
        f"preprocess {figures.preprocess.busy:.0%} busy, encode {figures.encode.busy:.0%}, "
        f"commit {figures.commit.busy:.0%}"
    )
    stages = (figures.source, figures.preprocess, figures.encode, figures.commit)
    slowest = min(stages, key=lambda stage: stage.speed)
    if slowest.busy < _BUSY <= figures.driver:
        return (
            f"the driver, which had {figures.driver:.0%} of a CPU ({shares}): start several, each "
            "with its own --shards"
        )
    if slowest.busy < _BUSY:
        return f"not known: none of the stages was busy enough to be the limit ({shares})"
    what, change = _cause(figures, slowest)
    return f"{what} ({shares}): {change}"


def _cause(figures: Figures, slowest: Stage) -> tuple[str, str]:
    """What is slow, and what to change."""
    preprocess, encode = figures.preprocess, figures.encode
    if slowest is figures.source:
        return (
            "source",
            "storage for --output that answers sooner: shards of the manifest lie there",
        )
    if slowest is figures.commit:
        return "commit", "storage for --output that answers sooner, or larger --shard-rows anew"
    # Beyond so many, each actor has several decoder processes: more actors would have fewer.
    can_add = preprocess.actors <= MOST_ACTORS
    if slowest is preprocess and figures.fetch > preprocess.busy / 2:
        reads = (
            f"more --preprocess-actors ({preprocess.actors} now), each of which reads ahead, or "
        )
        return "fetch", f"{reads if can_add else ''}storage that answers sooner"
    even = (
        min(preprocess.busy, encode.busy) >= _BUSY
        and abs(preprocess.speed - encode.speed) <= _EVEN * slowest.speed
    )
    if (slowest is preprocess or not figures.on_gpus) and figures.is_starved:
        got = f"work that needs a whole CPU had {figures.cpu:.0%} of one"
        add = "add CPUs" if figures.on_gpus else "add CPUs, or a GPU to encode on"
        return "the machine's CPUs", f"{got}; more actors would only share them: {add}"
    if even:
        more = "more CPUs and GPUs" if figures.on_gpus else "more CPUs, or a GPU to encode on"
        return "preprocess and encode alike", more
    if slowest is preprocess:
        more = f"more --preprocess-actors ({_wanted(figures)}) if CPUs are idle, or "
        return "preprocess", f"{more if can_add else ''}more CPUs"
    return "encode", _of_encode(figures)


def _wanted(figures: Figures) -> str:
    actors, encode = figures.preprocess.actors, figures.encode
    if not encode.busy:
        return f"{actors} now"
    enough = max(actors + 1, math.ceil(actors * encode.speed / figures.preprocess.speed))
    return f"{actors} now; about {enough} would keep the encoder busy"


def _of_encode(figures: Figures) -> str:
    if figures.fill < _FULL:
        return f"its packs were {figures.fill:.0%} full: raise --token-budget"
    actors = f"({figures.encode.actors} now)"
    if figures.on_gpus:
        return f"more GPUs {actors}"
    return f"a GPU, or more --encoder-actors {actors} and CPUs for them"
