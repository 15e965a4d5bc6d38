"""The items of one call of the encoder, cut into segments, and what came of each segment."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder import segments_of
from pipeline.config import Pool

Levels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Vectors = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.float16]


@dataclass
class PackCounts:
    """What forward passes held and could have held, in tokens; what they took and computed.

    A pack that segments of several calls share counts for the call that its first one is of.
    """

    tokens: int = 0
    capacity: int = 0
    seconds: float = 0.0
    flop: int = 0


@dataclass(frozen=True)
class Failure:
    """Why an item has no vector."""

    message: str
    attempts: int = 1


@dataclass(kw_only=True)
class Block:
    """Items, and their segments' results, all in the items' order.

    The arrays are made once and filled in place, so that the host has every token once.

    Attributes:
        names: The items' ids.
        grids: `(t, h, w)` an item.
        patches: uint8 [bytes] an item: views of the one buffer that they came in.
        width: D.
        merged: Patches a token.
        keeps_tokens: Whether tokens are kept beside the segments' vectors.
        vectors: Float32 [segments, D]: pooled.
        tokens: Float16 [tokens, D], empty unless they are kept.
        finite: Whether all tokens of a segment, if kept, are finite in float16, [segments].
        failures: Why an item has no vector, by its position.
    """

    names: list[str]
    grids: list[list[int]]
    patches: list[Levels]
    width: int
    merged: int
    keeps_tokens: bool = False
    vectors: Vectors = field(init=False)
    tokens: Tokens = field(init=False)
    finite: npt.NDArray[np.bool_] = field(init=False)
    failures: dict[int, Failure] = field(default_factory=dict, init=False)
    counts: PackCounts = field(default_factory=PackCounts, init=False)

    def __post_init__(self) -> None:
        self.segments = segments_of(self.grids)
        self.lengths = [segment.num_patches // self.merged for segment in self.segments]
        self._starts = [0, *np.cumsum(self.lengths, dtype=np.int64).tolist()]
        self._firsts = [0, *np.cumsum([grid[0] for grid in self.grids], dtype=np.int64).tolist()]
        self.vectors = np.zeros((len(self.segments), self.width), np.float32)
        kept = self._starts[-1] if self.keeps_tokens else 0
        self.tokens = np.zeros((kept, self.width), np.float16)
        self.finite = np.ones(len(self.segments), np.bool_)

    def span(self, item: int) -> slice:
        """Where an item's segments are among all."""
        return slice(self._firsts[item], self._firsts[item + 1])

    def values(self, index: int) -> int:
        """Values of each of a segment's patches."""
        item = self.segments[index].item
        return len(self.patches[item]) // math.prod(self.grids[item])

    def levels(self, index: int) -> Levels:
        """A segment's patches, uint8 [patches, values]: a view."""
        segment = self.segments[index]
        slices = self.grids[segment.item][0]
        own = self.patches[segment.item].reshape(slices, segment.num_patches, -1)
        view: Levels = own[segment.slice]
        return view

    def fill(
        self, index: int, vector: Vectors, tokens: Tokens, finite: npt.NDArray[np.bool_]
    ) -> None:
        """Takes what came of one segment.

        Args:
            index: Which one.
            vector: [D].
            tokens: [tokens, D]; unused unless kept.
            finite: Whether all of a token's values are finite, [tokens].
        """
        self.vectors[index] = vector
        if not self.keeps_tokens:
            return
        start = self._starts[index]
        self.tokens[start : start + self.lengths[index]] = tokens
        self.finite[index] = finite.all()

    def pooled(self, pool: Pool) -> Floats:
        """The items' vectors [items, D]; an item's segments are all of one length.

        Float32 where each item has one segment: then they are the segments' own. Else float64.
        """
        if len(self.segments) == len(self.grids):
            return self.vectors
        out = np.zeros((len(self.grids), self.width))
        with np.errstate(invalid="ignore"):  # What is not finite is told apart later.
            for item, vector in enumerate(out):
                own = self.vectors[self.span(item)]
                vector[:] = own.max(axis=0) if pool == "max" else own.mean(axis=0, dtype="float64")
        return out

    def without(self, items: Collection[int]) -> tuple[list[int], Tokens]:
        """The segments of all other items, and their tokens, which move up in place."""
        kept = [i for i, segment in enumerate(self.segments) if segment.item not in items]
        if not self.keeps_tokens or len(kept) == len(self.segments):
            return kept, self.tokens
        at = 0
        for index in kept:
            start, length = self._starts[index], self.lengths[index]
            self.tokens[at : at + length] = self.tokens[start : start + length]
            at += length
        return kept, self.tokens[:at]
