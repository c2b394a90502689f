"""torch's defaults: as they are when it is loaded, or as they were before somebody else's code set them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Type float32, device CPU, gradients, no autocast; afterwards all is as the program had it, its threads, too."""
    import torch

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    elsewhere = torch.get_default_device().type != "cpu"
    device = torch.device("cpu") if elsewhere else nullcontext()  # every call of torch passes through the former
    try:
        with device, torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


class Defaults:
    """torch's type, device and gradients as they are now; an environment's code may set them for all of the process."""

    def __init__(self) -> None:
        import torch

        self._torch, self._dtype, self._grad = torch, torch.get_default_dtype(), torch.is_grad_enabled()
        self._device = torch.get_default_device()

    def again(self, device: bool = True) -> None:
        """Set them to what they were; the device, which takes microseconds to look at, only if asked for."""
        torch = self._torch
        if torch.get_default_dtype() is not self._dtype:
            torch.set_default_dtype(self._dtype)
        if torch.is_grad_enabled() is not self._grad:
            torch.set_grad_enabled(self._grad)
        if device and torch.get_default_device() != self._device:
            torch.set_default_device(None if self._device.type == "cpu" else self._device)
