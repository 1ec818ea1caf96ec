"""What the router refuses to start with."""

import pytest

from vllm_proxy.common.settings import ConfigError, Settings
from vllm_proxy.router.config import RouterConfig


def settings(**values: object) -> Settings:
    return Settings.model_validate({"engine_hosts": {"one": {"engine": "sim"}}, **values})


def test_timeout_within_a_heartbeat() -> None:
    with pytest.raises(ConfigError, match="host_timeout_s"):
        RouterConfig.of(settings(router={"heartbeat_s": 2, "host_timeout_s": 2}))
