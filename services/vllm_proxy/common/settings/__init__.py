"""The configuration of all services: its schema by section, its defaults, and how it is read.

The environment is used for secrets only. A relative path is relative to the project root, the folder that holds
`config/`; every service makes that its working directory at start.
"""

from vllm_proxy.common.settings.engine_hosts import EngineHost, EngineHostSpec, EngineHttp, EngineProcess
from vllm_proxy.common.settings.engines import EngineSection, Sglang, Sim, Vllm
from vllm_proxy.common.settings.fields import EngineKind, LaunchMode, PriorityOrder
from vllm_proxy.common.settings.limits import RateLimit, UserLimit
from vllm_proxy.common.settings.load import (
    ConfigError,
    LoadedSettings,
    enter_root,
    find_root,
    load_settings,
    read_settings,
)
from vllm_proxy.common.settings.lora import Lora, LoraPreload, RuntimeResolver, SglangLora, VllmLora
from vllm_proxy.common.settings.schema import Settings
from vllm_proxy.common.settings.services import Auth, Edge, Grpc, GrpcTls, Logs, Nginx, Router
from vllm_proxy.common.settings.tracing import Tracing

#: The environment variable that holds the token services show each other. Needed once a gRPC listener leaves
#: loopback or a Unix socket.
INTERNAL_TOKEN_VARIABLE = "VLLM_PROXY_INTERNAL_TOKEN"
#: The environment variable that may hold the password of auth.store's Redis.
REDIS_PASSWORD_VARIABLE = "VLLM_PROXY_REDIS_PASSWORD"

__all__ = [
    "Auth",
    "ConfigError",
    "Edge",
    "EngineHost",
    "EngineHostSpec",
    "EngineHttp",
    "EngineKind",
    "EngineProcess",
    "EngineSection",
    "Grpc",
    "GrpcTls",
    "INTERNAL_TOKEN_VARIABLE",
    "LaunchMode",
    "LoadedSettings",
    "Logs",
    "Lora",
    "LoraPreload",
    "Nginx",
    "PriorityOrder",
    "REDIS_PASSWORD_VARIABLE",
    "RateLimit",
    "Router",
    "RuntimeResolver",
    "Settings",
    "Sglang",
    "SglangLora",
    "Sim",
    "Tracing",
    "UserLimit",
    "Vllm",
    "VllmLora",
    "enter_root",
    "find_root",
    "load_settings",
    "read_settings",
]
