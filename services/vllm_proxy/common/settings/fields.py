"""What every section of the settings is made of: its base class and the kinds of its values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from vllm_proxy.common.settings.values import checked_address, checked_addresses, checked_loopback, checked_url

Port = Annotated[int, Field(ge=0, le=65535)]
PositiveSeconds = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Address = Annotated[str, AfterValidator(checked_address)]
Addresses = Annotated[str, AfterValidator(checked_addresses)]
LoopbackHost = Annotated[str, AfterValidator(checked_loopback)]
EngineKind = Literal["vllm", "sglang", "sim"]
LaunchMode = Literal["python_api", "cli", "attached"]
PriorityOrder = Literal["low_first", "high_first"]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(lambda v: v.upper() if isinstance(v, str) else v)
]
Url = Annotated[str, AfterValidator(checked_url)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
