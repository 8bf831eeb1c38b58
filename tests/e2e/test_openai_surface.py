"""The parts of the OpenAI API that clients use, through the stages; determined answers equal one engine's."""

from __future__ import annotations

import json
from typing import Any

import requests
from openai import OpenAI

from tests.e2e.conftest import MODEL_NAME
from tests.e2e.media import draw
from tests.e2e.servers import Server

_PICTURE = draw(1001, 200, 150)
_WITH_PICTURE: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": _PICTURE.data_url}},
            {"type": "text", "text": "What is this?"},
        ],
    }
]


def _same(client: OpenAI, reference: OpenAI, **options: Any) -> Any:
    """The service's answer to a chat request, after comparing choices and usage with the reference's."""
    answers = [
        c.chat.completions.create(model=MODEL_NAME, messages=_WITH_PICTURE, **options) for c in (client, reference)
    ]
    ours, theirs = answers
    assert [choice.message for choice in ours.choices] == [choice.message for choice in theirs.choices]
    assert [choice.finish_reason for choice in ours.choices] == [choice.finish_reason for choice in theirs.choices]
    assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens
    assert ours.usage.completion_tokens == theirs.usage.completion_tokens
    return ours


def test_models_health_version(client: OpenAI, service: Server) -> None:
    assert [model.id for model in client.models.list().data] == [MODEL_NAME]
    assert requests.get(f"{service.url}/health", timeout=10).status_code == 200
    assert requests.get(f"{service.url}/version", timeout=10).json()["version"] == "0.30.0"


def test_logprobs(client: OpenAI, reference: OpenAI) -> None:
    options = {"max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    ours, theirs = (
        c.chat.completions.create(model=MODEL_NAME, messages=_WITH_PICTURE, **options) for c in (client, reference)
    )
    for our, their in zip(ours.choices[0].logprobs.content, theirs.choices[0].logprobs.content, strict=True):
        assert our.token == their.token
        assert abs(our.logprob - their.logprob) < 1e-4
        assert [top.token for top in our.top_logprobs] == [top.token for top in their.top_logprobs]


def test_prompt_logprobs_come_from_prefill(client: OpenAI, reference: OpenAI) -> None:
    options: dict[str, Any] = {"max_tokens": 2, "temperature": 0, "extra_body": {"prompt_logprobs": 1}}
    messages = [{"role": "user", "content": "Hello there"}]
    ours, theirs = (
        c.chat.completions.create(model=MODEL_NAME, messages=messages, **options) for c in (client, reference)
    )
    assert len(ours.prompt_logprobs) == len(theirs.prompt_logprobs)
    for our, their in zip(ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:], strict=True):
        assert our.keys() == their.keys()


def test_seeded_sampling(client: OpenAI, reference: OpenAI) -> None:
    _same(client, reference, max_tokens=12, temperature=0.9, seed=7)


def test_several_sequences(client: OpenAI, reference: OpenAI) -> None:
    answer = _same(client, reference, max_tokens=6, temperature=1.0, seed=3, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_several_sequences_streamed(client: OpenAI, reference: OpenAI) -> None:
    whole = reference.chat.completions.create(
        model=MODEL_NAME, messages=_WITH_PICTURE, max_tokens=6, temperature=1.0, seed=3, n=2
    )
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(
        model=MODEL_NAME, messages=_WITH_PICTURE, max_tokens=6, temperature=1.0, seed=3, n=2, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert [texts[0], texts[1]] == [choice.message.content for choice in whole.choices]


def test_stop(client: OpenAI, reference: OpenAI) -> None:
    whole = reference.chat.completions.create(model=MODEL_NAME, messages=_WITH_PICTURE, max_tokens=16, temperature=0)
    text = whole.choices[0].message.content
    assert text is not None
    stop = next(character for character in text[2:] if character.isascii())
    _same(client, reference, max_tokens=16, temperature=0, stop=[stop])


def test_structured_output(client: OpenAI, reference: OpenAI) -> None:
    choices = ["a circle", "a square", "nothing at all"]
    answer = _same(
        client, reference, max_tokens=40, temperature=0, extra_body={"structured_outputs": {"choice": choices}}
    )
    assert answer.choices[0].message.content in choices


def test_structured_output_by_schema(client: OpenAI, reference: OpenAI) -> None:
    """A random model may fill its tokens with white space, so only equality is asked."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = _same(client, reference, max_tokens=24, temperature=0, response_format=wanted)
    assert answer.choices[0].message.content.lstrip().startswith("{")


def test_tools_named(client: OpenAI, service: Server) -> None:
    """A service without a tool parser says so, as vLLM does."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    answer = requests.post(
        f"{service.url}/v1/chat/completions",
        json={"model": MODEL_NAME, "messages": _WITH_PICTURE, "tools": [tool], "tool_choice": "auto", "max_tokens": 4},
        timeout=60,
    )
    assert answer.status_code == 400
    assert "tool-call-parser" in answer.json()["error"]["message"]


def test_stream_usage(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL_NAME,
            messages=_WITH_PICTURE,
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert sum(bool(chunk.choices) for chunk in chunks) >= 5


def test_completions_are_text_only(client: OpenAI, reference: OpenAI) -> None:
    ours, theirs = (
        c.completions.create(model=MODEL_NAME, prompt=["Once upon", "a time"], max_tokens=8, temperature=0, echo=False)
        for c in (client, reference)
    )
    assert [choice.text for choice in ours.choices] == [choice.text for choice in theirs.choices]


def test_completions_streamed(client: OpenAI, reference: OpenAI) -> None:
    whole = reference.completions.create(model=MODEL_NAME, prompt="Once upon", max_tokens=8, temperature=0)
    chunks = client.completions.create(model=MODEL_NAME, prompt="Once upon", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_responses(client: OpenAI, reference: OpenAI) -> None:
    picture = {"type": "input_image", "image_url": _PICTURE.data_url, "detail": "auto"}
    question = [{"role": "user", "content": [picture, {"type": "input_text", "text": "What?"}]}]
    ours, theirs = (
        c.responses.create(model=MODEL_NAME, input=question, max_output_tokens=8, temperature=0)
        for c in (client, reference)
    )
    assert ours.output_text == theirs.output_text


def test_responses_streamed(client: OpenAI, reference: OpenAI) -> None:
    """The events that come before content are sent with it, in their order."""
    whole = reference.responses.create(model=MODEL_NAME, input="Once upon", max_output_tokens=8, temperature=0)
    events = list(
        client.responses.create(model=MODEL_NAME, input="Once upon", max_output_tokens=8, temperature=0, stream=True)
    )
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text


def test_messages_streamed(service: Server, reference_started: Server) -> None:
    picture = {"type": "image", "source": {"type": "url", "url": _PICTURE.data_url}}
    question = [{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}]
    body = {"model": MODEL_NAME, "messages": question, "max_tokens": 8, "temperature": 0}
    whole = requests.post(f"{reference_started.url}/v1/messages", json=body, timeout=60).json()
    streamed = requests.post(f"{service.url}/v1/messages", json={**body, "stream": True}, timeout=60)
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.text.splitlines() if line[:5] == "data:"]
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == whole["content"][0]["text"]


def test_tokenize_counts_the_picture(service: Server, reference_started: Server) -> None:
    body = {"model": MODEL_NAME, "messages": _WITH_PICTURE}
    urls = (service.url, reference_started.url)
    ours, theirs = (requests.post(f"{url}/tokenize", json=body, timeout=60).json() for url in urls)
    assert ours["count"] == theirs["count"]
    assert ours["tokens"] == theirs["tokens"]


def test_request_processor_options_change_the_number_of_tokens(client: OpenAI, reference: OpenAI) -> None:
    """`mm_processor_kwargs` of a request reach the encoder, and its token count is one engine's."""
    options = {"max_tokens": 6, "temperature": 0, "extra_body": {"mm_processor_kwargs": {"max_pixels": 28 * 28 * 16}}}
    _same(client, reference, **options)
