"""The figures of `bench`, its questions and its reports, on results that are written out here."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from cluster.cli.bench import all_answered
from cluster.cli.bench.media_files import clip_part, picture_part, sound_part
from cluster.cli.bench.questions import make_questions
from cluster.cli.bench.report import table_lines, to_html, to_json
from cluster.cli.bench.results import RequestResult, ScenarioResult, StageTime, percentile
from cluster.cli.main import main
from configs import ConfigError
from configs.scenarios import DEFAULT_SCENARIOS, Scenario, Slo, load_scenarios

SLO = Slo(ttft_s=1.0, tpot_s=0.1)


def _request(ttft_s: float, tpot_s: float, error: str | None = None) -> RequestResult:
    return RequestResult(1, 0.5, ttft_s, ttft_s + 10 * tpot_s, 11, error)


RESULT = ScenarioResult(
    "a <picture>",
    4.0,
    (_request(0.5, 0.05), _request(2.0, 0.05), _request(0.5, 0.2), _request(0.1, 0.1, "Service Unavailable")),
    {"encoder": StageTime(0.25, 0.125)},
)


def _scenario(**fields: object) -> Scenario:
    return Scenario.model_validate({"name": "s", "num_requests": 200, "image_side": 28, **fields})


def test_goodput_counts_what_keeps_both_bounds() -> None:
    """A request that failed quickly is not a good one."""
    figures = RESULT.figures(SLO)
    assert figures["goodput_per_s"] == 1 / 4
    assert figures["requests_per_s"] == 3 / 4
    assert figures["errors"] == 1
    assert figures["ttft_p50_s"] == 0.5
    assert figures["tpot_p99_s"] == pytest.approx(percentile([0.05, 0.05, 0.2], 99))
    assert RESULT.errors() == {"Service Unavailable": 1}


@pytest.mark.parametrize("percent", [0, 1, 50, 90, 99, 100])
def test_percentiles_are_numpys(percent: float) -> None:
    values = [0.3, 0.1, 7.0, 2.5, 2.5, 0.9]
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))
    assert math.isnan(percentile([], percent))


def test_pictures_are_pictures_of_their_seed() -> None:
    def pixels(seed: int, side: int) -> np.ndarray:
        data = base64.b64decode(picture_part(seed, side)["image_url"]["url"].removeprefix("data:image/png;base64,"))
        return np.asarray(Image.open(io.BytesIO(data)))

    assert pixels(1, 100).shape == (100, 100, 3)
    assert (pixels(1, 100) == pixels(1, 100)).all()
    assert (pixels(1, 100) != pixels(2, 100)).mean() > 0.9


def test_clips_and_sounds_have_their_length_and_seed() -> None:
    clip = clip_part(1, 56, 2.5)["video_url"]["url"].removeprefix("data:video/mp4;base64,")
    with av.open(io.BytesIO(base64.b64decode(clip))) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 20
    assert frames[0].shape == (56, 56, 3)
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 5
    assert clip_part(1, 56, 2.5) == clip_part(1, 56, 2.5)
    assert clip_part(2, 56, 2.5) != clip_part(1, 56, 2.5)

    sound = base64.b64decode(sound_part(1, 1.5)["input_audio"]["data"])
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert (rate, samples.shape) == (16000, (24000,))
    assert np.abs(samples).max() > 0.1
    assert sound_part(1, 1.5) != sound_part(2, 1.5)


def test_words_stand_where_the_scenario_wants_them() -> None:
    for first in (True, False):
        mix = _scenario(images=1, audios=1, audio_s=0.1, videos=1, video_s=0.2, video_side=28, question_first=first)
        (question, *_) = make_questions(mix.model_copy(update={"num_requests": 1}))
        kinds = [part["type"] for part in question.messages[0]["content"]]
        media = ["image_url", "video_url", "input_audio"]
        assert kinds == (["text", *media] if first else [*media, "text"])
        assert question.num_media == 3


def test_questions_have_the_mix_that_is_asked_for() -> None:
    mix = _scenario(images=2, with_media=0.25, repeated=0.5, repeated_pool=2, prompt_tokens=9)
    questions = make_questions(mix)
    with_pictures = [question for question in questions if question.num_media]
    assert 0.15 < len(with_pictures) / len(questions) < 0.35
    shown = [part["image_url"]["url"] for q in with_pictures for part in q.messages[0]["content"][:-1]]
    assert len(shown) == 2 * len(with_pictures)
    times = sorted((shown.count(url) for url in set(shown)), reverse=True)
    assert 0.35 < sum(times[:2]) / len(shown) < 0.65
    assert set(times[2:]) == {1}
    assert all(len(q.messages[0]["content"][-1]["text"].split()) == 9 for q in questions)
    assert questions == make_questions(mix)
    assert questions != make_questions(mix.model_copy(update={"seed": 1}))


def test_reports_say_the_same_figures() -> None:
    text = "\n".join(table_lines([RESULT], SLO))
    assert "1 x Service Unavailable" in text
    assert "encoder waited 250 ms, computed 125 ms" in text
    content = json.loads(to_json({"target": "t"}, [RESULT], SLO))
    (scenario,) = content["scenarios"]
    assert scenario["goodput_per_s"] == 0.25
    assert len(scenario["each"]) == 4
    row = next(line for line in text.splitlines() if line.startswith("a <picture>"))
    assert row.removeprefix("a <picture>").split()[:4] == ["4", "1", "0.75", "0.25"]


def test_a_scenario_without_one_answer_is_reported_too() -> None:
    """All requests refused: no percentile exists, and nothing may divide by that."""
    nothing = ScenarioResult("n", 2.0, (_request(0.0, 0.0, "refused"),))
    assert json.loads(to_json({}, [nothing], SLO))["scenarios"][0]["ttft_p50_s"] is None
    assert " - " in "\n".join(table_lines([nothing], SLO))
    assert to_html({}, [nothing], SLO).count("<svg") == 3


def test_what_a_model_does_not_take_is_left_out_and_said() -> None:
    left_out = ScenarioResult.of_none("audio", "no <sounds>")
    assert "audio: left out: no <sounds>" in table_lines([RESULT, left_out], SLO)
    assert json.loads(to_json({}, [left_out], SLO))["scenarios"][0]["left_out"] == "no <sounds>"
    assert "Left out: no &lt;sounds&gt;" in to_html({}, [left_out], SLO)
    assert all_answered([RESULT, left_out])
    assert not all_answered([left_out])
    assert not all_answered([RESULT, ScenarioResult("n", 2.0, (_request(0.0, 0.0, "refused"),))])


def test_the_page_is_sound_and_needs_nothing_from_elsewhere() -> None:
    page = to_html({"target": "http://x"}, [RESULT], SLO)
    assert "a &lt;picture&gt;" in page
    assert "<picture>" not in page
    assert "<script" not in page
    assert "src=" not in page
    plots = [plot.partition("</svg>")[0] + "</svg>" for plot in page.split("<svg")[1:]]
    for plot in plots:
        drawing = ElementTree.fromstring("<svg" + plot)
        assert len(drawing) >= 3
        width = float(drawing.attrib["width"])
        points = [place for line in drawing.iter("{*}polyline") for place in line.attrib["points"].split()]
        assert all(0 <= float(point.split(",")[0]) <= width for point in points)


def test_the_ready_scenarios_can_be_used() -> None:
    file = load_scenarios(DEFAULT_SCENARIOS)
    names = [scenario.name for scenario in file.scenarios]
    assert names == [
        "text",
        "1 image",
        "4 images",
        "16 images",
        "repeated images",
        "video",
        "audio",
        "mixed",
        "mixed in bursts",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scenarios: [{name: a, num_requests: 1, burst: 2}]", "scenarios.0.burst"),
        ("scenarios: [{name: a, num_requests: 0}]", "scenarios.0.num_requests"),
        ("scenarios: [{name: a, num_requests: 1}, {name: a, num_requests: 1}]", "same name"),
        ("scenarios: [", "not valid YAML"),
    ],
)
def test_a_slip_in_scenarios_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_scenarios(path)


def test_a_scenario_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "http://127.0.0.1:9", "--only", "nothing"]) == 1
    assert "no scenario is named 'nothing'" in capsys.readouterr().err


def test_a_file_that_cannot_be_served_is_said_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "no-such-file.yaml", "--only", "text"]) == 1
    said = capsys.readouterr().err
    assert "no-such-file.yaml could not be served" in said
    assert "No such file or directory" in said
