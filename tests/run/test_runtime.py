"""What a process sets on a GPU before anything runs there, with a GPU that is made up."""

import pytest
import torch

from starling_train.run.runtime import Runtime


@pytest.mark.parametrize("chosen", [False, True])
def test_cudnn_attention_is_off_on_a_gpu_unless_it_is_asked_for(chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    was = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(not chosen)
        Runtime("cpu", cudnn_attention=chosen)
        assert torch.backends.cuda.cudnn_sdp_enabled() is not chosen  # nothing of a CPU's run
        assert Runtime("auto", cudnn_attention=chosen).device.type == "cuda"
        assert torch.backends.cuda.cudnn_sdp_enabled() is chosen
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
