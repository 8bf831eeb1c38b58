"""vLLM's own engine metrics over Ray's exporter, with a label that says which stage the engine is."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.ray_wrappers import (
    RayCounterWrapper,
    RayGaugeWrapper,
    RayHistogramWrapper,
    RayKVConnectorProm,
    RayPerfMetricsProm,
    RayPrometheusMetric,
    RayPrometheusStatLogger,
    RaySpecDecodingProm,
)

_STAGE = "stage"


def stage_stat_logger(stage: str) -> type[PrometheusStatLogger]:
    """vLLM's stat logger over Ray for an engine of this stage, as `AsyncLLM` takes it among its `stat_loggers`.

    vLLM makes its metrics of classes that the logger names; here each has one more label with a fixed value.
    """

    class Labelled(RayPrometheusMetric):  # type: ignore[misc]
        """Adds the label to every metric and value."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._tags[_STAGE] = stage

        @staticmethod
        def _get_tag_keys(labelnames: list[str] | None) -> tuple[str, ...]:
            return (*(labelnames or ()), "ReplicaId", _STAGE)

        def _build_tags(self, *labels: Any, **named: Any) -> dict[str, str]:
            # vLLM checks the number of positional values against the keys without knowing of ours.
            named.update(zip(self.metric._tag_keys, labels, strict=False))
            tags: dict[str, str] = super()._build_tags(**named)
            return {**tags, _STAGE: stage}

    class StageGauge(Labelled, RayGaugeWrapper):  # type: ignore[misc]
        """A gauge of this stage."""

    class StageCounter(Labelled, RayCounterWrapper):  # type: ignore[misc]
        """A counter of this stage."""

    class StageHistogram(Labelled, RayHistogramWrapper):  # type: ignore[misc]
        """A histogram of this stage."""

    class StageSpecDecoding(RaySpecDecodingProm):  # type: ignore[misc]
        """Metrics of speculative decoding."""

        _counter_cls = StageCounter

    class StageKVConnector(RayKVConnectorProm):  # type: ignore[misc]
        """Metrics of the KV connector."""

        _gauge_cls = StageGauge
        _counter_cls = StageCounter
        _histogram_cls = StageHistogram

    class StagePerformance(RayPerfMetricsProm):  # type: ignore[misc]
        """Metrics of operations and memory traffic."""

        _counter_cls = StageCounter

    class StageStatLogger(RayPrometheusStatLogger):  # type: ignore[misc]
        """vLLM's logger, its metrics made of the classes above."""

        _gauge_cls = StageGauge
        _counter_cls = StageCounter
        _histogram_cls = StageHistogram
        _spec_decoding_cls = StageSpecDecoding
        _kv_connector_cls = StageKVConnector
        _perf_metrics_cls = StagePerformance

    return StageStatLogger
