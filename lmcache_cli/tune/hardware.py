"""Accelerators by name: what their makers say. Dense peaks without sparsity, one device."""

from __future__ import annotations

from dataclasses import dataclass

from lmcache_cli.errors import UserError

TERA, GIGA, GIB = 10**12, 10**9, 2**30
# One direction of a PCIe slot with 16 lanes, after its line code (PCIe CEM 4.0 and 5.0).
_PCIE4, _PCIE5 = 31.5, 63.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """``flops`` are bfloat16 operations per second, ``memory_bytes_s`` and ``link_bytes_s`` bytes
    per second of the device's memory and of one direction of its link to the host. ``source`` is
    the maker's data sheet."""

    name: str
    flops: float
    memory_bytes_s: float
    memory_bytes: int
    link_bytes_s: float
    source: str


def _make(name: str, tflops: float, gb_s: float, gib: int, link: float, source: str) -> Hardware:
    return Hardware(name, tflops * TERA, gb_s * GIGA, gib * GIB, link * GIGA, source)


HARDWARE = {
    hardware.name: hardware
    for hardware in (
        _make("a10", 125, 600, 24, _PCIE4, "NVIDIA A10 data sheet, 2021"),
        _make("a40", 149.7, 696, 48, _PCIE4, "NVIDIA A40 data sheet, 2021"),
        _make("a100-40g", 312, 1555, 40, _PCIE4, "NVIDIA A100 data sheet, 2020"),
        _make("a100-80g", 312, 2039, 80, _PCIE4, "NVIDIA A100 80GB SXM data sheet, 2021"),
        _make("l4", 121, 300, 24, _PCIE4, "NVIDIA L4 data sheet, 2023 (half of its sparse peak)"),
        _make("l40s", 362, 864, 48, _PCIE4, "NVIDIA L40S data sheet, 2023"),
        _make("h100", 989.4, 3350, 80, _PCIE5, "NVIDIA H100 SXM data sheet, 2022"),
        _make("h100-pcie", 756, 2000, 80, _PCIE5, "NVIDIA H100 PCIe data sheet, 2022"),
        _make("h200", 989.4, 4800, 141, _PCIE5, "NVIDIA H200 SXM data sheet, 2023"),
        _make("gh200", 989.4, 4000, 96, 450, "NVIDIA GH200 data sheet, 2023 (NVLink-C2C)"),
        _make("b200", 2250, 8000, 180, _PCIE5, "NVIDIA DGX B200 data sheet, 2024, per GPU"),
        _make("gb200", 2500, 8000, 186, 450, "NVIDIA GB200 NVL72 page, 2024 (NVLink-C2C)"),
        _make("mi300x", 1307.4, 5300, 192, _PCIE5, "AMD Instinct MI300X data sheet, 2023"),
    )
}


def find_hardware(name: str) -> Hardware:
    """Raises ``UserError`` listing what is known."""
    found = HARDWARE.get(name.lower())
    if found is None:
        raise UserError(f"--hardware: {name!r} is not known; use one of {', '.join(HARDWARE)}")
    return found
