"""Which names of models and adapters a list of patterns matches. `*`, `?` and `[...]` are as in a shell."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from fnmatch import translate

_GLOB = re.compile(r"[*?\[]")


class ModelPatterns:
    """A name that stands there as it is comes before patterns, and patterns come in their order."""

    __slots__ = ("_globs", "_names")

    def __init__(self, patterns: Sequence[str]) -> None:
        self._names = frozenset(patterns)
        self._globs = [(pattern, re.compile(translate(pattern))) for pattern in patterns if _GLOB.search(pattern)]

    def match(self, name: str) -> str | None:
        """The pattern that the name falls under."""
        if name in self._names:
            return name
        return next((pattern for pattern, glob in self._globs if glob.match(name)), None)


@functools.lru_cache(maxsize=4096)
def patterns_of(patterns: tuple[str, ...]) -> ModelPatterns:
    return ModelPatterns(patterns)
