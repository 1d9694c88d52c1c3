"""Where figures come from, and what the device could do at best."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

# Dense matrix products a second, from the vendor's data sheets; float32 without TF32, which torch leaves off.
PEAK_FLOPS = {
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "L40S": {"bf16": 362e12, "fp32": 91.6e12},
}


def device_name(device: str) -> str:
    """The GPU's, or the processor's."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()


def peak_flops(device: str, precision: str) -> float | None:
    """None: not a GPU whose peak is stated here."""
    if not device.startswith("cuda"):
        return None
    name = device_name(device)
    return next((peaks[precision] for model, peaks in PEAK_FLOPS.items() if model in name), None)


def machine(device: str) -> dict[str, str]:
    """Hardware and versions."""
    facts = {
        "device": device_name(device),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return facts | {name: version(name) for name in ("torch", "numpy", "pydantic")}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
