"""What nanotron 0.4 needs in order to run with today's torch and numpy, and on a CPU.

nanotron 0.4 (March 2024) is the newest release on PyPI. As published it cannot be imported, and it knows no device but
CUDA. `install` changes its source as it is imported, by the rules of `rewrites.py`; nothing on disk is touched and
nothing else in the process is. The trade-off: a rule is tied to the exact text of the release, so each one asserts that
it matched, and another release is refused outright rather than half patched.
"""

from pretrain.compat.rewrites import NANOTRON_VERSION, install, uses_flash_attention

__all__ = ["NANOTRON_VERSION", "install", "uses_flash_attention"]
