"""What tfx has to know of the machine that it runs on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

NOWHERE = Path("/dev/null/.cache")  # below what is no folder not even root can make one


def cores() -> int:
    """CPU cores that this process may use: a container or ``taskset`` may allow fewer than there are."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor's name as the kernel has it, or ``unknown``."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


EXACT_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni")  # add products of 8-bit numbers in 32 bits, best first
_CAPPED = {  # by ONEDNN_MAX_CPU_ISA, which of them oneDNN, and so OpenVINO, may still use
    **dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX512_CORE"), ()),
    **dict.fromkeys(("AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16"), ("avx512_vnni",)),
    **dict.fromkeys(("AVX2_VNNI", "AVX2_VNNI_2"), ("avx_vnni",)),
}


def int8_instructions() -> str:
    """The instructions that 8-bit products are added with.

    An x86 processor without those of ``EXACT_INT8`` adds pairs of products in 16 bits, which saturate: the
    same graph gives other numbers there.

    Returns:
        One of ``EXACT_INT8``, ``saturating``, or ``unknown`` where the kernel does not tell.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    flags = next((line.partition(": ")[2].split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        return "unknown"
    allowed = _CAPPED.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), EXACT_INT8)
    return next((name for name in EXACT_INT8 if name in flags and name in allowed), "saturating")


def peak_memory_mb() -> float:
    """Peak resident memory of this process, in MB (10^6 bytes)."""
    import resource

    try:
        # getrusage starts at the peak of whoever started this process; the kernel's own mark does not.
        status = Path("/proc/self/status").read_text()
        kibibytes = int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kibibytes * 1024 / 1e6, 1)


def gpu_memory_mb(device: str) -> float | None:
    """Memory of a GPU that is in use, by all processes, in MiB.

    Args:
        device: such as ``cuda:1``; without a number it is the first.

    Returns:
        None for a device that is no GPU, and where ``nvidia-smi`` is missing.
    """
    import subprocess

    kind, _, index = device.partition(":")
    index = index or "0"
    if kind == "cpu" or not index.isdecimal():
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={index}"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def gpu_name(index: int = 0) -> str | None:
    """An NVIDIA GPU's name as the driver has it; None where there is none. No library is loaded for that."""
    import shutil
    import subprocess

    if not (Path(f"/dev/nvidia{index}").exists() or Path("/dev/dxg").exists()):  # dxg: Linux under Windows
        return None
    if shutil.which("nvidia-smi") is None:
        return f"GPU {index}"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={index}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return f"GPU {index}"
    return done.stdout.strip() or f"GPU {index}"


def user_cache() -> Path:
    """The user's folder for what can be made again; it may not exist yet, and it may not be writable.

    A user without a home has none: the place that is given for it does not exist, and making it fails. (A
    folder that all users share would not do, as others could put something there that is then run.)
    """
    from platformdirs import user_cache_path

    return _folder_of(user_cache_path)


def user_state() -> Path:
    """The user's folder for what cannot be made again, such as the key of ``files/seal.py``."""
    from platformdirs import user_state_path

    return _folder_of(user_state_path)


def user_config() -> Path:
    """The user's folder for settings, such as the public keys that are trusted."""
    from platformdirs import user_config_path

    return _folder_of(user_config_path)


def _folder_of(find: Callable[[str], Path]) -> Path:
    try:
        return find("tfswa")
    except RuntimeError:  # no HOME, and no entry in the list of users
        return NOWHERE / "tfswa"
