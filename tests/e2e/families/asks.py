"""What the families are asked: chat requests with text, pictures, clips and sounds, and requests to be refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from make_random_checkpoint import VLLM_FAMILIES
from PIL import Image

from encoder_workers import Embedding, Limits, Media, load_encoder
from encoder_workers.audio import decode_audio
from tests.e2e.media import Picture, draw
from tests.sounds_and_clips import clip, frames, sound, wav
from tests.unit.encoder_workers.encoder_fixtures import image_file

MAX_MODEL_LEN = 4096
_MAX_TOKENS = 10
_CLIP_FPS = 24
_NOT_SENT = "image_num_patches"
Part = dict[str, Any]
UrlOf = Callable[[Picture], str]


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        options: more fields of the request's body.
        reference: the messages for the whole engine, where it cannot take `messages` themselves.
        refused: what the message of the 4xx answer says; None: there is an answer, equal to the whole engine's.
    """

    messages: list[Part]
    options: dict[str, Any] = field(default_factory=dict)
    reference: list[Part] | None = None
    refused: str | None = None
    max_tokens: int = _MAX_TOKENS


@dataclass(frozen=True)
class FamilyAsks:
    """Everything one family is asked, and what its servers are started with."""

    model: str
    asks: tuple[Ask, ...]
    limits: dict[str, int]
    media_io_kwargs: dict[str, dict[str, Any]]
    trust_remote_code: bool
    engine: str = "native"
    max_model_len: int = MAX_MODEL_LEN

    def for_programs(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def asks_of(family: str, model: Path, url_of: UrlOf) -> FamilyAsks:
    """The asks of one family; `url_of` gives a file its http URL."""
    loading: dict[str, dict[str, Any]] = {}
    if family in VLLM_FAMILIES:
        hears = family == "audioflamingo3"
        asks, limits = (_long_audio_asks(), {"audio": 1}) if hears else (_image_asks(url_of), {"image": 2})
        return FamilyAsks(str(model), tuple(asks), limits, loading, trust_remote_code=False, engine="vllm")
    if family == "qwen2_audio":
        asks, limits = [*_audio_asks(), *_given_audio_asks(model)], {"audio": 2}
    elif family.startswith("internvl"):
        asks, limits = [*_image_asks(url_of), *_given_image_asks(model)], {"image": 2}
    else:
        # vLLM tells Qwen2.5-VL that every video has 24 frames a second, so that family is shown one that has.
        loading = {"video": {"fps": _CLIP_FPS if family == "qwen2_5_vl" else 6}}
        asks = [*_image_asks(url_of), *_video_asks(url_of, loading)]
        asks += [*_given_image_asks(model), *_given_video_asks(model, loading["video"]["fps"])]
        limits = {"image": 2, "video": 2}
    return FamilyAsks(str(model), tuple(asks), limits, loading, family == "internvl_chat")


def _image_asks(url_of: UrlOf) -> list[Ask]:
    wide, tall = draw(1, 300, 120), draw(2, 90, 200, "jpeg")
    return [
        Ask(_user(_text("Is anyone there?"))),
        Ask(_user(_image(wide.data_url), _text("What is this?"))),
        Ask(_user(_text("Compare"), _image(tall.data_url), _text("with"), _image(url_of(wide)))),
        Ask([*_user(_image(wide.data_url)), _said("A picture."), *_user(_image(tall.data_url), _text("And this?"))]),
        Ask(_user(_image("data:image/png;base64,AAAA"), _text("Broken")), refused="not an image"),
    ]


def _video_asks(url_of: UrlOf, loading: dict[str, dict[str, Any]]) -> list[Ask]:
    options = {"media_io_kwargs": loading}
    film = Picture(clip(30, 84, 112, fps=_CLIP_FPS), "mp4")
    web = Picture(clip(17, 60, 90, fps=_CLIP_FPS, codec="libvpx-vp9", container="webm", seed=1), "webm")
    pictures = [image_file(Image.fromarray(frame), "JPEG", quality=90) for frame in frames(5, 56, 84, seed=2)]
    sequence = "data:video/jpeg;base64," + ",".join(base64.b64encode(picture).decode() for picture in pictures)
    still = draw(3, 100, 100)
    return [
        Ask(_user(_video(_data_url("video/mp4", film)), _text("What happens?")), options),
        Ask(_user(_text("First"), _video(url_of(web)), _image(still.data_url), _text("which?")), options),
        Ask(_user(_video(sequence), _text("and"), _video(_data_url("video/mp4", film))), options),
        Ask(_user(_video("data:video/mp4;base64,AAAA")), options, refused="damaged or in no known format|no frame"),
        Ask(
            _user(_video(_data_url("video/mp4", film))),
            {"media_io_kwargs": {"video": {"fps": -1}}},
            refused="fps must be a positive number",
        ),
        Ask(
            _user(_video(_data_url("video/mp4", film)), _text("<|video_pad|>")),
            options,
            refused="2 video placeholders for 1 items",
        ),
    ]


def _audio_asks() -> list[Ask]:
    short, long = sound(0.7), sound(32, seed=3)
    # vLLM fails on more than 30 s, so the whole engine is given what is heard of the file.
    heard = wav(decode_audio(long, Limits(), rate=16000, max_s=30).numpy(), 16000)
    stereo = sound(2.3, channels=2, seed=1)
    # vLLM needs torchaudio to convert rates, so the whole engine is given what our conversion makes of the file.
    fast = sound(1.7, rate=44100, channels=2, kind="FLAC", seed=2)
    converted = wav(decode_audio(fast, Limits(), rate=16000, max_s=30).numpy(), 16000)
    cut = {"mm_processor_kwargs": {"truncation": True}}
    return [
        Ask(_user(_text("Is anyone there?"))),
        Ask(_user(_audio(short), _text("What was that?"))),
        Ask(_user(_text("Compare"), _audio(stereo), _input_audio(short, "wav"))),
        Ask(_user(_audio(fast), _text("Go on")), reference=_user(_audio(converted), _text("Go on"))),
        Ask(_user(_audio(long), _text("Long")), cut, reference=_user(_audio(heard), _text("Long"))),
        Ask(_user(_audio(b"RIFF"), _text("Broken")), refused="not audio in a known format"),
        Ask(_user(_audio(sound(0.01)), _text("Too short")), refused="too short"),
    ]


def _long_audio_asks() -> list[Ask]:
    """For a model that takes one sound of any length in a prompt."""
    short, long = sound(0.7), sound(32, seed=3)
    fast = sound(1.7, rate=44100, channels=2, kind="FLAC", seed=2)
    converted = wav(decode_audio(fast, Limits(), rate=16000, max_s=30).numpy(), 16000)
    return [
        Ask(_user(_text("Is anyone there?"))),
        Ask(_user(_audio(short), _text("What was that?"))),
        Ask(_user(_audio(fast), _text("Go on")), reference=_user(_audio(converted), _text("Go on"))),
        Ask(_user(_text("Long"), _audio(long))),
        Ask(_user(_audio(b"RIFF"), _text("Broken")), refused="not audio in a known format"),
        Ask(_user(_audio(short), _audio(short)), refused="At most 1 audio"),
    ]


def _given_image_asks(model: Path) -> list[Ask]:
    """Pictures as embeddings that the client computed; the whole engine is shown the pictures."""
    wide, tall = draw(4, 260, 130), draw(5, 120, 190)
    given, whole = _given(model, Media("image", wide.data)), _text("See")
    broken = _given(model, Media("image", tall.data), drop_rows=1)
    return [
        Ask(_user(whole, given), reference=_user(whole, _image(wide.data_url))),
        Ask(
            _user(_image(tall.data_url), whole, given),
            reference=_user(_image(tall.data_url), whole, _image(wide.data_url)),
        ),
        Ask(_user(broken), refused="image 1 of 1: image_embeds has .* rows; with what is sent beside it"),
        Ask(_user({"type": "image_embeds", "image_embeds": "AAAA"}), refused="neither a file of torch.save"),
        Ask(_user({"type": "image_embeds", "image_embeds": "="}), refused="must be a tensor saved by torch.save"),
        Ask(_user({"type": "image_embeds", "image_embeds": None}), refused="has no content"),
    ]


def _given_video_asks(model: Path, fps: int) -> list[Ask]:
    film = Picture(clip(20, 84, 84, fps=_CLIP_FPS, seed=4), "mp4")
    given = _given(model, Media("video", film.data, (("fps", fps),)))
    return [Ask(_user(given, _text("Well?")), reference=_user(_video(_data_url("video/mp4", film)), _text("Well?")))]


def _given_audio_asks(model: Path) -> list[Ask]:
    heard = sound(1.3, seed=6)
    given = _given(model, Media("audio", heard))
    return [Ask(_user(_text("Hear"), given), reference=_user(_text("Hear"), _audio(heard)))]


def _given(model: Path, media: Media, drop_rows: int = 0) -> Part:
    """The content part with this item's embedding, and with what vLLM names beside it."""
    encoder = load_encoder(model, dtype="float32")
    (embedding,) = encoder.encode([media])
    encoder.close()
    assert isinstance(embedding, Embedding)
    file, kind = io.BytesIO(), f"{media.modality}_embeds"
    torch.save(embedding.tensor[drop_rows:], file)
    tensor = base64.b64encode(file.getvalue()).decode()
    arrays = {array.name: list(array.values) for array in embedding.metadata.prompt if array.name != _NOT_SENT}
    return {"type": kind, kind: {kind: tensor, **arrays} if arrays else tensor}


def _user(*parts: Part) -> list[Part]:
    return [{"role": "user", "content": list(parts)}]


def _said(text: str) -> Part:
    return {"role": "assistant", "content": text}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _image(url: str) -> Part:
    return {"type": "image_url", "image_url": {"url": url}}


def _video(url: str) -> Part:
    return {"type": "video_url", "video_url": {"url": url}}


def _audio(data: bytes) -> Part:
    return {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64," + base64.b64encode(data).decode()}}


def _input_audio(data: bytes, kind: str) -> Part:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}


def _data_url(kind: str, file: Picture) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.data).decode()}"
