"""Pure: the bytes of a plant file. tests/fakes/nvml/nvml.c repeats these structs.

A header block, then one block per GPU; native byte order and alignment (the file never leaves the machine).
"""

import ctypes
from enum import IntEnum

MAGIC = b"JGPLANT1"
MAX_CLOCKS = 256
MAX_PIDS = 64
BLOCK = 4096  # bytes of the header, and of each GPU


class Call(IntEnum):
    """Driver calls a test can make fail: index into `faults.errors`, which holds NVML return codes."""

    ANY = 0
    CLOCK = 1
    POWER = 2
    ENERGY = 3
    TEMPERATURE = 4
    REASONS = 5
    PROCESSES = 6
    LOCK = 7
    RESET = 8
    CAP = 9
    SUPPORTED_CLOCKS = 10


class NvmlReturn(IntEnum):
    """The NVML return codes the plant can be told to answer with."""

    SUCCESS = 0
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    TIMEOUT = 10
    GPU_IS_LOST = 15
    UNKNOWN = 999


class Header(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_char * 8),
        ("gpus", ctypes.c_uint32),
        ("block", ctypes.c_uint32),
        ("generation", ctypes.c_uint64),
        ("driver", ctypes.c_uint64),
    )
    magic: bytes
    gpus: int
    block: int
    generation: int
    driver: int  # its version


class Spec(ctypes.Structure):
    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("pci", ctypes.c_char * 32),
        ("name", ctypes.c_char * 96),
        ("settle", ctypes.c_double),
        ("idle_watts", ctypes.c_double),
        ("cap_low", ctypes.c_double),
        ("cap_default", ctypes.c_double),
        ("cap_high", ctypes.c_double),
        ("ambient", ctypes.c_double),
        ("kelvin_per_watt", ctypes.c_double),
        ("thermal_seconds", ctypes.c_double),
        ("compute_major", ctypes.c_uint32),
        ("compute_minor", ctypes.c_uint32),
        ("mig", ctypes.c_uint32),
        ("vgpu", ctypes.c_uint32),
        ("persistence", ctypes.c_uint32),
        ("clock_count", ctypes.c_uint32),
        ("clocks", ctypes.c_uint32 * MAX_CLOCKS),
    )
    uuid: bytes
    pci: bytes
    name: bytes
    settle: float
    idle_watts: float
    cap_low: float
    cap_default: float
    cap_high: float
    ambient: float
    kelvin_per_watt: float
    thermal_seconds: float
    compute_major: int
    compute_minor: int
    mig: int
    vgpu: int
    persistence: int
    clock_count: int
    clocks: "ctypes.Array[ctypes.c_uint32]"


class Request(ctypes.Structure):
    _fields_ = (
        ("at", ctypes.c_double),
        ("low", ctypes.c_uint32),
        ("high", ctypes.c_uint32),  # 0: no lock
        ("previous", ctypes.c_uint32),  # ceiling in effect until the lag is over
        ("pid", ctypes.c_uint32),
    )
    at: float
    low: int
    high: int
    previous: int
    pid: int


class Work(ctypes.Structure):
    _fields_ = (
        ("energy", ctypes.c_double),
        ("at", ctypes.c_double),
        ("watts", ctypes.c_double),
        ("temperature", ctypes.c_double),
        ("clock", ctypes.c_uint32),
        ("reasons", ctypes.c_uint32),
    )
    energy: float
    at: float
    watts: float
    temperature: float
    clock: int
    reasons: int


class Faults(ctypes.Structure):
    _fields_ = (
        ("errors", ctypes.c_int32 * 16),
        ("stuck", ctypes.c_uint32),  # MHz; the lock is accepted and changes nothing
        ("throttle", ctypes.c_uint32),  # MHz the GPU holds itself down to
        ("reasons", ctypes.c_uint32),
        ("spare", ctypes.c_uint32),
        ("energy_offset", ctypes.c_double),
        ("call_seconds", ctypes.c_double),  # how long every write takes
    )
    errors: "ctypes.Array[ctypes.c_int32]"
    stuck: int
    throttle: int
    reasons: int
    energy_offset: float
    call_seconds: float


class Gpu(ctypes.Structure):
    _fields_ = (
        ("spec", Spec),
        ("cap", ctypes.c_double),
        ("request_version", ctypes.c_uint64),
        ("request", Request * 2),
        ("work_version", ctypes.c_uint64),
        ("work", Work * 2),
        ("pid_count", ctypes.c_uint32),
        ("pids", ctypes.c_uint32 * MAX_PIDS),
        ("faults", Faults),
    )
    spec: Spec
    cap: float
    request_version: int
    request: "ctypes.Array[Request]"
    work_version: int
    work: "ctypes.Array[Work]"
    pid_count: int
    pids: "ctypes.Array[ctypes.c_uint32]"
    faults: Faults
