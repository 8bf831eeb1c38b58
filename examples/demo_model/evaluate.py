"""Ask a running service 1,000 generated questions over the OpenAI API and print its accuracy by question type.

Usage: python -m examples.demo_model.evaluate BASE_URL [--compare OTHER_BASE_URL] [--count 1000] [--json FILE]
"""

import argparse
import asyncio
import base64
import io
import json
from pathlib import Path

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionContentPartParam
from PIL import Image
from tqdm.asyncio import tqdm  # type: ignore[import-untyped]

from examples.demo_model.generator import EVAL_SEEDS, Example, example
from examples.demo_model.report import Miss, score

MAX_TOKENS = 48
REQUEST_TIMEOUT_S = 120.0


def data_url(image: Image.Image) -> str:
    """Return the picture as a PNG data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


async def ask(client: AsyncOpenAI, model: str, made: Example) -> str:
    """Return the service's greedy answer; raises openai.OpenAIError where it gives none."""
    content: list[ChatCompletionContentPartParam] = [
        {"type": "image_url", "image_url": {"url": data_url(image)}} for image in made.images()
    ]
    content.append({"type": "text", "text": made.question.text})
    completion = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        temperature=0.0,
        max_tokens=MAX_TOKENS,
    )
    return completion.choices[0].message.content or ""


async def ask_all(base_url: str, examples: list[Example], concurrency: int) -> list[str]:
    """Ask every example of the service at ``base_url``, at most ``concurrency`` at a time."""
    async with AsyncOpenAI(base_url=base_url, api_key="none", timeout=REQUEST_TIMEOUT_S) as client:
        model = (await client.models.list()).data[0].id
        gate = asyncio.Semaphore(concurrency)

        async def ask_one(made: Example) -> str:
            async with gate:
                return await ask(client, model, made)

        answers = await tqdm.gather(*(ask_one(made) for made in examples), mininterval=5)
        return [str(answer) for answer in answers]


def differences(examples: list[Example], answers: list[str], others: list[str]) -> list[Miss]:
    """List the questions that two services answer differently: ``wanted`` from the first, ``given`` the second."""
    return [
        Miss(made.seed, made.question.kind, made.question.text, first, second)
        for made, first, second in zip(examples, answers, others, strict=True)
        if first != second
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url", help="for example http://127.0.0.1:8000/v1")
    parser.add_argument("--compare", metavar="BASE_URL", default=None, help="a second service to ask the same")
    parser.add_argument("--first", type=int, default=EVAL_SEEDS.start, help="seed of the first question")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--json", type=Path, default=None, help="write the report here as well")
    options = parser.parse_args()
    examples = [example(seed) for seed in range(options.first, options.first + options.count)]
    answers = asyncio.run(ask_all(options.base_url, examples, options.concurrency))
    report = score(examples, answers)
    result: dict[str, object] = {"base_url": options.base_url, **report.as_json()}
    print(report.table())
    if options.compare is not None:
        others = asyncio.run(ask_all(options.compare, examples, options.concurrency))
        differing = differences(examples, answers, others)
        print(f"{len(examples) - len(differing)} of {len(examples)} answers are the same at {options.compare}")
        for miss in differing[:20]:
            print(f"  seed {miss.seed} {miss.question!r}: {miss.wanted!r}, there {miss.given!r}")
        result["compared_with"] = options.compare
        result["num_same"] = len(examples) - len(differing)
        result["overall_there"] = score(examples, others).as_json()["overall"]
    text = json.dumps(result, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
