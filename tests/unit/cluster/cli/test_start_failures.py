"""What a person is told when a deployment does not start."""

from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from cluster.start_failures import exception_text, explain_failure, failed_attempts

# As Ray Serve 2.60 gives it, with the paths shortened.
MESSAGE = """The deployment failed to start 3 times in a row. This may be due to a problem. Error:
\x1b[36mray::ServeReplica:triptych:decode.initialize_and_get_metadata()\x1b[39m (pid=606)
  File "replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "worker.py", line 60, in __init__
    self._engine = LanguageModelEngine(config, role, host, path)
                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (40960000) is greater than the derived max_model_len
"""
REASON = (
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
    "  Value error, User-specified max_model_len (40960000) is greater than the derived max_model_len"
)


def overview(status: DeploymentStatus, message: str) -> DeploymentStatusOverview:
    return DeploymentStatusOverview(
        status=status, status_trigger=DeploymentStatusTrigger.UNSPECIFIED, replica_states={}, message=message
    )


def application(deployments: dict[str, DeploymentStatusOverview]) -> ApplicationStatusOverview:
    return ApplicationStatusOverview(
        status=ApplicationStatus.DEPLOY_FAILED,
        message="Failed to update the deployments ['decode'].",
        last_deployed_time_s=0,
        deployments=deployments,
    )


def test_the_last_exception_is_the_reason() -> None:
    assert exception_text(MESSAGE) == REASON


def test_a_message_without_a_traceback_stays_whole() -> None:
    assert exception_text(" no replica fits:\n 8 NPU are needed ") == "no replica fits:\n 8 NPU are needed"


def test_the_failed_deployment_is_named_and_the_waiting_ones_are_not() -> None:
    failed = application(
        {
            "decode": overview(DeploymentStatus.DEPLOY_FAILED, MESSAGE),
            "ingress": overview(DeploymentStatus.UPDATING, "has taken more than 30s to be scheduled"),
        }
    )
    assert explain_failure(failed, "/logs") == f"decode: {REASON}\nlogs of all processes: /logs"


def test_without_a_failed_deployment_the_application_says_why() -> None:
    assert explain_failure(application({}), "/logs").startswith("Failed to update the deployments")


def test_an_attempt_that_will_be_repeated_is_told_in_one_line() -> None:
    deployments = {
        "decode": overview(DeploymentStatus.UPDATING, MESSAGE),
        "ingress": overview(DeploymentStatus.UPDATING, "has taken more than 30s to be scheduled"),
    }
    assert failed_attempts(deployments) == {"decode": REASON.replace("\n  ", " ")}
