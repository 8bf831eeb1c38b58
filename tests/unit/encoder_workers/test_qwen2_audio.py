"""Qwen2-Audio: features against Whisper's extractor, samples against vLLM's loader, tower against Hugging Face's."""

import copy
import io
import math
import random

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioModel, WhisperFeatureExtractor
from vllm.multimodal.media.audio import load_audio

from encoder_workers import Embedding, Encoder, Limits, Media, load_encoder
from encoder_workers.audio import AudioLength, decode_audio, read_audio_length
from encoder_workers.audio_resample import resample
from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.families import qwen2_audio
from encoder_workers.families.qwen2_audio.features import LogMel, MelSettings
from npu_kernels import select_ops
from tests.unit.encoder_workers.encoder_fixtures import Record, check_accuracy, randomize, write_tower_checkpoint
from transfer.errors import BadMedia, LimitExceeded

CPU = torch.device("cpu")
MEL = MelSettings(num_mel_bins=128, n_fft=400, hop_length=160, rate=16000, clip_s=30)
AUDIO = {
    "model_type": "qwen2_audio_encoder",
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 2,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "activation_function": "gelu",
    "scale_embedding": False,
}
TEXT = {"model_type": "qwen2", "hidden_size": 192, "intermediate_size": 64, "num_hidden_layers": 1}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 16}
CONFIG = {
    "architectures": ["Qwen2AudioForConditionalGeneration"],
    "audio_config": AUDIO,
    "text_config": {"hidden_size": 192},
}
PROCESSOR = {"feature_size": 128, "n_fft": 400, "hop_length": 160, "sampling_rate": 16000, "chunk_length": 30}


def tones(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A few tones and some noise, below full scale."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    waves = sum(0.15 * np.sin(2 * np.pi * draw.uniform(100, 3000) * time + draw.uniform(0, 6)) for _ in range(4))
    noisy = waves[:, None] + 0.05 * draw.standard_normal((len(time), channels))
    return noisy.astype(np.float32).squeeze()


def audio_file(samples: np.ndarray, rate: int, file_format: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=file_format, subtype=subtype)
    return out.getvalue()


RATES = [8000, 11025, 22050, 24000, 44100, 48000, 96000]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("relative", [0.02, 0.2, 0.4])
def test_rate_conversion_keeps_a_tone(rate: int, relative: float) -> None:
    """A tone well below both Nyquist rates is the same tone at the new rate: amplitude, phase and length."""
    frequency = relative * min(rate, 16000) / 2
    time, new_time = np.arange(rate) / rate, np.arange(16000) / 16000
    got = resample(torch.from_numpy(np.sin(2 * np.pi * frequency * time)).float(), rate, 16000)
    assert len(got) == 16000
    inner = slice(200, -200)
    assert np.abs(got.numpy() - np.sin(2 * np.pi * frequency * new_time))[inner].max() < 2e-3


@pytest.mark.parametrize("rate", [24000, 44100, 48000, 96000])
def test_rate_conversion_removes_what_the_new_rate_cannot_hold(rate: int) -> None:
    tone = torch.sin(2 * math.pi * 11000 * torch.arange(rate) / rate)
    assert resample(tone, rate, 16000)[200:-200].abs().max() < 2e-2


@pytest.mark.parametrize("rate", [16000, *RATES])
@pytest.mark.parametrize("seconds", [0.05, 1.37])
def test_decoding_averages_channels_and_keeps_the_promised_length(rate: int, seconds: float) -> None:
    data = audio_file(tones(seconds, rate, channels=2), rate)
    native, native_rate = load_audio(io.BytesIO(data), sr=None)  # vLLM's loader, before its rate conversion
    got = decode_audio(data, Limits(), rate=16000, max_s=30)
    assert len(got) == read_audio_length(data, Limits()).resampled(16000)
    assert torch.equal(got, resample(torch.from_numpy(native), int(native_rate), 16000))
    if rate > 16000:
        other = scipy.signal.resample_poly(native, 16000 // math.gcd(rate, 16000), rate // math.gcd(rate, 16000))
        assert np.corrcoef(got.numpy(), other)[0, 1] > 0.995


@pytest.mark.parametrize(
    ("file_format", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None), ("WAV", "PCM_U8")]
)
def test_formats_have_the_length_their_header_tells(file_format: str, subtype: str | None) -> None:
    data = audio_file(tones(2.0, 16000), 16000, file_format, subtype)
    length = read_audio_length(data, Limits())
    got = decode_audio(data, Limits(), rate=16000, max_s=30)
    assert len(got) == length.num_samples
    assert np.corrcoef(got.numpy()[:32000], tones(2.0, 16000))[0, 1] > 0.9


@pytest.mark.parametrize("seconds", [0.06, 0.5, 2.51, 10.0, 29.999, 30.0, 34.0])
def test_features_equal_the_reference(seconds: float) -> None:
    samples = tones(seconds, 16000, seed=3)
    theirs = WhisperFeatureExtractor(feature_size=128)(
        samples, sampling_rate=16000, return_attention_mask=True, padding="max_length", return_tensors="pt"
    )
    features = LogMel(MEL)(torch.from_numpy(samples))
    full = theirs["input_features"][0]
    assert (features - full[:, : features.shape[1]]).abs().max() < 1e-5
    valid = int(theirs["attention_mask"].sum())
    rows = (valid - 1) // 2 + 1
    assert features.shape[1] == min(3000, 2 * rows + 1)


@pytest.fixture(scope="module")
def reference() -> Qwen2AudioModel:
    model = Qwen2AudioModel._from_config(Qwen2AudioConfig(audio_config=AUDIO, text_config=TEXT))
    randomize(model, seed=29)
    return model.eval()


@pytest.fixture(scope="module", params=["", "model."])
def checkpoint(request: pytest.FixtureRequest, reference, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tensors = {f"{request.param}{name}": tensor for name, tensor in reference.state_dict().items()}
    return Checkpoint(write_tower_checkpoint(tmp_path_factory.mktemp("audio"), CONFIG, tensors, PROCESSOR))


def reference_tokens(model: Qwen2AudioModel, samples: np.ndarray) -> torch.Tensor:
    """Tokens as Hugging Face's model makes them: whole padded clip, mask over the padding, valid tokens kept."""
    inputs = WhisperFeatureExtractor(feature_size=128)(
        samples, sampling_rate=16000, return_attention_mask=True, padding="max_length", return_tensors="pt"
    )
    rows, tokens = model.audio_tower._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1))
    hidden_keys = torch.arange(1500)[None, :] >= rows[:, None]
    mask = torch.zeros(1, 1, 1500, 1500).masked_fill(hidden_keys[:, None, None, :], float("-inf")).to(model.dtype)
    with torch.inference_mode():
        features = inputs["input_features"].to(model.dtype)
        hidden = model.audio_tower(features, attention_mask=mask).last_hidden_state
        return model.multi_modal_projector(hidden)[0, : int(tokens)]


@pytest.fixture(scope="module")
def half_reference(reference) -> Qwen2AudioModel:
    return copy.deepcopy(reference).bfloat16()


def test_tower_equals_the_reference(checkpoint: Checkpoint, reference, record_property: Record) -> None:
    compare(checkpoint, reference, torch.float32, record_property)


def test_tower_equals_the_reference_in_bfloat16(
    checkpoint: Checkpoint, half_reference, record_property: Record
) -> None:
    compare(checkpoint, half_reference, torch.bfloat16, record_property)


def compare(checkpoint: Checkpoint, reference, dtype: torch.dtype, record: Record) -> None:
    processor = qwen2_audio.load_processor(checkpoint)
    tower = qwen2_audio.load_tower(checkpoint, select_ops("auto", CPU), CPU, dtype)
    clips = [tones(seconds, 16000, seed=i) for i, seconds in enumerate((0.55, 2.21, 1.0))]
    media = [Media("audio", audio_file(clip, 16000)) for clip in clips]
    batch = [processor.preprocess(processor.decode(item, Limits())) for item in media]
    got = tower.forward(batch)
    described = [processor.describe(item, Limits()) for item in media]
    assert [tokens.shape for tokens in got] == [(metadata.num_tokens, 192) for metadata in described]
    check_accuracy(record, got, [reference_tokens(reference, clip) for clip in clips])


@pytest.fixture(scope="module")
def encoder(reference, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = tmp_path_factory.mktemp("encoder")
    return load_encoder(write_tower_checkpoint(directory, CONFIG, reference.state_dict(), PROCESSOR), dtype="float32")


@pytest.mark.parametrize("seconds", [0.1, 0.32, 7.77, 30.0, 31.5, 60.0])
def test_every_length_equals_the_reference(encoder: Encoder, reference, seconds: float) -> None:
    """A long sound is the reference's clips of 30 s one after another; with `truncation` only the first, as there."""
    samples = tones(seconds, 16000, seed=6)
    clips = [reference_tokens(reference, part) for part in np.split(samples, range(480_000, len(samples), 480_000))]
    file = audio_file(samples, 16000)
    whole, first = encoder.encode([Media("audio", file), Media("audio", file, (("truncation", True),))])
    assert isinstance(whole, Embedding) and isinstance(first, Embedding)
    for got, expected in ((whole.tensor, torch.cat(clips)), (first.tensor, reference_tokens(reference, samples))):
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < 1e-4


def test_long_and_short_sounds_in_one_pass(encoder: Encoder) -> None:
    media = [Media("audio", audio_file(tones(s, 16000, seed=int(s)), 16000)) for s in (30.01, 2.0, 31.3)]
    for item, together in zip(media, encoder.encode(media), strict=True):
        (alone,) = encoder.encode([item])
        assert isinstance(alone, Embedding) and isinstance(together, Embedding)
        assert (alone.tensor - together.tensor).abs().max() < 1e-4


GOLDEN = [(0.5, 12), (1, 25), (2.5, 62), (10, 250), (30, 750), (30.005, 750), (60, 1500), (95, 2375)]


@pytest.mark.parametrize(("seconds", "tokens"), GOLDEN)
def test_golden_token_counts(checkpoint: Checkpoint, seconds: float, tokens: int) -> None:
    processor = qwen2_audio.load_processor(checkpoint)
    data = audio_file(np.zeros(int(seconds * 16000), dtype=np.float32), 16000)
    assert processor.describe(Media("audio", data), Limits()).num_tokens == tokens
    cut = processor.describe(Media("audio", data, (("truncation", True),)), Limits())
    assert cut.num_tokens == min(tokens, 750)


def test_thousand_lengths_have_the_reference_number_of_tokens(checkpoint: Checkpoint, reference) -> None:
    processor, draw = qwen2_audio.load_processor(checkpoint), random.Random(13)
    lengths = [draw.randint(800, 480_000) for _ in range(1000)]
    # As WhisperFeatureExtractor thins out its mask over samples.
    frames = torch.tensor([len(range(0, length, 160)) for length in lengths])
    _, tokens = reference.audio_tower._get_feat_extract_output_lengths(frames)
    assert [processor.audio_metadata(length).num_tokens for length in lengths] == tokens.tolist()


def test_lengths_round_up() -> None:
    assert AudioLength(44101, 44100).resampled(16000) == 16001
    assert AudioLength(44100, 44100).resampled(16000) == 16000


def test_bad_audio_is_named(checkpoint: Checkpoint) -> None:
    processor = qwen2_audio.load_processor(checkpoint)
    good = audio_file(tones(1, 16000), 16000)
    for data, message in (
        (b"", "empty"),
        (b"ID3 not really", "not audio in a known format"),
        (audio_file(np.zeros(100, dtype=np.float32), 16000), "too short: 0.006 s"),
    ):
        with pytest.raises(BadMedia, match=message):
            processor.describe(Media("audio", data), Limits())
    with pytest.raises(LimitExceeded, match="more than the limit of 100"):
        processor.describe(Media("audio", good), Limits(item_bytes=100))
    with pytest.raises(LimitExceeded, match="17 channels"):
        processor.describe(Media("audio", audio_file(np.zeros((800, 17), dtype=np.float32), 16000)), Limits())
    with pytest.raises(BadMedia, match="not image"):
        processor.describe(Media("image", good), Limits())
    with pytest.raises(ValueError, match="unknown processor option 'fps'"):
        processor.describe(Media("audio", good, (("fps", 1),)), Limits())
    with pytest.raises(ValueError, match="truncation must be true or false"):
        processor.describe(Media("audio", good, (("truncation", 1),)), Limits())


@pytest.mark.parametrize(
    ("config", "processor", "message"),
    [
        ({"scale_embedding": True}, {}, "scale_embedding"),
        ({"max_source_positions": 1400}, {}, "does not fit the features"),
        ({}, {"dither": 0.1}, "dither"),
    ],
)
def test_bad_configurations_are_named(tmp_path, config: dict, processor: dict, message: str) -> None:
    directory = write_tower_checkpoint(
        tmp_path,
        CONFIG | {"audio_config": AUDIO | config},
        {"audio_tower.x": torch.zeros(1)},
        PROCESSOR | processor,
    )
    with pytest.raises(CheckpointError, match=message):
        load_encoder(directory, dtype="float32")
