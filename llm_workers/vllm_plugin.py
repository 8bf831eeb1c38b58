"""What vLLM runs in every process of an engine (entry point `vllm.general_plugins`); outside our engines: nothing."""

from configs.environment import read_environment
from configs.priority import give_way
from llm_workers import arrivals, lone_groups, nixl_progress, parent_watch


def install() -> None:
    """Prepare this process."""
    parent_watch.install()
    nixl_progress.install()
    if parent_watch.engine_worker() is not None:
        give_way(read_environment().engine_niceness)
        arrivals.install()
        lone_groups.install()
