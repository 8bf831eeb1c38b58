"""Guards: an engine that counts as healthy although it can never fetch an embedding again."""

from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorRole

from llm_workers.embedding_connector import TriptychConnector
from llm_workers.embedding_path import EmbeddingPath
from transfer import FailureCollector

STEP: Any = SimpleNamespace(total_num_scheduled_tokens=1)


@pytest.fixture
def connector() -> Iterator[TriptychConnector]:
    failures = FailureCollector()
    path = EmbeddingPath(1 << 20, "model@revision", failures.endpoint, ["zmq"], 1, None)
    transfer = SimpleNamespace(ec_connector_extra_config=asdict(path), is_ec_producer=False, is_ec_consumer=True)
    config: Any = SimpleNamespace(ec_transfer_config=transfer)
    made = TriptychConnector(config, ECConnectorRole.SCHEDULER)
    yield made
    made.shutdown()
    made.shutdown()
    failures.close()


def test_a_step_fails_once_the_embedding_client_has_ended(connector: TriptychConnector) -> None:
    assert connector.build_connector_meta(STEP).embeddings == []
    connector._client.close()
    with pytest.raises(RuntimeError, match="embedding client"):
        connector.build_connector_meta(STEP)
