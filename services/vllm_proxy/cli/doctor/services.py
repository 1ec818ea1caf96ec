"""The services: whether they answer, whether they run this version, and what their clocks say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio

import vllm_proxy
from vllm_proxy.api.common.v1 import maintenance_pb2, maintenance_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2, router_pb2_grpc
from vllm_proxy.cli.doctor.check import Answer, Finding, Site, fail, ok, warn
from vllm_proxy.cli.doctor.store import skewed
from vllm_proxy.common.errors import EngineUnavailable
from vllm_proxy.common.rpc.address import is_unix
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.rpc.worker_sockets import living_workers
from vllm_proxy.common.settings import Settings

_TIMEOUT_S = 2.0
_SERVING = router_pb2.HOST_STATE_SERVING


async def ask_all(settings: Settings) -> dict[str, Answer]:
    """Who answers where a service should be, every living edge worker, and the engine hosts on other machines."""
    auths = settings.auth.address.split(",")
    addresses = {f"auth-{i}" if len(auths) > 1 else "auth": address for i, address in enumerate(auths)}
    addresses["router"] = settings.router.address
    addresses |= {f"engine-{name}": spec.address or "" for name, spec in settings.hosts().items()}
    addresses |= living_workers(Path(settings.run_dir))
    elsewhere = {f"engine-{h.name}": h.address for h in await _hosts(settings) if not is_unix(h.address)}
    addresses = elsewhere | addresses
    answers = await asyncio.gather(*(_ask(address, settings) for address in addresses.values()))
    return dict(zip(addresses, answers, strict=True))


async def _hosts(settings: Settings) -> list[router_pb2.Host]:
    """Those that the router knows, on whatever machine; none if it does not answer."""
    async with open_channel(settings.router.address, settings.grpc) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        try:
            return list((await stub.ListHosts(router_pb2.ListHostsRequest(), timeout=_TIMEOUT_S)).hosts)
        except grpc.aio.AioRpcError:
            return []


async def _ask(address: str, settings: Settings) -> Answer:
    async with open_channel(address, settings.grpc) as channel:
        stub = maintenance_pb2_grpc.MaintenanceServiceStub(channel)
        asked_at = time.time()
        try:
            info = await stub.GetInfo(maintenance_pb2.GetInfoRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as e:
            error = from_rpc_error(e)
            return Answer(None, "nobody answers" if type(error) is EngineUnavailable else error.message)
        answered_at = time.time()
    ahead_s = info.now_ms / 1000 - (asked_at + answered_at) / 2
    return Answer(info, "", ahead_s, (answered_at - asked_at) / 2 + 0.001)


def reachable(site: Site) -> Iterator[Finding]:
    silent = {name: answer.error for name, answer in site.answers.items() if answer.info is None}
    if not site.runs:
        yield warn("nothing runs", "make start")
        return
    for name, error in silent.items():
        # Of several replicas all but one stand by.
        if name.startswith("auth-") and any(a.info for n, a in site.answers.items() if n.startswith("auth-")):
            yield ok(f"{name} does not answer, as a replica that stands by does not")
        else:
            yield fail(f"{name} does not answer: {error}", f"make start; why it ended is in {_log_of(site, name)}")
    if not any(name.startswith("edge") for name in site.answers):
        yield fail(
            "no edge worker answers", f"make start-edge; why it ended is in {site.settings.logs.dir}/fastapi.log"
        )
    yield ok(f"{', '.join(sorted(site.answers.keys() - silent))} answer")


async def engines(site: Site) -> list[Finding]:
    """As the router sees them, those on other machines included."""
    if (answer := site.answers.get("router")) is None or answer.info is None:
        return [] if site.runs else [ok("nothing runs")]
    hosts = await _hosts(site.settings)
    findings = []
    for host in hosts:
        if host.state == _SERVING:
            findings.append(ok(f"{host.name} serves {', '.join(model.name for model in host.models) or 'nothing yet'}"))
        else:
            state = router_pb2.HostState.Name(host.state).removeprefix("HOST_STATE_").lower()
            findings.append(
                warn(
                    f"{host.name} is {state}" + (f": {host.detail}" if host.detail else ""),
                    f"an engine takes its time to load; its own output is in {site.settings.logs.dir}, see make status",
                )
            )
    missing = site.settings.hosts().keys() - {host.name for host in hosts}
    findings += [
        fail(
            f"the router does not know the engine host {name}",
            f"make start; the cause is in {_log_of(site, f'engine-{name}')}",
        )
        for name in sorted(missing)
    ]
    if not any(host.state in (_SERVING, router_pb2.HOST_STATE_STARTING) for host in hosts):
        findings.append(fail("no engine serves: clients get 503", "make status says what each waits for"))
    return findings


def versions(site: Site) -> Iterator[Finding]:
    own = vllm_proxy.__version__
    others = {n: a.info.version for n, a in site.answers.items() if a.info is not None and a.info.version != own}
    for name, version in others.items():
        yield warn(f"{name} runs vLLM Proxy {version}, and {own} is installed here", "make restart")
    if not others:
        yield ok(f"vLLM Proxy {own}" + (", every service the same" if site.runs else ""))


def clocks(site: Site) -> Iterator[Finding]:
    asked = {name: answer for name, answer in site.answers.items() if answer.info is not None}
    wrong = {n: a for n, a in asked.items() if abs(a.clock_ahead_s) - a.uncertain_s > site.max_skew_s}
    for name, answer in wrong.items():
        assert answer.info is not None
        yield skewed(f"{name} (on {answer.info.host_name})", answer.clock_ahead_s)
    if asked and not wrong:
        yield ok(f"the clocks of {len(asked)} processes agree within {site.max_skew_s:g} s")
    elif not asked:
        yield ok("nothing runs, so no clock was asked")


def _log_of(site: Site, service: str) -> str:
    return f"{site.settings.logs.dir}/{service.partition('-')[0] if service.startswith('auth') else service}.log"
