"""Which model a request means: what it names, an alias of it, `base:adapter`, or the default."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from vllm_proxy.common.routing.table import RoutingTable
from vllm_proxy.edge.form_body import model_span

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class ModelNames:
    def __init__(self, table: RoutingTable, aliases: Mapping[str, str], default: str | None) -> None:
        self._table = table
        self._aliases = aliases
        self._default = default

    def meant(self, asked: str | None) -> str | None:
        """The name that the engine knows. A name that somebody serves is always itself."""
        if asked is None:
            return self._default
        if self._table.row(asked) is not None:
            return asked
        if (real := self._aliases.get(asked)) is not None:
            return real
        base, colon, adapter = asked.partition(":")
        if colon and adapter and (row := self._table.row(base)) is not None and not row.base:
            return adapter
        return asked


def with_model(body: bytes, model: str) -> bytes:
    """A JSON body that names `model`. Nothing else in it is read or changed; one that is no object stays as it is."""
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def form_with_model(body: bytes, content_type: bytes, model: str) -> bytes:
    """The same for a form that has such a field."""
    span = model_span(body, content_type)
    return body if span is None else body[: span[0]] + model.encode() + body[span[1] :]
