"""Where networks may multiply in bf16."""

import contextlib

import torch

from shared.methods.contract import Precision


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """`auto`: bf16 on CUDA, and on a CPU that multiplies in bf16 (three times faster there)."""
    fast = device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())
    wanted = precision == "bf16" or (precision == "auto" and fast)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def autocast_volumes(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """`autocast` for networks of 3D convolutions: fp32 on every CPU, whatever is asked for.

    There torch 2.13 gives some of their weights gradients in bf16 that are infinite or wrong (decision 0018).
    """
    return autocast(device, "fp32" if device.type == "cpu" else precision)
