"""Settings of the KV cache path."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from configs.base import Settings

NIXL = "NixlConnector"
"""vLLM's name of the connector that is used where nothing else is said."""


class KVTransferSettings(Settings):
    """The KV cache path between prefill and decode: vLLM's connector, by name."""

    connector: str = Field(NIXL, description="vLLM's KV connector, e.g. NixlConnector, MooncakeConnector.")
    buffer_device: str | None = Field(None, description="kv_buffer_device of vLLM; the service's device if absent.")
    extra_config: dict[str, Any] = Field(default_factory=dict, description="kv_connector_extra_config of vLLM.")
    first_token_from_prefill: bool | None = Field(
        None,
        description="Give the answer's first token when prefill has it, while the KV cache travels; decode samples it "
        "otherwise. Absent: with NixlConnector, of which it is known that decode can go on behind it.",
    )
