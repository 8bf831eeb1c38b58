"""Embeddings in chat messages pass the renderer as media do, and reach the encoder as they were sent."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError

from cluster.ingress.embedding_parts import GivenPart, given_part, naming_embeddings
from encoder_workers import Media
from encoder_workers.given_embeddings import open_given
from tests.unit.encoder_workers.test_tensor_files import torch_file

ROWS = torch.arange(8.0).reshape(2, 4)
TENSOR = base64.b64encode(torch_file(ROWS)).decode()


def user(*parts: dict[str, Any]) -> Any:
    return {"role": "user", "content": iter(parts)}


def test_every_embedding_has_a_url_of_its_own_kind_and_other_parts_stay() -> None:
    text, picture = {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,x"}}
    given = {"type": "image_embeds", "image_embeds": {"image_embeds": TENSOR, "image_grid_thw": [1, 2, 4]}}
    heard = {"audio_embeds": TENSOR}
    messages = [{"role": "system", "content": "b"}, user(text, given, picture), user(heard)]
    with naming_embeddings(messages) as named:  # type: ignore[arg-type]
        assert named[0] == messages[0]
        first, last = [list(message["content"]) for message in named[1:]]  # type: ignore[typeddict-item, arg-type]
        assert [first[0], first[2]] == [text, picture]
        assert (first[1]["type"], last[0]["type"]) == ("image_url", "audio_url")  # type: ignore[index]
        url = first[1]["image_url"]["url"]  # type: ignore[index, typeddict-item]
        part = given_part(url)
        assert part is not None
        opened = open_given(Media("image", part.packed()))
        assert torch.equal(opened.rows, ROWS) and opened.arrays["image_grid_thw"].values == (1, 2, 4)
        assert given_part(last[0]["audio_url"]["url"]) == GivenPart("audio_embeds", TENSOR)  # type: ignore[index, typeddict-item]
        assert given_part(url + "7") is None and given_part("data:,x") is None
    # Another request must not see it.
    assert given_part(url) is None


@pytest.mark.parametrize("payload", ["=", 5, ["a"], {"image_embeds": {}}, {"image_embeds": [True]}, [[1.0]]])
def test_a_part_of_another_form_is_the_clients_error(payload: object) -> None:
    with pytest.raises(VLLMValidationError, match="image_embeds must be a tensor saved by torch"):
        GivenPart("image_embeds", payload).packed()


def test_a_part_without_content_is_refused() -> None:
    with (
        pytest.raises(VLLMValidationError, match="has no content"),
        naming_embeddings([user({"type": "image_embeds", "image_embeds": None, "uuid": "1"})]),
    ):
        pass
