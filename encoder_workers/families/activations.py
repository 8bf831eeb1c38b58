"""Names of activations in checkpoints: three functions called GELU, far enough apart to spoil an embedding."""

from __future__ import annotations

from encoder_workers.checkpoint import CheckpointError
from encoder_workers.config_reader import ConfigReader
from encoder_workers.families.modules import Activation

_BY_NAME: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def read_activation(reader: ConfigReader, default: str, key: str = "hidden_act") -> Activation:
    """The activation a configuration names under `key`. Raises CheckpointError for one there is no operator for."""
    name = reader.text(key, default)
    if name not in _BY_NAME:
        raise CheckpointError(f"{reader.where}: {key} {name!r} is not one of {', '.join(sorted(_BY_NAME))}")
    return _BY_NAME[name]
