"""torch as it is when it is loaded, inside of a program that has set it otherwise."""

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
