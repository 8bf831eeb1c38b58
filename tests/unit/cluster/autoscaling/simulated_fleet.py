"""A simulated stage on a clock of its own: replicas that compute what waits, and Ray's own delays around a policy.

Real are the policy, the context that it gets, and the wrapper that Serve's controller puts around it. Simulated are the
replicas, how long one takes to start, and the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config, _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cluster.autoscaling.signals import (
    BUSY_S,
    DONE_TOKENS,
    KV_CACHE_USE,
    QUEUED_TOKENS,
    SEQUENCES,
    TOKEN_GAPS,
    TOKEN_GAPS_S,
)

STEP_S = 0.25
_SAMPLE_STEPS = 4
START = 1000.0


class Clock:
    """Seconds, moved by the test alone; callable like `time.time`."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Replica:
    """One replica: tokens that it has, computes and has computed."""

    replica_id: ReplicaID
    ready_at: float
    queued: float = 0.0
    done: float = 0.0
    busy_s: float = 0.0
    silent: bool = False
    series: dict[str, list[TimeStampedValue]] = field(default_factory=dict)

    def compute(self, rate: float) -> float:
        """One step; returns what was done."""
        amount = min(self.queued, rate * STEP_S)
        self.queued -= amount
        self.done += amount
        self.busy_s += amount / rate
        return amount

    def say(self, now: float, values: dict[str, float], look_back_s: float) -> None:
        """Publish, as Ray keeps it."""
        for name, value in values.items():
            kept = [sample for sample in self.series.get(name, []) if sample.timestamp >= now - look_back_s]
            self.series[name] = [*kept, TimeStampedValue(now, value)]


class Stage:
    """The replicas of one deployment."""

    def __init__(
        self, name: str, clock: Clock, rate: float, num_replicas: int = 1, start_s: float = 5.0, **config: Any
    ) -> None:
        self.deployment = DeploymentID(name, "triptych")
        self.config = AutoscalingConfig(
            **{"min_replicas": 1, "max_replicas": 8, "upscale_delay_s": 2, "downscale_delay_s": 60} | config
        )
        self.clock = clock
        self.rate = rate
        self.start_s = start_s
        self.target = num_replicas
        self.replicas: list[Replica] = []
        self.draining: list[Replica] = []
        self.state: dict[str, Any] = {}
        self.history: list[int] = []
        self._made = 0
        self._steps = 0
        self._resize(started=True)

    def running(self) -> list[Replica]:
        """Those that have started."""
        return [replica for replica in self.replicas if replica.ready_at <= self.clock.now]

    def queued(self) -> float:
        """What waits in the whole stage."""
        return sum(replica.queued for replica in (*self.replicas, *self.draining))

    def step(self, arriving: float) -> float:
        """Tokens arrive, at the replica with the least; all compute; returns what was done."""
        min(self.running(), key=lambda replica: replica.queued).queued += arriving
        done = sum(replica.compute(self.rate) for replica in (*self.running(), *self.draining))
        self.draining = [replica for replica in self.draining if replica.queued > 0]
        self._steps += 1
        if self._steps % _SAMPLE_STEPS == 0:
            for replica in self.running():
                if not replica.silent:
                    replica.say(self.clock.now, self.signals(replica), self.config.look_back_period_s)
        return done

    def signals(self, replica: Replica) -> dict[str, float]:
        """What a replica publishes."""
        return {QUEUED_TOKENS: replica.queued, DONE_TOKENS: replica.done, BUSY_S: replica.busy_s}

    def context(self) -> AutoscalingContext:
        """As Serve's controller makes it."""
        running = self.running()
        names = {name for replica in running for name in replica.series}
        return AutoscalingContext(
            deployment_id=self.deployment,
            deployment_name=self.deployment.name,
            app_name=self.deployment.app_name,
            current_num_replicas=len(running),
            target_num_replicas=self.target,
            running_replicas=[replica.replica_id for replica in running],
            total_num_requests=1.0 if self.queued() else 0.0,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={name: {r.replica_id: r.series[name] for r in running if name in r.series} for name in names},
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self.state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self.clock.now,
            config=self.config,
        )

    def apply(self, num_replicas: float, state: dict[str, Any]) -> None:
        """What the controller does with a decision."""
        self.state = state
        self.target = max(self.config.min_replicas, min(self.config.max_replicas, int(num_replicas)))
        self.history.append(self.target)
        self._resize(started=False)

    def _resize(self, *, started: bool) -> None:
        while len(self.replicas) < self.target:
            self._made += 1
            ready_at = self.clock.now + (0 if started else self.start_s)
            self.replicas.append(Replica(ReplicaID(f"r{self._made}", self.deployment), ready_at))
        while len(self.replicas) > self.target:
            self.draining.append(self.replicas.pop())


class DecodeStage(Stage):
    """Sequences instead of tokens: `queued` is how many a replica holds, all of which share its steps and its cache."""

    kv_per_sequence = 0.05
    step_base_s = 0.01
    step_per_sequence_s = 0.002
    tokens_per_sequence = 100

    def tpot_s(self, replica: Replica) -> float:
        """Time of one token of each of the replica's sequences."""
        return self.step_base_s + self.step_per_sequence_s * replica.queued

    def step(self, arriving: float) -> float:
        for replica in (*self.running(), *self.draining):
            self.rate = replica.queued / (self.tokens_per_sequence * self.tpot_s(replica)) or 1.0
            gaps = replica.queued * STEP_S / self.tpot_s(replica)
            replica.done += gaps
            replica.busy_s += gaps * self.tpot_s(replica)
            replica.queued -= min(replica.queued, self.rate * STEP_S)
        self.rate = 1e-12
        return super().step(arriving)

    def signals(self, replica: Replica) -> dict[str, float]:
        return {
            SEQUENCES: replica.queued,
            KV_CACHE_USE: min(1.0, replica.queued * self.kv_per_sequence),
            TOKEN_GAPS: replica.done,
            TOKEN_GAPS_S: replica.busy_s,
        }


def run(stage: Stage, policy: Callable[..., Any], arriving: float, seconds: float) -> None:
    """Let `arriving` tokens (or sequences) a second come for so long, with the policy asked once a second."""
    wrapped = _apply_autoscaling_config(policy)
    for index in range(int(seconds / STEP_S)):
        stage.clock.now += STEP_S
        stage.step(arriving * STEP_S)
        if index % 4 == 3:
            stage.apply(*wrapped(stage.context()))


def run_line(stages: list[Stage], policy: Callable[..., Any], arriving: float, seconds: float) -> None:
    """The same for stages behind each other, each given what the one before it has done, and one policy for all."""
    wrapped = _apply_app_level_autoscaling_config(policy)
    for index in range(int(seconds / STEP_S)):
        stages[0].clock.now += STEP_S
        flowing = arriving * STEP_S
        for stage in stages:
            flowing = stage.step(flowing)
        if index % 4 == 3:
            replicas, state = wrapped({stage.deployment: stage.context() for stage in stages})
            for stage in stages:
                stage.apply(replicas[stage.deployment], state[stage.deployment])
