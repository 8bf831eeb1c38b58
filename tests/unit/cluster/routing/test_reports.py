"""Reports survive their way through Ray's plain tables, those of another version too."""

from __future__ import annotations

from cluster.routing.reports import EncoderReport, EngineReport, encoder_report, engine_report, to_stats


def test_what_is_said_is_what_is_heard() -> None:
    encoder, engine = EncoderReport(100.0, 7.0, 3), EngineReport({"a": 5.0}, 4096, 0.25)
    assert encoder_report(to_stats(encoder)) == encoder
    assert engine_report(to_stats(engine)) == engine


def test_a_replica_that_has_said_nothing_has_no_work() -> None:
    assert (encoder_report({}), engine_report({})) == (EncoderReport(), EngineReport())


def test_another_version_may_say_more_or_less() -> None:
    assert encoder_report({"pending_work": 9.0, "temperature": 1}) == EncoderReport(pending_work=9.0)
    assert engine_report({"kv_cache_use": 0.5, "temperature": 1}) == EngineReport(kv_cache_use=0.5)
