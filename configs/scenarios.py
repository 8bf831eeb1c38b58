"""Scenarios of `triptych bench`, as validated objects read from a file."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from configs.base import Settings
from configs.loader import ConfigError

DEFAULT_SCENARIOS = Path(__file__).parent / "bench" / "default.yaml"


class Slo(Settings):
    """What an answer in time is; goodput counts the requests that keep both."""

    ttft_s: float = Field(2.0, gt=0, description="Time to the first token at most.")
    tpot_s: float = Field(0.1, gt=0, description="Time per output token after the first at most.")


class Scenario(Settings):
    """One load: what is asked and when."""

    name: str = Field(min_length=1, description="Its name in the report.")
    num_requests: int = Field(ge=1, description="Requests in all.")
    rate: float | None = Field(None, gt=0, description="Requests per second on average; absent: all at once.")
    burstiness: float = Field(
        1.0, gt=0, description="Shape of the gamma-distributed gaps: 1 is a Poisson process, below 1 comes in bursts."
    )
    max_concurrency: int | None = Field(None, ge=1, description="Requests under way at most; absent: no bound.")
    prompt_tokens: int = Field(32, ge=1, description="Length of the question in words of one syllable, about a token.")
    output_tokens: int = Field(64, ge=1, description="Tokens of each answer; the end of sequence is ignored.")
    images: int = Field(0, ge=0, description="Pictures in each request that has media.")
    image_side: int = Field(448, ge=28, le=4096, description="Width and height of each picture in pixels.")
    videos: int = Field(0, ge=0, description="Clips in each request that has media.")
    video_s: float = Field(4.0, gt=0, le=600, description="Length of each clip in seconds, at eight frames a second.")
    video_side: int = Field(224, ge=28, le=4096, multiple_of=2, description="Width and height of each clip in pixels.")
    audios: int = Field(0, ge=0, description="Sounds in each request that has media.")
    audio_s: float = Field(10.0, gt=0, le=600, description="Length of each sound in seconds.")
    with_media: float = Field(1.0, ge=0, le=1, description="Part of the requests that have media.")
    question_first: bool = Field(False, description="Whether the words stand before the media, and not behind them.")
    repeated: float = Field(0.0, ge=0, le=1, description="Part of the media that were shown before.")
    repeated_pool: int = Field(4, ge=1, description="Number of different pictures, clips or sounds that are repeated.")
    seed: int = Field(0, description="Of questions, pictures and arrivals; the same seed asks the same.")


class ScenarioFile(Settings):
    """All scenarios of a file."""

    slo: Slo = Field(default_factory=lambda: Slo.model_validate({}), description="For all scenarios.")
    scenarios: tuple[Scenario, ...] = Field(min_length=1, description="Run in this order.")

    @model_validator(mode="after")
    def _names_differ(self) -> ScenarioFile:
        names = [scenario.name for scenario in self.scenarios]
        if len(set(names)) < len(names):
            raise ValueError("two scenarios have the same name")
        return self


def load_scenarios(path: Path) -> ScenarioFile:
    """Read and validate a file of scenarios.

    Raises:
        ConfigError: it cannot be read or used; the message names every field at fault.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ScenarioFile.model_validate(content)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'scenarios'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join([f"{path} cannot be used:", *lines])) from error
