"""The methods on a CUDA device: as on the CPU, and without the host waiting."""

import pytest
import torch
from small_models import image_batches
from torch.testing import assert_close
from tta_made import LEARNERS, WITHOUT_GRADIENT, make
from tta_models import FeatureNet
from tta_pairs import LOSSES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [*LEARNERS, *WITHOUT_GRADIENT])
def test_cuda_agrees_with_the_cpu(name, loss, monkeypatch):
    """But for what is drawn, which depends on the device: TIPI and DeYO draw nothing here."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = {"DeYO": {"destroy": "occ"}, "TIPI": {"eps": 1e-9}}.get(name, {})
    cpu, cuda = (make(name, loss, net=FeatureNet().to(device), **options) for device in ("cpu", "cuda"))
    for x in image_batches(8):
        logits = cuda(x.cuda())
        assert logits.is_cuda
        assert_close(logits.cpu(), cpu(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("name", ["Tent", "ETA", "EATA", "SAR", "TTC"])
def test_a_step_never_waits_for_the_device(name, optimizer, loss):
    """CUDA itself raises where the host would wait."""
    method = make(name, loss, net=FeatureNet().cuda(), optimizer=optimizer)
    batches = [x.cuda() for x in image_batches(5)]
    for x in batches[:3]:
        method(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x in batches[3:]:
            method(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", LEARNERS)
def test_reset_on_the_device_is_bit_for_bit(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    batches = [x.cuda() for x in image_batches(6)]
    method = make(name, "adadem", net=FeatureNet().cuda())
    start = {key: value.clone() for key, value in method.model.state_dict().items()}
    first = [method(x) for x in batches]
    method.reset()
    assert all(torch.equal(value, start[key]) for key, value in method.model.state_dict().items())
    assert_close([method(x) for x in batches], first, rtol=1e-5, atol=1e-5)
