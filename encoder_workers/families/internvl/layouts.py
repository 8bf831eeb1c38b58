"""Where each of InternVL's parameters is found in the two published layouts of its weights."""

from __future__ import annotations

from encoder_workers.families.weights import Sources

_BLOCK_NAMES_HF = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "attn.proj": "attention.projection_layer",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OPENGVLAB = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "position_embedding": "vision_model.embeddings.position_embedding",
    "patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "projector_norm": "mlp1.0",
    "fc1": "mlp1.1",
    "fc2": "mlp1.3",
}
_HF = {
    "class_embedding": "vision_tower.embeddings.cls_token",
    "position_embedding": "vision_tower.embeddings.position_embeddings",
    "patch_embed.proj": "vision_tower.embeddings.patch_embeddings.projection",
    "projector_norm": "multi_modal_projector.layer_norm",
    "fc1": "multi_modal_projector.linear_1",
    "fc2": "multi_modal_projector.linear_2",
}


def opengvlab_sources(parameter: str) -> tuple[str, ...]:
    """OpenGVLab's own layout: blocks are named as here."""
    if parameter.startswith("blocks."):
        return ("vision_model.encoder.layers." + parameter.removeprefix("blocks."),)
    module, kind = _split(parameter)
    return (_OPENGVLAB[module] + kind,)


def hf_sources(root: str) -> Sources:
    """The -hf layout under `root`: q, k and v apart, other names."""

    def sources(parameter: str) -> tuple[str, ...]:
        if not parameter.startswith("blocks."):
            module, kind = _split(parameter)
            return (root + _HF[module] + kind,)
        _, index, name = parameter.split(".", 2)
        block = f"{root}vision_tower.encoder.layer.{index}."
        if name.startswith("attn.qkv"):
            kind = name.removeprefix("attn.qkv")
            return tuple(f"{block}attention.{part}_proj{kind}" for part in "qkv")
        module, kind = _split(name)
        return (block + _BLOCK_NAMES_HF[module] + kind,)

    return sources


def _split(name: str) -> tuple[str, str]:
    """A parameter's module and its ".weight" or ".bias", the latter empty for a bare parameter."""
    for kind in (".weight", ".bias"):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ""
