"""Typed settings of a Triptych service: what a deployment file may say, and how it is read."""

from configs.api_keys import ApiKey, read_api_keys
from configs.kv_transfer import KVTransferSettings
from configs.limits import LimitsConfig
from configs.loader import ConfigError, ServiceFile, load_config, load_service, parse_config
from configs.observability import ObservabilityConfig
from configs.revision import embedding_fingerprint
from configs.router import RouterConfig
from configs.settings import (
    DecodeConfig,
    EncoderConfig,
    IngressConfig,
    PrefillConfig,
    StageConfig,
    TriptychConfig,
)
from configs.transfer import TransferConfig

__all__ = [
    "ApiKey",
    "ConfigError",
    "DecodeConfig",
    "EncoderConfig",
    "IngressConfig",
    "KVTransferSettings",
    "LimitsConfig",
    "ObservabilityConfig",
    "PrefillConfig",
    "RouterConfig",
    "ServiceFile",
    "StageConfig",
    "TransferConfig",
    "TriptychConfig",
    "embedding_fingerprint",
    "load_config",
    "load_service",
    "parse_config",
    "read_api_keys",
]
