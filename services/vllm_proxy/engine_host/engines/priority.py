"""A key's priority class, for engines that order what waits by priority.

A client may ask to come later than its key's class, never earlier: what it asks for is added to the class.
"""

from __future__ import annotations

from contextvars import ContextVar

#: The priority of the request that the current task serves, lower goes first. The host sets it beside
#: base.current_meter. None: nobody's class counts (the engine's own port).
current_priority: ContextVar[int | None] = ContextVar("current_priority", default=None)


def priority_for(asked: int, *, low_first: bool = True) -> int:
    """What the engine is told for the current request. `asked` is the client's own, 0 if it asks for none; both are in
    the engine's order, which is `low_first` or its reverse."""
    of_key = current_priority.get()
    if of_key is None:
        return asked
    return of_key + max(asked, 0) if low_first else -of_key + min(asked, 0)
