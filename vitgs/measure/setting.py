"""The conditions under which a number is taken, put in force and undone: evaluation mode, threads, no garbage collection, no hidden fast paths."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vitgs.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str) -> torch.dtype:
    """The floating type of that name."""
    if name not in DTYPES:
        raise UsageError(f"a dtype must be one of {', '.join(DTYPES)}", given=name, remedy="name one of these")
    return DTYPES[name]


def device_of(name: str) -> torch.device:
    """The device of that name, if this machine has it: `cpu`, `cuda`, `cuda:1`."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError("a device must be cpu, cuda or cuda:N", given=name, remedy="name one of these") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError("a device must be cpu, cuda or cuda:N", given=name, remedy="name one of these")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            remedy = "use cpu, or check the driver and torch's CUDA build"
            raise UsageError("a CUDA device must be present", given=f"{name} where torch sees {count}", remedy=remedy)
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return torch.device("cpu")


def synchronise(device: torch.device) -> None:
    """Waits until all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode; each gets its own mode back."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients: torch's counter follows modules by hooks that fail where a parameter itself is a module's input."""
    before = [p for p in model.parameters() if p.requires_grad]
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[int]:
    """So many threads inside an operator; None leaves them as they are. Yields the number in force."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise UsageError("the number of threads must be at least 1", given=count, remedy="set threads to 1 or more")
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No cyclic garbage collection inside: it would land in somebody's block."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """`nn.MultiheadAttention` as the operators it is made of: its fused inference operator hides the products from every counter."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def in_force(device: torch.device, dtype: str) -> dict[str, Any]:
    """What decides the speed besides the model, for the record."""
    return {
        "device": device.type,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "attention_flash": torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        "attention_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        "attention_math": torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        "attention_cudnn": torch.backends.cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,  # type: ignore[no-untyped-call]
        "compile": None,
        "memory_format": "contiguous",
    }
