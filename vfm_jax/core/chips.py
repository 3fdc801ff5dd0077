"""What accelerators can do, from their makers' pages: by this a plan is made and a run is measured.

TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "System architecture" (read November 2026). The
bandwidth between chips is told there in both directions added up; here it is what a chip can send. GPUs: NVIDIA's
data sheets of A100, H100 and H200 (SXM) and of HGX B200: products without sparsity, NVLink one way; memory as the
driver reports it (OpenXLA's xla/backends/gpu/target_config/specs, read November 2026); a network card for each of a
host's 8, as in NVIDIA's DGX: of 200 Gbit/s with A100s, of 400 with the others.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip.

    Attributes:
        matmul: bfloat16 multiplications and additions per second.
        memory: bytes beside it.
        memory_bandwidth: bytes per second between the two.
        link_bandwidth: bytes per second that it can send to others of its slice, or of its host, over all links.
        links: directions in which it can send at once (2 in a ring, 4 in a torus of two dimensions); 1: a switch.
        network_bandwidth: bytes per second that its host can send to others, by all of the host's cards; None where
            the links go from host to host.
        devices: that JAX sees in it.
        chips_per_host: in slices of several hosts.
        kinds: `device_kind` of its devices.
    """

    matmul: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    links: int
    network_bandwidth: float | None
    devices: int
    chips_per_host: int
    kinds: tuple[str, ...]


GIB = 2.0**30
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, 6, None, 1, 4, ("TPU v4",)),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 4, None, 1, 4, ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 6, None, 1, 4, ("TPU v5", "TPU v5p")),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9, 4, None, 1, 4, ("TPU v6 lite", "TPU v6e")),
    "tpu7x": Chip(2307e12, 192 * GIB, 7380e9, 600e9, 6, None, 2, 4, ("TPU7x", "TPU v7x", "TPU v7")),
    "a100": Chip(312e12, 85_100_068_864, 2039e9, 300e9, 1, 200e9, 1, 8, ("NVIDIA A100-SXM4-80GB",)),
    "h100": Chip(989.4e12, 84_942_979_072, 3350e9, 450e9, 1, 400e9, 1, 8, ("NVIDIA H100 80GB HBM3",)),
    "h200": Chip(989.4e12, 151_397_597_184, 4800e9, 450e9, 1, 400e9, 1, 8, ("NVIDIA H200",)),
    "b200": Chip(2250e12, 191_514_411_008, 8000e9, 900e9, 1, 400e9, 1, 8, ("NVIDIA B200",)),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of which a device is all or a part; None where it is none that is known (a CPU)."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)
