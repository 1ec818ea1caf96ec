"""The admin endpoints. Every one needs a key whose user is `admin`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2, router_pb2_grpc
from vllm_proxy.common.errors import AuthUnavailable, InvalidRequest, RouterUnavailable
from vllm_proxy.edge.admission import AuthClient
from vllm_proxy.edge.fleet_logs import FleetLogs
from vllm_proxy.edge.routes.audit_trail import AuditTrail
from vllm_proxy.edge.routes.authorization import actor_of, requires
from vllm_proxy.edge.routes.calls import PLAIN_TEXT, answer_of, call_metadata

#: Longest life of a log file that can be asked for, in days.
MAX_DAYS = 36_500


class LoadAdapterBody(BaseModel):
    """As vLLM's `/v1/load_lora_adapter` takes it, and the base model for installations with several."""

    lora_name: str
    lora_path: str
    base_model_name: str | None = None
    load_inplace: bool = False


class UnloadAdapterBody(BaseModel):
    lora_name: str


def admin_router(
    auth: AuthClient,
    auth_service: auth_pb2_grpc.AuthServiceStub,
    router_service: router_pb2_grpc.RouterServiceStub,
    logs: FleetLogs,
    call_timeout_s: float,
    adapter_timeout_s: float,
) -> APIRouter:
    router = APIRouter(
        prefix="/admin", tags=["admin"], dependencies=[Depends(requires(auth, auth_pb2.OPERATION_ADMIN))]
    )
    audit = AuditTrail(auth_service, call_timeout_s)

    @router.post("/reload-keys", summary="Reads the keys file again")
    async def reload_keys(request: Request) -> dict[str, Any]:
        call = auth_service.ReloadKeys(
            auth_pb2.ReloadKeysRequest(actor=actor_of(request)), timeout=call_timeout_s, metadata=call_metadata(request)
        )
        answer = await answer_of(call, AuthUnavailable)
        return {"status": "ok", "keys": answer.keys, "problems": list(answer.problems)}

    @router.post("/clean-logs", summary="Removes rotated log files of all services")
    async def clean_logs(
        request: Request,
        days: Annotated[int, Query(ge=0, le=MAX_DAYS)] = 7,
        dry_run: Annotated[bool, Query(description="Whether to remove nothing and say what would be.")] = False,
    ) -> dict[str, Any]:
        if dry_run:
            rows = await logs.clean(days, True)
        else:
            async with audit.action(request, "logs.clean", f"older than {days} days"):
                rows = await logs.clean(days, False)
        freed = sum(row.get("freed_bytes", 0) for row in rows.values())
        return {"status": "ok", "dry_run": dry_run, "services": rows, "freed_bytes": freed}

    @router.get("/log-stats", summary="Sizes of the log files of all services")
    async def log_stats() -> dict[str, Any]:
        rows = await logs.stats()
        return {"services": rows, "total_bytes": sum(row.get("total_bytes", 0) for row in rows.values())}

    @router.post(
        "/load-lora-adapter",
        summary="Loads an adapter on every host of its base model",
        response_class=Response,
        responses=PLAIN_TEXT,
    )
    async def load_lora_adapter(body: LoadAdapterBody, request: Request) -> Response:
        if not body.lora_name or not body.lora_path:
            raise InvalidRequest("Both 'lora_name' and 'lora_path' must be provided.")
        spec = router_pb2.AdapterSpec(
            name=body.lora_name, path=body.lora_path, base=body.base_model_name or "", replace=body.load_inplace
        )
        async with audit.action(request, "adapter.load", body.lora_name, body.lora_path):
            call = router_service.LoadAdapter(
                router_pb2.LoadAdapterRequest(adapter=spec), timeout=adapter_timeout_s, metadata=call_metadata(request)
            )
            await answer_of(call, RouterUnavailable)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post(
        "/unload-lora-adapter",
        summary="Unloads an adapter wherever it is",
        response_class=Response,
        responses=PLAIN_TEXT,
    )
    async def unload_lora_adapter(body: UnloadAdapterBody, request: Request) -> Response:
        if not body.lora_name:
            raise InvalidRequest("'lora_name' needs to be provided to unload a LoRA adapter.")
        async with audit.action(request, "adapter.unload", body.lora_name):
            call = router_service.UnloadAdapter(
                router_pb2.UnloadAdapterRequest(name=body.lora_name),
                timeout=adapter_timeout_s,
                metadata=call_metadata(request),
            )
            await answer_of(call, RouterUnavailable)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router
