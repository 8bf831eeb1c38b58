"""Through HTTP and three stages, the tokens are those of one engine that does everything."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.conftest import MODEL_NAME, PictureHost
from tests.e2e.questions import Question, questions

NUM_TOKENS = 12


def ask(client: OpenAI, messages: list[dict[str, Any]], *, stream: bool) -> tuple[list[int], list[int]]:
    """Prompt and answer as token ids, float32 and greedy."""
    extra = {"return_token_ids": True, "ignore_eos": True}
    if not stream:
        answer: Any = client.chat.completions.create(
            model=MODEL_NAME, messages=messages, max_tokens=NUM_TOKENS, temperature=0, extra_body=extra
        )
        return answer.prompt_token_ids, answer.choices[0].token_ids
    prompt_ids: list[int] = []
    token_ids: list[int] = []
    chunks: Any = client.chat.completions.create(
        model=MODEL_NAME, messages=messages, max_tokens=NUM_TOKENS, temperature=0, extra_body=extra, stream=True
    )
    for chunk in chunks:
        prompt_ids = getattr(chunk, "prompt_token_ids", None) or prompt_ids
        for choice in chunk.choices:
            token_ids += getattr(choice, "token_ids", None) or []
    return prompt_ids, token_ids


@pytest.mark.parametrize("question", questions(), ids=lambda question: f"q{question.number}")
def test_same_tokens_as_one_engine(
    client: OpenAI, reference: OpenAI, picture_host: PictureHost, question: Question
) -> None:
    messages = question.messages(picture_host.url_of)
    expected_prompt, expected = ask(reference, messages, stream=False)
    prompt, tokens = ask(client, messages, stream=question.stream)
    assert prompt == expected_prompt
    assert len(expected) == NUM_TOKENS
    assert tokens == expected


def test_answers_depend_on_the_picture(reference: OpenAI) -> None:
    """The comparison above proves nothing if the model ignores its pictures."""
    answers = set()
    for question in questions():
        if len(question.parts) > 1 and not question.by_url:
            answers.add(tuple(ask(reference, question.messages(lambda picture: picture.data_url), stream=False)[1]))
    assert len(answers) > 15
