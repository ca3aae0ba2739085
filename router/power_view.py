"""Pure: the power budgets as JSON, for /admin/fleet and `joulegate status`."""

from math import inf
from typing import Any

from joulegate.units import Seconds
from router.power import PowerKeeper

Json = dict[str, Any]


def power_picture(keeper: PowerKeeper, now: Seconds) -> Json | None:
    """Watts. None: no domain is configured."""
    if not keeper.rules.domains:
        return None
    emergency, caps = keeper.emergency, keeper.caps
    return {
        "mode": "enforce" if keeper.rules.enforce else "advise",
        "phase": emergency.phase.value,
        "budgets_at_ratio": emergency.ratio,
        "domains": [
            {
                "name": domain.name,
                "budget_w": domain.budget,
                "limit_w": domain.limit,
                "watts": domain.drawn,
                "expected_w": domain.expected,
                "unmet": domain.unmet,
            }
            for domain in keeper.domains
        ],
        "gpu_limits_mhz": dict(keeper.limits),
        "gpu_caps_w": {uuid: cap for uuid, cap in caps.standing.items() if cap < inf},
        "caps_refused": dict(caps.refusals),
        "emergencies": [
            {"began_s_ago": now - shedding.began, "within_budget_after_s": shedding.within}
            for shedding in keeper.sheddings
        ],
    }
