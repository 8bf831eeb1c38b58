"""Builds the Ray Serve application from settings: `import_path: cluster.app:build_app` in a Serve config file."""

from typing import Any

from ray import serve
from ray.serve import Application

from cluster.deployment import deployment_of
from cluster.encoder_replica import EncoderReplica
from cluster.plan import plan_deployments
from cluster.replicas import IngressReplica, LLMReplica
from cluster.routing.catalogue import decode_router, encoder_router, prefill_router
from configs import ConfigError, TriptychConfig, load_config, parse_config


def build_app(args: dict[str, Any]) -> Application:
    """The application graph: ingress over encoder, prefill and decode.

    Args:
        args: the settings themselves, as `serve run cluster.app:build_app model=...` and Serve config files give
            them; or `config`, the path of a deployment file.

    Raises:
        ConfigError: the settings cannot be used, or hold what Ray takes from the Serve config file itself.
    """
    config = load_config(args["config"]) if set(args) == {"config"} else parse_config(args)
    if config.autoscaling_policy is not None:
        raise ConfigError(
            "autoscaling_policy: Ray takes the application's policy from the Serve config file; "
            "move it out of `args` and put it beside `import_path`"
        )
    return build_service(config)


def build_service(config: TriptychConfig, host: str | None = None) -> Application:
    """The application graph of validated settings.

    Args:
        host: address on which the stages reach each other, for a service on one machine; else each node's own.
    """
    settings = config.model_dump(mode="json", exclude_none=True)
    plans = plan_deployments(config)
    stages: dict[str, Application | None] = {"encoder": None, "prefill": None}
    if config.encoder is not None:
        router = encoder_router(config.router, config.encoder)
        stages["encoder"] = deployment_of(plans["encoder"], EncoderReplica, router).bind(settings, host)
    if config.prefill is not None:
        router = prefill_router(config.router, config.prefill)
        stages["prefill"] = deployment_of(plans["prefill"], LLMReplica, router).bind(settings, "prefill", host)
    router = decode_router(config.router)
    stages["decode"] = deployment_of(plans["decode"], LLMReplica, router).bind(settings, "decode", host)
    application: Application = deployment_of(plans["ingress"], serve.ingress()(IngressReplica)).bind(settings, **stages)
    return application
