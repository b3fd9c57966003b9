"""How weights are loaded: their type, 8 or 4 bits instead, on which device."""

from typing import Any

import torch

from starling_train.config.fields import UserError
from starling_train.run.machine import is_installed


def loading_options(dtype: str | torch.dtype, device: str | torch.device, load_in: str | None) -> dict[str, Any]:
    """Return arguments of `from_pretrained`: dtype, quantisation, devices. Raises UserError for `auto` without GPUs."""
    check_device(device)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype) if isinstance(dtype, str) else dtype}
    if device == "auto":
        options["device_map"] = "auto"
    if load_in:
        assert load_in in ("8bit", "4bit"), load_in
        options["quantization_config"] = _quantisation(load_in, options["dtype"])
        options.setdefault("device_map", {"": device})
    return options


def check_device(device: str | torch.device | None) -> None:
    """Raise UserError if layers are to be spread (`auto`) without a GPU to spread them over."""
    if device == "auto" and not torch.cuda.is_available():
        raise UserError("reward.device_map: auto needs GPUs to spread layers over, and none is visible; use null")


def _quantisation(load_in: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")


def check_acceleration(
    *,
    attention: str | None = None,
    load_in: str | None = None,
    device_map: str | None = None,
    eight_bit: bool = False,
    policy_load_in: str | None = None,
) -> None:
    """Raise UserError for a setting that needs a GPU or a package that is missing, or that would do nothing."""
    if attention == "flash_attention_2":
        raise UserError(
            "model.attention: flash_attention_2 would change nothing, packed sequences and rollouts have attention of "
            "their own, which is torch's FlashAttention on a GPU; use sdpa"
        )
    needing = (
        ("model.load_in", bool(policy_load_in), "bitsandbytes", "null"),
        ("reward.load_in", bool(load_in), "bitsandbytes", "null"),
        ("optim.eight_bit", eight_bit, "bitsandbytes", "false"),
        ("reward.device_map", bool(device_map), None, "null"),
    )
    for key, is_requested, package, instead in needing:
        if not is_requested:
            continue
        if key == "reward.device_map":
            check_device(device_map)
        elif not torch.cuda.is_available():
            raise UserError(f"{key}: needs an NVIDIA GPU, and none is visible; use {instead}")
        if package and not is_installed(package):
            name = package.replace("_", "-")
            raise UserError(f"{key}: needs {package}, which is not installed; pip install {name}, or use {instead}")
