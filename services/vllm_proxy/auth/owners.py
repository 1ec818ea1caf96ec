"""Which owners of leases are there: edge workers with a session, and those that may come back in a moment."""

from __future__ import annotations

from vllm_proxy.auth.limiter import NS_PER_SECOND

#: How long an owner may be away (a reconnect) before a host's count of its leases is taken.
OWNER_GRACE_NS = 2 * NS_PER_SECOND


class Owners:
    def __init__(self) -> None:
        self._sessions: dict[str, int] = {}
        # Those without a session, until their grace is over.
        self._away: dict[str, int] = {}

    def connected(self, owner_id: str) -> None:
        self._sessions[owner_id] = self._sessions.get(owner_id, 0) + 1
        self._away.pop(owner_id, None)

    def disconnected(self, owner_id: str, now_ns: int) -> None:
        """Once for each session that ended. Its leases live on until they expire."""
        self._sessions[owner_id] -= 1
        if not self._sessions[owner_id]:
            del self._sessions[owner_id]
            self.expect(owner_id, now_ns)

    def expect(self, owner_id: str, now_ns: int) -> None:
        """It may come back within the grace."""
        self._away[owner_id] = now_ns + OWNER_GRACE_NS

    def has_session(self, owner_id: str) -> bool:
        return owner_id in self._sessions

    def may_speak(self, owner_id: str) -> bool:
        """Whether its own word is worth waiting for."""
        return owner_id in self._sessions or owner_id in self._away

    def gone(self, now_ns: int) -> set[str]:
        """Those whose grace is over by now; told once."""
        gone = {owner_id for owner_id, until_ns in self._away.items() if until_ns <= now_ns}
        for owner_id in gone:
            del self._away[owner_id]
        return gone
