"""What a host's report does to the router, in the order that matters.

First the picture (so that a command's outcome is seen together with the models that it left), then what happened at
the engine's own port, then the outcomes. Convergence looks at a changed host only after all of that.
"""

from __future__ import annotations

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.router.declarations import Declarations
from vllm_proxy.router.hosts import HostBook
from vllm_proxy.router.link import HostLink
from vllm_proxy.router.named_locks import NamedLocks


class Registrar:
    def __init__(self, hosts: HostBook, declarations: Declarations, locks: NamedLocks) -> None:
        self._hosts = hosts
        self._declarations = declarations
        self._locks = locks
        self._links: set[HostLink] = set()
        self._closed = False

    def open(self, first: pb.RegisterRequest) -> HostLink:
        """A stream opens. Raises InvalidRequest or PermissionDenied (HostBook.attach)."""
        link = self._hosts.attach(first.host)
        self._links.add(link)
        self._follow_up(link, first)
        return link

    def take(self, link: HostLink, request: pb.RegisterRequest) -> bool:
        """A further report. False: another stream took the place of this one."""
        if not self._hosts.report(link, request.host):
            return False
        self._follow_up(link, request)
        return True

    def end(self, link: HostLink) -> None:
        """Its stream ended."""
        self._links.discard(link)
        if not self._closed:
            self._hosts.detach(link)

    def close(self) -> None:
        """Ends every stream, because the router stops; that says nothing about the hosts."""
        self._closed = True
        for link in self._links:
            link.close()

    def _follow_up(self, link: HostLink, request: pb.RegisterRequest) -> None:
        if request.withdrawn_adapters:
            others = [report for report, _ in self._hosts.live() if report.name != link.name]
            self._declarations.unloaded_natively(link.name, request.withdrawn_adapters, others)
        self._declarations.adopt_native(request.host, self._locks)
        for result in request.results:
            link.resolve(result)
