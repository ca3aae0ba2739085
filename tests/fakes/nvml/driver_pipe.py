"""NvmlDriver in a process whose libnvidia-ml is the fake: a JSON call a line in, a JSON answer a line out."""

import dataclasses
import json
import sys

from gpu_agent.device import DeviceError
from gpu_agent.nvml import NvmlDriver


def main() -> None:
    driver = NvmlDriver()
    methods = {
        name: getattr(driver, name)
        for name in (
            "open",
            "close",
            "version",
            "inventory",
            "read",
            "clock",
            "lock",
            "reset",
            "cap",
            "set_cap",
        )
    }
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            result = methods[name](*arguments)
        except DeviceError as error:
            answer: dict[str, object] = {"error": type(error).__name__, "text": str(error)}
        else:
            answer = {"result": _plain(result)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


main()
