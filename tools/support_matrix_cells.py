"""Which tests back which cell of the support matrix: the models, the claims, and the tests of both together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Backing:
    """Backing of one file; with a parameter, those whose brackets hold that word."""

    file: str
    names: tuple[str, ...]
    parameter: str | None = None


@dataclass(frozen=True)
class Claim:
    """A column."""

    key: str
    title: str
    meaning: str


@dataclass(frozen=True)
class Model:
    """A row: `tests` by claim, and the family of the benchmark that has this model's architecture."""

    name: str
    benchmark: str
    tests: Mapping[str, tuple[Backing, ...]]
    issues: tuple[str, ...] = ()


CLAIMS = (
    Claim("cpu", "eager", "the family's contract on a whole small checkpoint: files to embeddings, bad items alone"),
    Claim("describe", "token counts", "1,000 random sizes or lengths give the number of tokens of Hugging Face's"),
    Claim("video", "video", "video files: grids, pixels and times as Hugging Face's processor makes them"),
    Claim("ranks", "ranks", "2 and 4 ranks equal one within 1e-5 in float32, of every shape of batch"),
    Claim("service", "service", "through HTTP exactly the tokens of one whole vLLM engine of the same weights"),
    Claim("accuracy", "accuracy", "towers against Hugging Face's"),
)

_UNIT = "tests/unit/encoder_workers"
_QWEN_PIXELS = f"{_UNIT}/test_qwen_pixels.py"
_QWEN_VIDEO = f"{_UNIT}/test_qwen_video.py"
_EQUAL = ("test_equals_the_reference", "test_equals_the_reference_in_bfloat16")
_TOWER_EQUAL = ("test_tower_equals_the_reference", "test_tower_equals_the_reference_in_bfloat16")


def _tests(family: str, ranks: tuple[str, ...] = ()) -> dict[str, tuple[Backing, ...]]:
    """The tests over all families, of one by its names there."""
    return {
        "cpu": (
            Backing(
                f"{_UNIT}/test_every_family.py",
                ("test_description_without_weights_is_what_encoding_gives", "test_bad_items_fail_alone_and_typed"),
                family,
            ),
        ),
        "ranks": tuple(
            Backing(f"{_UNIT}/ranks/test_towers.py", ("test_ranks_equal_one_rank",), name)
            for name in ranks or (family,)
        ),
        "service": (Backing("tests/e2e/test_families.py", ("test_same_tokens_as_one_engine",), family),),
        "ascend": (Backing("tests/npu/npu_cases.py", ("test_every_tower_runs_on_the_ascend_path",), family),),
    }


def _qwen(family: str, size: str, style: str, tower: str, layout: str | None = None) -> dict[str, tuple[Backing, ...]]:
    """Of a Qwen-VL family; `size` and `style` are what the tests call its picture and its video processor."""
    clips = "qwen3_vl" if style == "qwen3_vl" else "qwen2_5_vl"  # Qwen2-VL's processor is Qwen2.5-VL's.
    header = ("test_description_from_the_header_equals_the_reference_expansion",)
    return _tests(family) | {
        "describe": (
            Backing(_QWEN_PIXELS, header, size),
            Backing(_QWEN_VIDEO, ("test_token_formula_equals_the_reference",), style),
        ),
        "video": (Backing(_QWEN_VIDEO, ("test_rows_are_bit_equal_to_the_reference",), clips),),
        "accuracy": (Backing(f"{_UNIT}/{tower}", _EQUAL, layout),),
    }


def _internvl(*layouts: str) -> dict[str, tuple[Backing, ...]]:
    family = "internvl_chat" if layouts[0] == "opengvlab" else "internvl"
    split = tuple(f"internvl-{layout}" for layout in layouts)
    tower = f"{_UNIT}/test_internvl.py"
    return _tests(family, split) | {
        "describe": tuple(Backing(tower, ("test_number_of_tiles_equals_both_processors",), name) for name in layouts),
        "accuracy": tuple(Backing(tower, _TOWER_EQUAL, name) for name in layouts),
    }


_NO_INTERNVL_VIDEO = "video is not taken"
MODELS = (
    Model(
        "Qwen2-VL",
        "qwen2_vl",
        _qwen("qwen2_vl", "qwen2", "qwen2_vl", "test_qwen2_vl_tower.py"),
    ),
    Model(
        "Qwen2.5-VL",
        "qwen2_5_vl",
        _qwen("qwen2_5_vl", "qwen2.5", "qwen2_vl", "test_qwen2_5_vl_tower.py"),
        ("vLLM 0.30 itself drops a video's rate; Triptych tells the true one, so answers about videos may differ",),
    ),
    Model(
        "Qwen3-VL (dense)",
        "qwen3_vl",
        _qwen("qwen3_vl", "qwen3", "qwen3_vl", "test_qwen3_vl_tower.py", "dense"),
        ("vLLM 0.30 itself refuses its videos with the locked transformers; Triptych takes them",),
    ),
    Model(
        "Qwen3-VL (MoE)",
        "qwen3_vl",
        _qwen("qwen3_vl_moe", "qwen3", "qwen3_vl", "test_qwen3_vl_tower.py", "moe"),
        ("as Qwen3-VL",),
    ),
    Model("InternVL2", "internvl", _internvl("opengvlab"), (_NO_INTERNVL_VIDEO,)),
    Model("InternVL2.5", "internvl", _internvl("opengvlab"), (_NO_INTERNVL_VIDEO,)),
    Model("InternVL3.5", "internvl", _internvl("hf", "opengvlab"), (_NO_INTERNVL_VIDEO,)),
    Model(
        "Qwen2-Audio",
        "qwen2_audio",
        _tests("qwen2_audio")
        | {
            "describe": (
                Backing(f"{_UNIT}/test_qwen2_audio.py", ("test_thousand_lengths_have_the_reference_number_of_tokens",)),
            ),
            "accuracy": (Backing(f"{_UNIT}/test_qwen2_audio.py", _TOWER_EQUAL),),
        },
        ("vLLM 0.30 itself fails on sounds of more than 30 s; Triptych cuts them into clips",),
    ),
)
