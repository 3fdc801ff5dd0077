"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

FAULTS_OF_A_SECOND_BLOCK = """
import resource
from vfm_jax.core.memory import keep_freed_memory

{call}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = b"1" * 200_000_000
del block
before = faults()
block = b"1" * 200_000_000
print(faults() - before)
"""


def _faults(call: str) -> int:
    script = FAULTS_OF_A_SECOND_BLOCK.format(call=call)
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_second_large_block_is_not_asked_of_the_system_again():
    assert _faults("keep_freed_memory()") < 100
    assert _faults("") > 50 * 100  # what it would be otherwise: some 50,000 pages, fewer where pages are huge
