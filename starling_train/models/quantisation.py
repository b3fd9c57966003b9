"""How weights are loaded: their type, 8 or 4 bits instead, on which device."""

from typing import Any

import torch

from starling_train.config.fields import UserError


def loading_options(dtype: str | torch.dtype, device: str | torch.device, load_in: str | None) -> dict[str, Any]:
    """Arguments of `from_pretrained`: precision, quantisation, placement. Raises UserError for `auto` without a GPU."""
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
    """Raise UserError if layers are to be spread (`auto`) where there is no GPU to spread them over."""
    if device == "auto" and not torch.cuda.is_available():
        raise UserError("reward.device_map: auto needs GPUs to spread layers over, and none is visible; use null")


def _quantisation(load_in: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")
