"""Where figures come from: processor, device, and versions of everything that matters."""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Any

import jax

PACKAGES = ("mast3r-slam-jax", "jax", "jaxlib", "flax", "numpy", "scipy", "torch")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, device, driver of a GPU, and versions; None for what is not there."""
    device = jax.devices()[0]
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "driver": _driver() if device.platform == "gpu" else None,
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return said[0] if said else None
