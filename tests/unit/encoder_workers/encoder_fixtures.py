"""Helpers of the encoder's tests: image files drawn from a seed, and checkpoints written around a reference tower."""

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from encoder_workers import ItemMetadata, Prepared
from encoder_workers.checkpoint import Checkpoint
from encoder_workers.families.internvl.family import read_config, read_tiles
from encoder_workers.families.internvl.layouts import hf_sources, opengvlab_sources
from encoder_workers.families.internvl.tower import InternVLParameters

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of a tower's distance from Hugging Face's: the largest difference of a value, and of an item's norm, relative."""
Record = Callable[[str, object], None]


def check_accuracy(record: Record, got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """Hold each item to the bound of its type, and note the largest distance for docs/support_matrix.md."""
    dtype = got[0].dtype
    assert [tensor.dtype for tensor in (*got, *expected)] == [dtype] * (2 * len(got))
    errors = []
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        assert theirs.abs().max() > 1
        ours, theirs = ours.float(), theirs.float()
        by_value, by_norm = (ours - theirs).abs().max(), (ours - theirs).norm() / theirs.norm()
        errors.append(float(by_value if dtype == torch.float32 else by_norm))
    record(f"accuracy {dtype}".replace("torch.", ""), f"{max(errors):.1e}")
    assert max(errors) < BOUNDS[dtype], errors


def noise_image(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image in which every pixel and channel differs."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(-1) if channels == 1 else values, mode)


def image_file(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The image as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header_only(height: int, width: int) -> bytes:
    """A PNG that promises an RGB image of this size and holds no pixel of it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


def noise_rows(grid: tuple[int, int, int], patch_width: int, seed: int) -> Prepared:
    """Patch rows of a pretended item of the Qwen-VL families."""
    num_patches = grid[0] * grid[1] * grid[2]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 256, (num_patches, patch_width), dtype=torch.uint8, generator=generator)
    return Prepared(rows, grid, ItemMetadata("image", num_patches // 4, num_patches, ()))


def write_tower_checkpoint(
    directory: Path,
    config: Mapping[str, object],
    tensors: Mapping[str, torch.Tensor],
    processor: Mapping[str, object],
    *,
    num_files: int = 1,
) -> Path:
    """A checkpoint directory; with several files there is an index that says which holds what."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    names = sorted(tensors)
    if num_files == 1:
        save_file({name: tensors[name].contiguous() for name in names}, directory / "model.safetensors")
        return directory
    weight_map = {}
    for index in range(num_files):
        file = f"model-{index + 1:05d}-of-{num_files:05d}.safetensors"
        share = {name: tensors[name].contiguous() for name in names[index::num_files]}
        save_file(share, directory / file)
        weight_map.update(dict.fromkeys(share, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Draw every parameter so that activations stay of order one and no bias or norm weight is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(parameter + 0.1 * noise)


def write_small_internvl(directory: Path, layout: str, seed: int) -> Path:
    """A random InternVL tower with tiles of 8 x 8 patches, in the layout "opengvlab" or "hf"."""
    vision = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    vision |= {"image_size": 112, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    if layout == "hf":
        config: dict[str, object] = {
            "architectures": ["InternVLForConditionalGeneration"],
            "vision_config": vision | {"attention_bias": True, "use_qk_norm": True, "norm_type": "rms_norm"},
            "text_config": {"hidden_size": 48},
        }
        sources = hf_sources("")
    else:
        config = {
            "architectures": ["InternVLChatModel"],
            "vision_config": vision | {"qkv_bias": True},
            "llm_config": {"hidden_size": 48},
            "ps_version": "v1",
            "force_image_size": 112,
        }
        sources = opengvlab_sources
    processor = {"size": {"height": 112, "width": 112}, "min_patches": 1, "max_patches": 12}
    checkpoint = Checkpoint(write_tower_checkpoint(directory, config, {}, processor))
    tiles = read_tiles(checkpoint)
    parameters = InternVLParameters(read_config(checkpoint, tiles), tiles)
    for parameter in parameters.parameters():
        torch.nn.init.ones_(parameter)
    randomize(parameters, seed)
    tensors = {}
    for name, parameter in parameters.named_parameters():
        parts = sources(name)
        tensors |= dict(zip(parts, parameter.detach().chunk(len(parts)), strict=True))
    return write_tower_checkpoint(directory, config, tensors, processor)
