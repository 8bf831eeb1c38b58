"""One contract for all families, each on a small whole checkpoint: what `encoder_workers.interface` promises."""

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from make_random_checkpoint import FAMILIES, make_checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor

from encoder_workers import Embedding, Encoder, ItemMetadata, Limits, Media, load_encoder, load_processor
from encoder_workers.given_embeddings import Field, pack_given
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image
from transfer.errors import BadMedia, LimitExceeded

IMAGE_SIZES = [(90, 140), (230, 60), (70, 70)]


def items(modality: str) -> list[Media]:
    """Three good items of different cost."""
    if modality == "image":
        return [Media("image", image_file(noise_image(*size, seed=i), "PNG")) for i, size in enumerate(IMAGE_SIZES)]
    clips = []
    for seconds in (0.4, 2.0, 1.1):
        out = io.BytesIO()
        noise = np.random.default_rng(int(seconds * 10)).standard_normal(int(16000 * seconds)) * 0.1
        soundfile.write(out, noise.astype(np.float32), 16000, format="WAV", subtype="FLOAT")
        clips.append(Media("audio", out.getvalue()))
    return clips


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("family") / request.param
    make_checkpoint(out_dir, family=request.param, seed=3)
    return out_dir


@pytest.fixture(scope="module")
def encoder(model: Path) -> Encoder:
    return load_encoder(model, dtype="float32")


@pytest.fixture(scope="module")
def media(encoder: Encoder) -> list[Media]:
    return items(encoder.modalities[0])


def embeddings(encoder: Encoder, media: list[Media]) -> list[torch.Tensor]:
    results = encoder.encode(media)
    assert all(isinstance(result, Embedding) for result in results)
    return [result.tensor for result in results if isinstance(result, Embedding)]


def test_description_without_weights_is_what_encoding_gives(encoder: Encoder, model: Path, media: list[Media]) -> None:
    described = encoder.describe(media)
    processor = load_processor(model)
    assert described == [processor.describe(item, Limits()) for item in media]
    for metadata, tensor in zip(described, embeddings(encoder, media), strict=True):
        assert isinstance(metadata, ItemMetadata)
        assert tensor.shape == (metadata.num_tokens, encoder.width)
        assert tensor.dtype == encoder.dtype == torch.float32
        assert tensor.isfinite().all()


def test_the_work_told_from_the_header_is_what_the_tower_will_compute(encoder: Encoder, media: list[Media]) -> None:
    """By the same cost model that plans passes over several ranks: rows, and pairs of rows in full attention."""
    tower: Any = encoder._tower
    for item in media:
        prepared = encoder.preprocess(encoder.decode(item))
        shape = tower.shape(prepared)
        assert prepared.metadata.num_patches == shape.num_rows
        assert prepared.metadata.num_pairs == shape.num_pairs
        assert encoder.work(prepared.metadata) == pytest.approx(tower.costs.of(shape) / tower.costs.per_row)


def given(metadata: ItemMetadata, rows: torch.Tensor, **changed: Field) -> Media:
    """An embedding as a client sends it, with what its prompt needs beside it."""
    arrays = {} if metadata.modality == "audio" else {array.name: array.values for array in metadata.prompt}
    arrays.pop("image_num_patches", None)
    file = io.BytesIO()
    torch.save(rows, file)
    fields = {f"{metadata.modality}_embeds": file.getvalue(), **arrays, **changed}
    return Media(metadata.modality, pack_given(fields))


def test_an_embedding_is_taken_from_a_client_as_it_was_computed(encoder: Encoder, media: list[Media]) -> None:
    for item in media:
        (own,) = encoder.encode([item])
        assert isinstance(own, Embedding)
        taken = encoder.take(given(own.metadata, own.tensor))
        assert torch.equal(taken.tensor, own.tensor)
        assert (taken.metadata.num_tokens, taken.metadata.prompt) == (own.metadata.num_tokens, own.metadata.prompt)


def test_an_embedding_of_another_shape_is_refused(encoder: Encoder, media: list[Media]) -> None:
    """The engine would fail on it, or put rows of one item where another's belong."""
    (metadata,) = encoder.describe([media[0]])
    assert isinstance(metadata, ItemMetadata)
    rows = torch.zeros(metadata.num_tokens, encoder.width)
    with pytest.raises(BadMedia, match=f"{encoder.width - 1} columns; this model's embeddings have {encoder.width}"):
        encoder.take(given(metadata, rows[:, 1:]))
    with pytest.raises(BadMedia, match=r"\[num_tokens, width\]"):
        encoder.take(given(metadata, rows[None].repeat(2, 1, 1)))
    with pytest.raises(BadMedia, match="unknown field 'more'"):
        encoder.take(given(metadata, rows, more=[1]))
    if metadata.modality == "image":
        with pytest.raises(BadMedia, match=f"{metadata.num_tokens - 1} rows; .* must have"):
            encoder.take(given(metadata, rows[1:]))
    other = "audio" if metadata.modality == "image" else "image"
    with pytest.raises(BadMedia, match=f"this model takes .*, not {other}"):
        encoder.take(replace(given(metadata, rows), modality=other))


def test_a_grid_that_no_picture_has_is_refused(encoder: Encoder, media: list[Media]) -> None:
    (metadata,) = encoder.describe([media[0]])
    assert isinstance(metadata, ItemMetadata)
    if not any(array.name == "image_grid_thw" for array in metadata.prompt):
        pytest.skip("this family's embeddings have no grid")
    rows = torch.zeros(8, encoder.width)
    for grid in ([2, 4, 4], [1, 1, 32], [1, -4, -8], [1.0, 4, 8], [4, 8], [10**400, 4, 8]):
        with pytest.raises(BadMedia, match="image_grid_thw"):
            encoder.take(given(metadata, rows, image_grid_thw=grid))


def test_an_item_does_not_depend_on_its_batch(encoder: Encoder, media: list[Media]) -> None:
    together = embeddings(encoder, media)
    for item, tensor in zip(media, together, strict=True):
        (alone,) = embeddings(encoder, [item])
        assert (alone - tensor).abs().max() < 1e-5 * tensor.abs().max()
    turned = embeddings(encoder, media[::-1])
    assert [tensor.shape for tensor in turned] == [tensor.shape for tensor in together[::-1]]
    assert (turned[-1] - together[0]).abs().max() < 1e-5 * together[0].abs().max()


def test_content_matters(encoder: Encoder, media: list[Media]) -> None:
    """Guards every comparison above: two items of one shape give clearly different embeddings."""
    if encoder.modalities[0] == "image":
        other = Media("image", image_file(noise_image(*IMAGE_SIZES[0], seed=99), "PNG"))
    else:
        samples, rate = soundfile.read(io.BytesIO(media[0].data), dtype="float32")
        out = io.BytesIO()
        soundfile.write(out, samples[::-1], rate, format="WAV", subtype="FLOAT")
        other = Media("audio", out.getvalue())
    first, second = embeddings(encoder, [media[0], other])
    assert first.shape == second.shape
    assert (first - second).norm() > 0.05 * first.norm()


def test_bad_items_fail_alone_and_typed(encoder: Encoder, media: list[Media]) -> None:
    modality = encoder.modalities[0]
    foreign: Media = Media("audio" if modality == "image" else "image", b"anything")
    mixed = [Media(modality, b"junk"), media[0], foreign, Media(modality, b""), media[1]]
    kinds = [BadMedia, Embedding, BadMedia, BadMedia, Embedding]
    assert [type(result) for result in encoder.encode(mixed)] == kinds
    described = encoder.describe(mixed)
    assert [isinstance(result, BadMedia) for result in described] == [kind is BadMedia for kind in kinds]


def test_unknown_options_are_an_error_of_the_request(encoder: Encoder, media: list[Media]) -> None:
    with pytest.raises(ValueError, match="unknown processor option 'colour'"):
        encoder.describe([Media(media[0].modality, media[0].data, (("colour", 1),))])


def test_token_limit_is_checked_from_the_header(model: Path, media: list[Media]) -> None:
    processor = load_processor(model)
    tokens = processor.describe(media[0], Limits()).num_tokens
    assert processor.describe(media[0], Limits(tokens=tokens)).num_tokens == tokens
    with pytest.raises(LimitExceeded, match=f"{tokens} tokens"):
        processor.describe(media[0], Limits(tokens=tokens - 1))


def test_loading_again_gives_the_same_encoder(encoder: Encoder, model: Path, media: list[Media]) -> None:
    again = load_encoder(model, dtype="float32")
    assert (again.revision, again.width, again.layout) == (encoder.revision, encoder.width, encoder.layout)
    for left, right in zip(embeddings(again, media), embeddings(encoder, media), strict=True):
        assert torch.equal(left, right)


def test_describing_and_preparing_in_threads_while_a_pass_runs(encoder: Encoder, media: list[Media]) -> None:
    expected = embeddings(encoder, media)
    failures: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            for _ in range(5):
                work()
        except BaseException as error:  # handed to the test's own thread
            failures.append(error)

    def prepare() -> None:
        for item in media:
            encoder.preprocess(encoder.decode(item))

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (prepare, lambda: encoder.describe(media))]
    for thread in threads:
        thread.start()
    for _ in range(5):
        for got, wanted in zip(embeddings(encoder, media), expected, strict=True):
            assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures


def test_bfloat16_is_near_float32(encoder: Encoder, model: Path, media: list[Media]) -> None:
    half = load_encoder(model, dtype="bfloat16")
    for got, wanted in zip(embeddings(half, media), embeddings(encoder, media), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - wanted).norm() < 0.06 * wanted.norm()


QWEN_VL_FAMILIES = ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe"]


@pytest.mark.parametrize("family", QWEN_VL_FAMILIES)
def test_image_files_to_embeddings_equal_the_whole_reference(family: str, tmp_path: Path) -> None:
    """Processor and tower of Hugging Face's model, prompt expansion included, against ours from the same files."""
    make_checkpoint(tmp_path / family, family=family, seed=5)
    encoder = load_encoder(tmp_path / family, dtype="float32")
    processor = AutoProcessor.from_pretrained(tmp_path / family)
    reference = AutoModelForImageTextToText.from_pretrained(tmp_path / family, dtype=torch.float32)
    images = [noise_image(*size, seed=i) for i, size in enumerate(IMAGE_SIZES)]
    prompt = "<|vision_start|><|image_pad|><|vision_end|>" * len(images)
    inputs = processor(text=prompt, images=images, return_tensors="pt")
    with torch.inference_mode():
        visual = reference.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    levels = [visual.pooler_output]
    if encoder.layout == "main+deepstack2":
        levels += visual.deepstack_features
    expected = torch.cat(levels, dim=1)
    media = items("image")
    got = torch.cat(embeddings(encoder, media))
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()
    described = [metadata for metadata in encoder.describe(media) if isinstance(metadata, ItemMetadata)]
    grids = [list(metadata.array("image_grid_thw").values) for metadata in described]
    assert grids == inputs["image_grid_thw"].tolist()
    image_token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert sum(metadata.num_tokens for metadata in described) == int((inputs["input_ids"] == image_token).sum())
