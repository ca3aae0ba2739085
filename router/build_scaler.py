"""Shell: from settings to what stops and starts instances."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from control.lifecycle import Patience
from joulegate.errors import UserError
from joulegate.settings import gateway as settings_of
from joulegate.settings.plan import Kubernetes, Plan, Scale
from joulegate.units import Seconds
from router.actuators import Actuator
from router.command import Command, environment
from router.http_client import ControlClient
from router.pools import Fleet, Member
from router.scaler import Limits, Scaled
from router.vllm_sleep import VllmSleep

if TYPE_CHECKING:  # it needs an extra
    from router.kubernetes_scale import Workload

Reach = Callable[[Member], ControlClient]  # a client for an instance


def build_scaled(settings: settings_of.Gateway, fleet: Fleet, reach: Reach) -> dict[str, Scaled]:
    """By instance: those that somebody knows how to stop and start. Raises UserError."""
    members = {member.law.name: member for _, _, member in fleet.members()}
    build = Actuators(reach, settings.health.path)
    return {
        name: Scaled(
            member=members[name],
            actuator=build.actuator(scale, members[name]),
            client=reach(members[name]),
            patience=_patience(settings.plan, scale),
            limits=Limits(scale.stop_s, scale.start_s),
        )
        for name, scale in _scaled(settings)
    }


def _scaled(settings: settings_of.Gateway) -> Iterator[tuple[str, Scale]]:
    for _, instance in settings.instances():
        if instance.scale is not None:
            yield instance.name, instance.scale


def _patience(plan: Plan, scale: Scale) -> Patience:
    return Patience(
        drain=Seconds(scale.drain_s),
        tries=plan.tries,
        back_off=Seconds(plan.back_off_s),
        given_up=Seconds(plan.given_up_s),
    )


class Actuators:
    """Makes them; instances of one workload share what watches it."""

    def __init__(self, reach: Reach, health: str) -> None:
        self._reach = reach
        self._health = health
        self._workloads: dict[Kubernetes, Workload] = {}

    def actuator(self, scale: Scale, member: Member) -> Actuator:
        if scale.command is not None:
            command = scale.command
            return Command(
                self._reach(member),
                self._health,
                command.start,
                command.stop,
                (scale.start_s, scale.stop_s),
                environment(command.pass_env),
            )
        if scale.vllm_sleep is not None:
            patience = max(scale.start_s, scale.stop_s)
            return VllmSleep(self._reach(member), scale.vllm_sleep.level, patience)
        assert scale.kubernetes is not None, "the settings see to it that one of them is given"
        return self._replica(scale.kubernetes)

    def _replica(self, section: Kubernetes) -> Actuator:
        try:
            from router.kubernetes_scale import KubernetesReplica, Workload
        except ImportError as error:
            raise UserError(
                "scaling through Kubernetes needs its client", "pip install '.[k8s]' in the checkout"
            ) from error
        shared = section.model_copy(update={"replica": 0})
        if shared not in self._workloads:
            self._workloads[shared] = Workload(shared)
        return KubernetesReplica(self._workloads[shared], section.replica)
