"""What encoder and language model workers compare before an embedding may pass: same checkpoint, same type.

Both sides compute it from their own copy of the checkpoint, so a half-updated cluster is refused, not served wrongly.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from configs.settings import TriptychConfig


def model_revision(model: str) -> str:
    """Identifies a checkpoint cheaply: its config.json and the names and sizes of its weight files, 64 hex digits.

    A name that is no folder (a model hub's) identifies itself.
    """
    digest = hashlib.sha256()
    folder = Path(model)
    if folder.is_dir():
        digest.update((folder / "config.json").read_bytes())
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(f"{file.name}:{file.stat().st_size};".encode())
    else:
        digest.update(model.encode())
    return digest.hexdigest()


def embedding_fingerprint(config: TriptychConfig) -> str:
    """The fingerprint of this service's embeddings, 64 hex digits: checkpoint and type of the values.

    Width and layout follow from the checkpoint's config.json, which is part of its revision.
    """
    return hashlib.sha256(f"{model_revision(config.model)}:{config.encoder_dtype}".encode()).hexdigest()
