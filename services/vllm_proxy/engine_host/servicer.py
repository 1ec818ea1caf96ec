"""EngineService: proto <-> host. The hot path is `Session`; the rest is for people, tools and control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeAlias

import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.api.engine.v1 import engine_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.common.ids import REQUEST_ID_METADATA, accept_request_id
from vllm_proxy.engine_host.api_description import read_description
from vllm_proxy.engine_host.engines.base import GenerateParameters, current_meter
from vllm_proxy.engine_host.generate import GenerateCall
from vllm_proxy.engine_host.host import EngineHost
from vllm_proxy.engine_host.session import MAX_PIECE_BYTES, HostSession
from vllm_proxy.engine_host.settlement import Settler, UnacknowledgedEnds
from vllm_proxy.engine_host.stream import RequestStream, usage_of

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["EngineService"].full_name

#: Who asked, in the log, where it was no edge.
_TOOL = "tool"

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Add to the host's gRPC server under SERVICE_NAME."""

    def __init__(self, host: EngineHost, settler: Settler, unacked_limit: int) -> None:
        self._host = host
        self._settler = settler
        self._unacked_limit = unacked_limit
        self.sessions: set[HostSession] = set()

    async def close_sessions(self, flush_s: float) -> None:
        """Ends every session, after what is ready was written and acknowledged or `flush_s` is over."""
        if self.sessions:
            flushes = [asyncio.create_task(session.flushed()) for session in self.sessions]
            _, late = await asyncio.wait(flushes, timeout=flush_s)
            for task in late:
                task.cancel()
        for session in self.sessions:
            session.close()

    async def Session(self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context) -> None:
        session = HostSession(self._host, UnacknowledgedEnds(self._unacked_limit, self._settler))
        self.sessions.add(session)
        try:
            await session.run(context)
        finally:
            self.sessions.discard(session)

    async def Infer(self, request: pb.InferRequest, context: Context) -> None:
        changed = asyncio.Event()

        def on_ready(_stream: RequestStream) -> None:
            changed.set()

        def on_end(stream: RequestStream) -> None:
            # No edge acknowledges this one: with a lease, the host settles it.
            self._settler.submit((self._host.ended(stream, _TOOL),))

        if not request.envelope.request_id:
            request.envelope.request_id = _request_id(context)
        stream = RequestStream(0, request.envelope, MAX_PIECE_BYTES, on_ready, on_end)
        stream.feed(request.body, True)
        self._host.begin(stream)
        try:
            while True:
                await changed.wait()
                changed.clear()
                if stream.head_bytes:
                    response = pb.InferResponse()
                    stream.fill_head(response.head)
                    await context.write(response)
                while piece := stream.take_data(MAX_PIECE_BYTES):
                    await context.write(pb.InferResponse(data=piece))
                    stream.grant(len(piece))
                if stream.ended and not stream.has_data:
                    response = pb.InferResponse()
                    stream.fill_end(response.end)
                    await context.write(response)
                    return
        finally:
            stream.stop(auth_pb2.OUTCOME_CANCELLED)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        call = GenerateCall(request.request_id or _request_id(context))
        parameters = _parameters(request, call.engine_request_id)
        self._host.in_flight.add(call)
        current_meter.set(call.meter)
        deltas = self._host.engine.generate(parameters)
        fault: BaseException | None = None
        try:
            async for delta in deltas:
                call.produced()
                await context.write(
                    pb.GenerateResponse(
                        text=delta.text,
                        token_ids=delta.token_ids,
                        usage=usage_of(call.meter),
                        finish_reason=delta.finish_reason,
                    )
                )
        except BaseException as e:
            fault = call.fault(e)
            raise fault from None
        finally:
            self._host.in_flight.remove(call)
            if isinstance(deltas, AsyncGenerator):
                await deltas.aclose()
            call.record(request.model, fault).write(self._host.metrics)

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.LoadAdapterResponse:
        model = await self._host.load_adapter(request.adapter, router_pb2.ADAPTER_ORIGIN_NATIVE)
        return pb.LoadAdapterResponse(model=model)

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Context) -> pb.UnloadAdapterResponse:
        await self._host.unload_adapter(request.name, native=True)
        return pb.UnloadAdapterResponse()

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        return pb.ListAdaptersResponse(adapters=[model for model in await self._host.models() if model.base])

    async def PinAdapter(self, request: pb.PinAdapterRequest, context: Context) -> pb.PinAdapterResponse:
        await self._host.pin_adapter(request.name)
        return pb.PinAdapterResponse()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(host=await self._host.snapshot())

    async def GetApiDescription(
        self, request: pb.GetApiDescriptionRequest, context: Context
    ) -> pb.GetApiDescriptionResponse:
        return pb.GetApiDescriptionResponse(openapi_json=await read_description(self._host.engine.app))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        return pb.DrainResponse(remaining=await self._host.drain(request.timeout_ms / 1000))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        return pb.AbortResponse(found=self._host.in_flight.abort(request.request_id) > 0)


def _request_id(context: Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID_METADATA:
            return accept_request_id(value.encode() if isinstance(value, str) else value)
    return accept_request_id(None)


def _parameters(request: pb.GenerateRequest, engine_request_id: str) -> GenerateParameters:
    match request.WhichOneof("input"):
        case "prompt":
            prompt: str | list[int] = request.prompt
        case "prompt_token_ids":
            prompt = list(request.prompt_token_ids.ids)
        case _:
            raise InvalidRequest("One of prompt and prompt_token_ids is needed.")
    if not request.model:
        raise InvalidRequest("model is needed.")

    def given(name: str) -> Any:
        return getattr(request, name) if request.HasField(name) else None

    return GenerateParameters(
        model=request.model,
        prompt=prompt,
        request_id=engine_request_id,
        max_tokens=given("max_tokens"),
        temperature=given("temperature"),
        top_p=given("top_p"),
        seed=given("seed"),
        stop=tuple(request.stop),
    )
