"""The front's heap does not fill with holes where asyncio's reads were."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

READS = """
import ctypes, sys
from serve.command import map_large_buffers

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "mapped":
    map_large_buffers()
del (seen := [bytearray(16 << 20)])[0]  # what has been freed once moves the threshold of what is mapped
before = libc.mallinfo2().hblkhd
read = bytearray(256 << 10)
print(libc.mallinfo2().hblkhd - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 or later tells what is mapped")
@pytest.mark.parametrize(("way", "mapped"), [("mapped", True), ("as glibc does it", False)])
def test_a_read_of_asyncio_is_mapped_and_not_on_the_heap(way: str, mapped: bool) -> None:
    ran = subprocess.run([sys.executable, "-c", READS, way], capture_output=True, text=True, check=True)
    assert (int(ran.stdout) >= 256 << 10) is mapped
