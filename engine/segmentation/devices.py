"""Where and in which precision the nets run, and how many slices at a time."""

from collections.abc import Callable

import torch

from engine.choices import DEVICES, PRECISIONS
from engine.errors import UserError

DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16), strict=True))
CPU_BATCH_BYTES = 16 << 20  # what stays in a CPU's cache; larger batches gain nothing and cancel late
LARGEST_BATCH = 128


def choose_device(name: str = "auto") -> torch.device:
    """Return the device: for "auto" CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: an unknown name, or a device that this machine lacks.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    kind = name.split(":")[0]
    if kind not in there:
        raise UserError(f"unknown device '{name}'; there are {', '.join(DEVICES)}")
    if not there[kind]:
        raise UserError(f"this machine has no {kind} device that PyTorch can use; choose --device cpu or auto")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; there are {', '.join(DEVICES)}, and cuda:0, cuda:1, …") from None


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the floating-point type: for "auto" bf16 where the device computes in it natively, fp16 on other
    GPUs, fp32 on other CPUs.

    Raises:
        UserError: an unknown precision.
    """
    if precision in DTYPES:
        return DTYPES[precision]
    if precision != "auto":
        raise UserError(f"unknown precision '{precision}'; there are auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "mps":
        return torch.float16
    native = cpu_capabilities()
    return torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else torch.float32


def cpu_capabilities() -> dict:
    """Return what PyTorch knows of this CPU (cpu_name, avx512_bf16, …); nothing where it is too old to say."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def choose_batch_size(wanted: str | int, bytes_per_slice: int, device: torch.device) -> int:
    """Return how many slices to run at a time: for "auto" as many as half of the GPU's free memory holds, or a
    CPU's cache.

    Raises:
        UserError: `wanted` is neither "auto" nor a whole number of at least 1.
    """
    if wanted == "auto":
        budget = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_BATCH_BYTES
        return max(1, min(LARGEST_BATCH, budget // bytes_per_slice))
    if not str(wanted).isdecimal() or int(wanted) < 1:
        raise UserError(f"the batch size is '{wanted}'; give auto or a whole number of at least 1")
    return int(wanted)


def in_batches(run: Callable[[slice], None], count: int, batch_size: int) -> int:
    """Call `run` with slices that cover 0 … count; halve the batch size, and try again, when memory runs out.

    Returns:
        the batch size that fitted.

    Raises:
        RuntimeError, MemoryError: not even a single one fits (see `is_out_of_memory`).
    """
    start = 0
    while start < count:
        try:
            run(slice(start, min(start + batch_size, count)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            batch_size //= 2
            torch.cuda.empty_cache()
        else:
            start += batch_size
    return batch_size


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch says that memory ran out; the CPU and MPS have no type of their own."""
    texts = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)
