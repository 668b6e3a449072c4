"""Resident memory of this process as the system sees it."""

import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Sets the peak back to what is resident now; without procfs it stays that of the process's life."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        pass


def peak_bytes() -> int:
    """The largest resident size since the last reset."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
