"""Lines of requests that run at the same time must carry each its own id."""

from __future__ import annotations

import asyncio
import io
import logging

from cluster.request_logs import configure_logging, log_as


async def test_each_task_logs_its_own_id() -> None:
    handler = configure_logging("prefill", "INFO")
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(out := io.StringIO())
    logger = logging.getLogger("llm_workers.worker")
    both = asyncio.Barrier(2)

    async def work(request_id: str) -> None:
        log_as(request_id)
        await both.wait()
        logger.info("at work")
        await asyncio.to_thread(logger.info, "on a thread")

    try:
        await asyncio.gather(work("a"), work("b"))
        logger.info("between requests")
    finally:
        for package in ("cluster", "encoder_workers", "llm_workers", "transfer", "npu_kernels"):
            logging.getLogger(package).removeHandler(handler)
            logging.getLogger(package).propagate = True
            logging.getLogger(package).setLevel(logging.NOTSET)
    ids = [line.split("request=")[1].split(" ")[0] for line in out.getvalue().splitlines()]
    assert sorted(ids) == ["-", "a", "a", "b", "b"]
    assert all(" prefill " in line for line in out.getvalue().splitlines())
