"""The configuration: whether it can be used, and what a use of it would not say."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vllm_proxy.cli.doctor.check import Finding, Site, fail, ok, warn
from vllm_proxy.common.rpc.address import is_local
from vllm_proxy.common.settings import INTERNAL_TOKEN_VARIABLE

_MAPPING = "model_backend_mapping"


def configuration(site: Site) -> Iterator[Finding]:
    for fault in site.faults:
        if f"{_MAPPING}." not in fault:
            yield fail(fault, "correct it in the file; `make check-config` lists what is left")
    if not site.faults:
        yield ok(f"{site.loaded.path} is good")
    for warning in site.loaded.warnings:
        yield warn(warning, "say so in the file")


def mappings(site: Site) -> Iterator[Finding]:
    """`load_settings` refuses a mapping to an engine that no host runs."""
    for fault in site.faults:
        if f"{_MAPPING}." in fault:
            yield fail(
                fault, f"map it to an engine that runs, or give that one a start command, or remove it from {_MAPPING}"
            )
    if not any(f"{_MAPPING}." in fault for fault in site.faults):
        mapped = len(site.settings.model_backend_mapping)
        yield ok(
            f"{mapped} models are mapped, each to an engine that is configured" if mapped else "no model is mapped"
        )


def internal_token(site: Site) -> Iterator[Finding]:
    settings = site.settings
    addresses = [settings.auth.listen_address or settings.auth.address, settings.router.address]
    addresses += [spec.address or "" for spec in settings.hosts().values()]
    open_ones = [one for address in addresses for one in address.split(",") if not is_local(one)]
    if not open_ones:
        yield ok("the services reach each other on this machine only")
    elif os.environ.get(INTERNAL_TOKEN_VARIABLE):
        yield ok(f"{INTERNAL_TOKEN_VARIABLE} is set")
    else:
        yield fail(
            f"{open_ones[0]} can be reached from other machines, and {INTERNAL_TOKEN_VARIABLE} is not set here",
            f"set {INTERNAL_TOKEN_VARIABLE} to the same secret for every service (and for this command)",
        )
