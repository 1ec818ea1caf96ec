"""How many tokens a prompt will have, from its bytes: a ratio for each model and kind of text, learned from what the
engines count. It only decides what is reserved; what is charged is counted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import IntEnum

from vllm_proxy.auth.store import RatioLearned

#: Pairs of model and script that are known at once; the ones that were not learned from for longest go first.
_MAX_RATIOS = 4096
#: Tokens per byte.
_LEAST, _MOST = 1 / 64, 2.0
#: One prompt moves a ratio as if it were at most this many times what is expected, or that part of it.
_OUTLIER = 4.0
#: Of the prompts before, what counts beside a new one: half of it after some 35.
_DECAY = 0.98
#: One long prompt must not drown all others.
_MAX_SAMPLE_BYTES = 32_768
#: How sure the first guess is.
_FIRST_BYTES = 2048


class Script(IntEnum):
    """What kind of text a prompt's JSON is. The numbers are the proto's."""

    UNSPECIFIED = 0
    ASCII = 1
    #: Mostly characters of three bytes or more: Chinese, Japanese, Korean, Indic.
    WIDE = 2
    #: Anything else beyond ASCII.
    OTHER = 3
    #: Mostly \uXXXX escapes.
    ESCAPED = 4


_FIRST_RATIOS = {
    Script.UNSPECIFIED: 0.25,
    Script.ASCII: 0.25,
    Script.WIDE: 0.3,
    Script.OTHER: 0.35,
    Script.ESCAPED: 0.15,
}


class _Ratio:
    __slots__ = ("changed", "size_bytes", "tokens")

    def __init__(self, tokens: float, size_bytes: float) -> None:
        self.tokens = tokens
        self.size_bytes = size_bytes
        self.changed = False

    @property
    def value(self) -> float:
        return min(_MOST, max(_LEAST, self.tokens / self.size_bytes))


class PromptEstimates:
    def __init__(self) -> None:
        # Ordered by when each was last learned from.
        self._ratios: dict[tuple[str, Script], _Ratio] = {}

    def tokens(self, model: str, script: Script, size_bytes: int) -> int:
        ratio = self._ratios.get((model, script))
        return math.ceil(size_bytes * (ratio.value if ratio is not None else _FIRST_RATIOS[script]))

    def learn(self, model: str, script: Script, size_bytes: int, tokens: int) -> None:
        """The engine counted so many tokens in a prompt of so many bytes; both above 0."""
        ratio = self._ratios.pop((model, script), None)
        if ratio is None:
            ratio = _Ratio(_FIRST_RATIOS[script] * _FIRST_BYTES, _FIRST_BYTES)
            if len(self._ratios) >= _MAX_RATIOS:
                del self._ratios[next(iter(self._ratios))]
        expected = ratio.value
        sample = min(expected * _OUTLIER, max(expected / _OUTLIER, tokens / size_bytes))
        weight = min(size_bytes, _MAX_SAMPLE_BYTES)
        ratio.tokens = ratio.tokens * _DECAY + sample * weight
        ratio.size_bytes = ratio.size_bytes * _DECAY + weight
        ratio.changed = True
        self._ratios[model, script] = ratio

    def restore(self, rows: Iterable[RatioLearned]) -> None:
        for row in rows:
            if row.size_bytes > 0 and row.script in Script.__members__.values():
                self._ratios[row.model, Script(row.script)] = _Ratio(row.tokens, row.size_bytes)

    def changes(self) -> list[RatioLearned]:
        """Those that were learned since the last call, for the store."""
        rows = []
        for (model, script), ratio in self._ratios.items():
            if ratio.changed:
                ratio.changed = False
                rows.append(RatioLearned(model, int(script), ratio.tokens, ratio.size_bytes))
        return rows
