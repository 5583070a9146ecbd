"""The machine, the commit and the versions behind a number: every JSON of the benchmarks begins with this record."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from photonstep.machine import describe, package_version

PEERS = ("scipy", "scikit-image", "PyWavelets", "pyoidn", "bm3d")


def record() -> dict[str, Any]:
    """Machine, commit, versions and time of a measurement, as plain JSON values."""
    facts = describe()
    facts["packages"] |= {name: version for name in PEERS if (version := package_version(name)) is not None}
    if hasattr(os, "getloadavg"):
        facts["load_average_1min"] = round(os.getloadavg()[0], 2)  # a busy machine explains a slow number
    facts["utc"] = datetime.now(UTC).isoformat(timespec="seconds")
    return facts
