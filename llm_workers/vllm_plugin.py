"""What vLLM runs in every process of an engine (entry point `vllm.general_plugins`); outside our engines: nothing."""

from llm_workers import nixl_progress, parent_watch


def install() -> None:
    """Prepare this process."""
    parent_watch.install()
    nixl_progress.install()
