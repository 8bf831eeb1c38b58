"""`triptych ask`: puts one question, with pictures if given, to a running service and streams the answer."""

from __future__ import annotations

import argparse
import base64
import mimetypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from openai import OpenAI
    from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionUserMessageParam

DEFAULT_URL = "http://127.0.0.1:8000"
_URL_SCHEMES = ("http://", "https://", "data:")
_TIMEOUT_S = 600.0


class AskError(Exception):
    """The question could not be put or answered; the message says why."""


def add_arguments(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser("ask", help="ask a running service", description=__doc__.partition("\n")[0])
    parser.add_argument("question")
    parser.add_argument("--image", action="append", default=[], metavar="F_OR_URL", help="file or URL; may be repeated")
    parser.add_argument("--url", default=DEFAULT_URL, metavar="BASE", help="the service (default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="served model name (default: the service's own)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens of the answer at most")
    parser.set_defaults(
        run=lambda parsed: run(parsed.question, parsed.image, parsed.url, parsed.model, parsed.max_tokens)
    )


def run(question: str, images: Sequence[str], url: str, model: str | None, max_tokens: int | None) -> int:
    """Print the answer as it comes; returns 1 when there is none."""
    try:
        message = build_message(question, images)
        _stream(url, message, model, max_tokens)
    except AskError as error:
        print(f"triptych ask: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build_message(question: str, images: Sequence[str]) -> ChatCompletionUserMessageParam:
    """The user's message: pictures in their order, then the question.

    Raises:
        AskError: a file cannot be read.
    """
    parts: list[ChatCompletionContentPartParam] = [
        {"type": "image_url", "image_url": {"url": image_url(image)}} for image in images
    ]
    parts.append({"type": "text", "text": question})
    return {"role": "user", "content": parts}


def image_url(image: str) -> str:
    """A URL as it is, a file as a data: URL.

    Raises:
        AskError: the file cannot be read.
    """
    if image.startswith(_URL_SCHEMES):
        return image
    try:
        content = Path(image).expanduser().read_bytes()
    except OSError as error:
        raise AskError(f"cannot read {image}: {error.strerror}") from error
    kind = mimetypes.guess_type(image)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _stream(url: str, message: ChatCompletionUserMessageParam, model: str | None, max_tokens: int | None) -> None:
    from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, OpenAI, omit

    from configs.environment import read_environment

    base = url.rstrip("/").removesuffix("/v1")
    # A service without keys takes any; a retry would repeat the question.
    key = read_environment().api_key or "none"
    client = OpenAI(base_url=f"{base}/v1", api_key=key, timeout=_TIMEOUT_S, max_retries=0)
    try:
        with client.chat.completions.create(
            model=model or _served_model(client),
            messages=[message],
            max_tokens=omit if max_tokens is None else max_tokens,
            stream=True,
        ) as chunks:
            for chunk in chunks:
                for choice in chunk.choices:
                    print(choice.delta.content or "", end="", flush=True)
            print()
    except APITimeoutError as error:
        raise AskError(f"{base} did not answer within {_TIMEOUT_S:.0f} s") from error
    except APIConnectionError as error:
        raise AskError(
            f"no service answers at {base}: start one with 'triptych serve CONFIG', or give --url"
        ) from error
    except APIStatusError as error:
        reason = error.message.removeprefix(f"Error code: {error.status_code} - ")
        raise AskError(f"{base} answered {error.status_code}: {reason}") from error
    except APIError as error:
        raise AskError(f"the answer broke off: {error.message}") from error


def _served_model(client: OpenAI) -> str:
    for model in client.models.list():
        return model.id
    raise AskError("the service names no model: give --model")
