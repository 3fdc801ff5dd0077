"""GPUs as XLA's compiler wants them described where there is none to ask.

The figures are those that the driver reports of each, as the OpenXLA project collects them
(xla/backends/gpu/target_config/specs, read November 2026), and NVIDIA's CUDA C++ Programming Guide, "Compute
Capabilities"; memory and its bandwidth are in `core.chips`.
"""

from typing import NamedTuple

from vfm_jax.core.chips import Chip


class Gpu(NamedTuple):
    """What is beside its memory.

    Attributes:
        capability: major number of the compute capability; the minor one is 0 of all of them.
        cores: streaming multiprocessors.
        lanes: float32 units of each.
        clock_ghz: at most.
        cache: bytes of the second level.
        shared: bytes of shared memory of a core; a block can have 1,024 less.
    """

    capability: int
    cores: int
    lanes: int
    clock_ghz: float
    cache: int
    shared: int


GPUS = {
    "a100": Gpu(8, 108, 64, 1.41, 41_943_040, 167_936),
    "h100": Gpu(9, 132, 128, 1.98, 52_428_800, 233_472),
    "h200": Gpu(9, 132, 128, 1.98, 52_428_800, 233_472),
    "b200": Gpu(10, 148, 128, 1.965, 132_644_864, 233_472),
}
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {optin} shared_memory_per_core: {gpu.shared}
  core_count: {gpu.cores} fpus_per_core: {gpu.lanes} clock_rate_ghz: {gpu.clock_ghz} l2_cache_size: {gpu.cache}
  memory_bandwidth: {chip.memory_bandwidth:.0f} device_memory_size: {chip.memory:.0f}
  cuda_compute_capability {{ major: {gpu.capability} minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{kind}"
"""


def description(name: str, chip: Chip) -> str:
    """A GPU of `GPUS` in protocol buffer text: XLA's `stream_executor.GpuTargetConfigProto`."""
    gpu = GPUS[name]
    return _DESCRIPTION.format(gpu=gpu, chip=chip, optin=gpu.shared - 1024, kind=chip.kinds[0])
