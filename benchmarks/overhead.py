"""Where the time of one request goes, one request at a time: a table and JSON.

Starts an E/P/D service of a small random checkpoint with tracing on, asks streamed questions about a new picture each,
and divides the time from sending a request to its first token among the steps of its way. Then compares the time per
token over HTTP with that of a decode engine read inside this process. Last, a service whose embedding of one picture
has 64 MiB: which part of the time to its first token passes between the end of encoding and prefill having it.

    python -m benchmarks.overhead [--requests 40] [--tokens 256] [--json benchmarks/results/overhead.json]

All processes of one host share the monotonic clock, so moments of different processes can be subtracted.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.service import random_checkpoint, running_service

_MODEL = "demo"
_ENGINE = {"kv_cache_bytes": "256 MiB", "engine_args": {"max_model_len": 4096, "enforce_eager": True}}
_LARGE_FAMILY = "qwen2_5_vl_wide"
_LARGE_SIDE = 1792  # 4096 tokens of 4096 columns in float32: 64 MiB
_LARGE_ENGINE_ARGS = {"max_model_len": 8192, "max_num_batched_tokens": 8192, "enforce_eager": True}
_LARGE_ENGINE = {"kv_cache_bytes": "256 MiB", "engine_args": _LARGE_ENGINE_ARGS}


@dataclass(frozen=True)
class Step:
    """One part of a request's way, from one moment to another."""

    name: str
    begin: str
    end: str


STEPS = (
    Step("client to ingress", "sent", "arrived"),
    Step("ingress: parse, render", "arrived", "tickets_asked"),
    Step("ticket", "tickets_asked", "tickets_taken"),
    Step("ingress: expand, check", "tickets_taken", "prefill_called"),
    Step("dispatch to prefill", "prefill_called", "prefill_queued"),
    Step("encode still running", "prefill_queued", "encoded"),
    Step("fetch", "fetch_begin", "prefill_scheduled"),
    Step("prefill (compute)", "prefill_scheduled", "prefill_first_token"),
    Step("relay to ingress", "prefill_first_token", "first_output"),
    Step("ingress to client", "first_output", "received"),
)
SECOND_TOKEN_STEPS = (
    Step("dispatch to decode", "decode_called", "decode_queued"),
    Step("KV hand-off", "decode_queued", "decode_scheduled"),
    Step("decode (compute)", "decode_scheduled", "decode_first_token"),
    Step("relay to ingress", "decode_first_token", "decode_output"),
)
COMPUTE = (("encode_begin", "encoded"), ("prefill_scheduled", "prefill_first_token"))


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="Where the time of one request goes.")
    parser.add_argument("--requests", type=int, default=40, help="measured requests")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of the relay measurement")
    parser.add_argument("--size", type=int, default=448, help="width and height of the pictures")
    parser.add_argument("--large-requests", type=int, default=8, help="measured requests with an embedding of 64 MiB")
    parser.add_argument("--json", type=Path, default=None, help="file for the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _service(Path(folder), "qwen2_5_vl", _ENGINE) as started:
        url, trace_file, settings = started
        rows = list(_first_tokens(url, trace_file, arguments.requests, arguments.size))
        over_http = _seconds_per_token(url, arguments.tokens)
        in_process = asyncio.run(_seconds_per_token_in_process(settings, arguments.tokens))
    result = _result(rows, over_http, in_process)
    _print(result)
    with tempfile.TemporaryDirectory() as folder, _service(Path(folder), _LARGE_FAMILY, _LARGE_ENGINE) as started:
        url, trace_file, _ = started
        large = list(_first_tokens(url, trace_file, arguments.large_requests, _LARGE_SIDE))
    result |= _result_large(large)
    _print_large(result)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


@contextlib.contextmanager
def _service(folder: Path, family: str, engine: dict[str, Any]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """A running service of a random checkpoint; its address, its trace file and its settings."""
    checkpoint = random_checkpoint(family, folder)
    trace_file = folder / "trace.jsonl"
    settings: dict[str, Any] = {
        "model": str(checkpoint),
        "served_model_name": _MODEL,
        "dtype": "float32",
        "encoder": {},
        "prefill": engine,
        "decode": engine,
        "ingress": {"trace_file": str(trace_file)},
    }
    config = folder / "service.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with running_service(config, folder / "service.log") as url:
        yield url, trace_file, settings


def _picture(seed: int, size: int) -> str:
    pixels = np.random.RandomState(seed).randint(0, 255, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def request_body(seed: int, size: int, tokens: int) -> dict[str, Any]:
    picture = {"type": "image_url", "image_url": {"url": _picture(seed, size)}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}]
    return {
        "model": _MODEL,
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0,
        "mm_processor_kwargs": {"max_pixels": size * size},
        "stream": True,
        "ignore_eos": True,
    }


def _token_moments(client: httpx.Client, url: str, body: dict[str, Any]) -> list[float]:
    """When the chunks with content arrived; the first entry is when the request, written before, was sent."""
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    moments = [time.monotonic()]
    with client.stream("POST", f"{url}/v1/chat/completions", content=content, headers=headers) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {") and '"delta":{"role"' not in line:
                moments.append(time.monotonic())
    return moments


def _first_tokens(url: str, trace_file: Path, num_requests: int, size: int) -> Iterator[dict[str, float]]:
    """The moments of each measured request, after a few that warm up."""
    with httpx.Client(timeout=120) as client:
        for number in range(-5, num_requests):
            trace_file.write_text("", encoding="utf-8")
            moments = _token_moments(client, url, request_body(10_000 + number, size, 3))
            encoder = client.get(f"{url}/triptych/status").json()["stages"]["encoder"][0]
            if number < 0:
                continue
            row: dict[str, float] = json.loads(_line_of(trace_file))
            row |= {"sent": moments[0], "received": moments[1], "received_second": moments[2]}
            row |= {"encode_begin": encoder["last_begun"], "encoded": encoder["last_finished"]}
            row["fetch_begin"] = max(row["encoded"], row["prefill_queued"])
            yield row


def _line_of(trace_file: Path) -> str:
    """The trace of the chat request; written just after its answer ended."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for line in trace_file.read_text(encoding="utf-8").splitlines():
            if "prefill_called" in line:
                return line
        time.sleep(0.01)
    raise RuntimeError("the service wrote no trace")


def _seconds_per_token(url: str, num_tokens: int) -> float:
    with httpx.Client(timeout=300) as client:
        runs = [_token_moments(client, url, request_body(77, 224, num_tokens)) for _ in range(4)]
    return statistics.median((run[-1] - run[1]) / (num_tokens - 1) for run in runs[1:])


async def _seconds_per_token_in_process(settings: dict[str, Any], num_tokens: int) -> float:
    """The same generation from an engine of the same settings, read where it runs."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    from configs import parse_config
    from llm_workers.messages import DecodeRequest, Prompt
    from llm_workers.worker import LLMWorker

    alone = {key: value for key, value in settings.items() if key not in ("encoder", "prefill", "ingress")}
    worker = LLMWorker(parse_config(alone), "decode", "127.0.0.1")
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    try:
        medians = []
        for number in range(4):
            request = DecodeRequest(f"r{number}", Prompt(list(range(280))), params, None, (), 300.0)
            moments = [time.monotonic() async for _ in worker.decode(request)]
            medians.append((moments[-1] - moments[0]) / (num_tokens - 1))
        return statistics.median(medians[1:])
    finally:
        worker.close()


def _outside_compute(row: dict[str, float]) -> float:
    """Seconds from sending to the first token in which neither of the two computations ran."""
    spans = sorted((row[begin], row[end]) for begin, end in COMPUTE)
    covered, reached = 0.0, row["sent"]
    for begin, end in spans:
        covered += max(0.0, min(end, row["received"]) - max(begin, reached))
        reached = max(reached, end)
    return row["received"] - row["sent"] - covered


def _median_ms(values: Iterator[float]) -> float:
    return round(statistics.median(values) * 1e3, 3)


def _result(rows: list[dict[str, float]], over_http_s: float, in_process_s: float) -> dict[str, Any]:
    return {
        "machine": describe_machine(),
        "num_requests": len(rows),
        "first_token_ms": _median_ms(row["received"] - row["sent"] for row in rows),
        "outside_compute_ms": _median_ms(_outside_compute(row) for row in rows),
        "encode_ms": _median_ms(row["encoded"] - row["encode_begin"] for row in rows),
        "steps_ms": {
            step.name: _median_ms(max(0.0, row[step.end] - row[step.begin]) for row in rows) for step in STEPS
        },
        "second_token_ms": _median_ms(row["received_second"] - row["received"] for row in rows),
        "second_token_steps_ms": {
            step.name: _median_ms(row[step.end] - row[step.begin] for row in rows) for step in SECOND_TOKEN_STEPS
        },
        "token_over_http_ms": round(over_http_s * 1e3, 3),
        "token_in_process_ms": round(in_process_s * 1e3, 3),
        "relay_per_token_ms": round((over_http_s - in_process_s) * 1e3, 3),
    }


def _result_large(large: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "large_first_token_ms": _median_ms(row["received"] - row["sent"] for row in large),
        "large_encoded_to_prefill_ms": _median_ms(row["prefill_scheduled"] - row["encoded"] for row in large),
        "large_share": round(statistics.median(_share_of_transfer(row) for row in large), 4),
    }


def _share_of_transfer(row: dict[str, float]) -> float:
    return (row["prefill_scheduled"] - row["encoded"]) / (row["received"] - row["sent"])


def _print(result: dict[str, Any]) -> None:
    print(f"{result['num_requests']} requests, one at a time, medians, on {result['machine']}")
    for name, value in result["steps_ms"].items():
        print(f"  {name:<32}{value:>9.2f} ms")
    print(f"  {'first token, seen by the client':<32}{result['first_token_ms']:>9.2f} ms")
    print(f"  {'outside the two computations':<32}{result['outside_compute_ms']:>9.2f} ms   (at most 25)")
    print(f"  {'encode, whole':<32}{result['encode_ms']:>9.2f} ms")
    print(f"  {'from there to the second token':<32}{result['second_token_ms']:>9.2f} ms, of which")
    for name, value in result["second_token_steps_ms"].items():
        print(f"    {name:<30}{value:>9.2f} ms")
    print(
        f"one token over HTTP {result['token_over_http_ms']:.2f} ms, in-process {result['token_in_process_ms']:.2f} ms:"
    )
    print(f"  {'relay per token':<32}{result['relay_per_token_ms']:>9.2f} ms   (at most 0.5)")


def _print_large(result: dict[str, Any]) -> None:
    print(f"an embedding of 64 MiB, first token after {result['large_first_token_ms']:.0f} ms:")
    print(f"  {'end of encoding to prefill':<32}{result['large_encoded_to_prefill_ms']:>9.2f} ms")
    print(f"  {'of the time to the first token':<32}{result['large_share']:>9.1%}      (at most 5 %)")


if __name__ == "__main__":
    raise SystemExit(main())
