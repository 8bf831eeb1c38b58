"""What a flood of requests costs those that are taken in: a table and JSON.

Starts an E/P/D service of a small random checkpoint whose ingress takes 64 requests in. In turns, 64 requests of one to
four pictures are sent at once, and 500 of the same kind, of which those beyond the bound are told to come again. The
99th percentile of the latencies of those taken in out of 500 is to be at most twice that of 64 alone.

    python -m benchmarks.overload [--rounds 5] [--json benchmarks/results/overload.json]

The client runs on the same machine and takes its part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml
from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.service import random_checkpoint, running_service

_MODEL = "demo"
_MOST = 64
_MAX_RATIO = 2.0
_TIMEOUT_S = 300.0
_OK = 200
_REFUSED = (429, 503)


@dataclass(frozen=True)
class Answered:
    """One request's end: its status, how long it took, and what Retry-After said, if anything."""

    status: int
    seconds: float
    retry_after: str | None


def main() -> int:
    """Run, print, write; returns 1 when an answer was neither right nor a refusal."""
    parser = argparse.ArgumentParser(description="What a flood of requests costs those that are taken in.")
    parser.add_argument("--requests", type=int, default=500, help="requests at once in a flood")
    parser.add_argument("--rounds", type=int, default=5, help="measured floods, and as many loads without excess")
    parser.add_argument("--size", type=int, default=224, help="width and height of the pictures")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--json", type=Path, default=None, help="file for the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = _configuration(Path(folder))
        with running_service(config, Path(folder) / "service.log") as url:
            alone, flood = asyncio.run(_measure(url, arguments))
    result = _result(alone, flood, arguments.requests, arguments.rounds)
    _print(result)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["all_answered"] else 1


def _configuration(folder: Path) -> Path:
    """A service whose ingress has so many places, and nothing kept that would spare a stage its work."""
    engine_args = {"max_model_len": 4096, "enforce_eager": True, "enable_prefix_caching": False}
    engine = {"kv_cache_bytes": "256 MiB", "embedding_store_bytes": "64 MiB", "engine_args": engine_args}
    settings: dict[str, Any] = {
        "model": str(random_checkpoint("qwen2_5_vl", folder)),
        "served_model_name": _MODEL,
        "dtype": "float32",
        "encoder": {"cache_bytes": "1 MiB"},
        "prefill": engine,
        "decode": engine,
        "ingress": {"max_admitted_requests": _MOST},
    }
    config = folder / "service.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


async def _measure(url: str, arguments: argparse.Namespace) -> tuple[list[Answered], list[Answered]]:
    """All answers of the loads without excess, and of the floods, after one of each that warms up."""
    requests = [_request(url, seed, arguments.size, arguments.tokens) for seed in range(arguments.requests)]
    alone: list[Answered] = []
    flood: list[Answered] = []
    for number in range(-1, arguments.rounds):
        few = await _at_once(url, requests[:_MOST])
        many = await _at_once(url, requests)
        if number >= 0:
            alone += few
            flood += many
    return alone, flood


async def _at_once(url: str, requests: Sequence[bytes]) -> list[Answered]:
    return await asyncio.gather(*(_ask(url, request) for request in requests))


async def _ask(url: str, request: bytes) -> Answered:
    """One request over a connection of its own. By hand: a client library takes longer than a refusal."""
    host = urlsplit(url)
    async with asyncio.timeout(_TIMEOUT_S):
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection(host.hostname, host.port)
        try:
            writer.write(request)
            answer = await reader.read()
        finally:
            writer.close()
    head, _, _ = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
    return Answered(int(status.split()[1]) if status else 0, time.monotonic() - begun, fields.get("retry-after"))


def _request(url: str, seed: int, size: int, num_tokens: int) -> bytes:
    """A chat request of one to four pictures, as it goes over the wire."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _picture(10 * seed + index, size)}} for index in range(1 + seed % 4)
    ]
    content.append({"type": "text", "text": "What is this?"})
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


def _picture(seed: int, size: int) -> str:
    pixels = np.random.RandomState(seed).randint(0, 255, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _result(alone: list[Answered], flood: list[Answered], num_requests: int, num_rounds: int) -> dict[str, Any]:
    taken = [answer.seconds for answer in flood if answer.status == _OK]
    refused = [answer.seconds for answer in flood if answer.status in _REFUSED and answer.retry_after]
    without = [answer.seconds for answer in alone if answer.status == _OK]
    return {
        "machine": describe_machine(),
        "num_rounds": num_rounds,
        "num_requests": num_requests,
        "max_admitted_requests": _MOST,
        "alone_by_status": _by_status(alone),
        "flood_by_status": _by_status(flood),
        "all_answered": len(without) == len(alone) and len(taken) + len(refused) == len(flood),
        "alone_s": _percentiles(without),
        "taken_in_s": _percentiles(taken),
        "refused_s": _percentiles(refused),
        "p99_ratio": round(_percentiles(taken)["p99"] / _percentiles(without)["p99"], 3),
    }


def _by_status(answers: Sequence[Answered]) -> dict[str, int]:
    return dict(sorted(Counter(str(answer.status) for answer in answers).items()))


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {"p50": 0.0, "p99": 0.0}
    return {f"p{part}": round(float(np.percentile(seconds, part)), 3) for part in (50, 99)}


def _print(result: dict[str, Any]) -> None:
    print(f"{result['num_rounds']} rounds on {result['machine']}")
    print(f"  {'at once':>8}  {'':<12}{'p50':>9}{'p99':>10}   answers by status")
    rows = (
        (_MOST, "alone", "alone_s", result["alone_by_status"]),
        (result["num_requests"], "taken in", "taken_in_s", result["flood_by_status"]),
        (result["num_requests"], "refused", "refused_s", ""),
    )
    for number, name, field, statuses in rows:
        seconds = result[field]
        print(f"  {number:>8}  {name:<12}{seconds['p50']:>7.2f} s{seconds['p99']:>8.2f} s   {statuses}")
    print(f"  p99 of those taken in over p99 alone: {result['p99_ratio']:.2f}   (at most {_MAX_RATIO:.0f})")


if __name__ == "__main__":
    raise SystemExit(main())
