"""Shell: from settings to what stops and starts instances."""

from collections.abc import Callable, Iterator

from control.lifecycle import Patience
from joulegate.settings import gateway as settings_of
from joulegate.settings.plan import Plan, Scale
from joulegate.units import Seconds
from router.actuators import Actuator
from router.command import Command, environment
from router.http_client import ControlClient
from router.pools import Fleet, Member
from router.scaler import Limits, Scaled
from router.vllm_sleep import VllmSleep

Reach = Callable[[Member], ControlClient]  # a client for an instance


def build_scaled(settings: settings_of.Gateway, fleet: Fleet, reach: Reach) -> dict[str, Scaled]:
    """By instance: those that somebody knows how to stop and start. Raises UserError."""
    members = {member.law.name: member for _, _, member in fleet.members()}
    return {
        name: Scaled(
            member=members[name],
            actuator=_actuator(scale, reach(members[name]), settings.health.path),
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


def _actuator(scale: Scale, client: ControlClient, health: str) -> Actuator:
    if scale.command is not None:
        command = scale.command
        patience = scale.start_s, scale.stop_s
        return Command(client, health, command.start, command.stop, patience, environment(command.pass_env))
    if scale.vllm_sleep is not None:
        return VllmSleep(client, scale.vllm_sleep.level, max(scale.start_s, scale.stop_s))
    raise NotImplementedError("kubernetes")
