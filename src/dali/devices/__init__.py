"""Memory and queues: the CPU, a CUDA device, a simulated accelerator, behind one interface."""

from dali.devices.base import Buffer, Device, Event, OutOfDeviceMemoryError, host_memory
from dali.devices.cpu import CpuDevice
from dali.devices.dependencies import COMPUTE, HOST, Dependencies, Operation, Stream
from dali.devices.races import RaceDetector, RaceError
from dali.devices.sim import SimDevice

__all__ = [
    "COMPUTE",
    "HOST",
    "Buffer",
    "CpuDevice",
    "Dependencies",
    "Device",
    "Event",
    "Operation",
    "OutOfDeviceMemoryError",
    "RaceDetector",
    "RaceError",
    "SimDevice",
    "Stream",
    "host_memory",
]
