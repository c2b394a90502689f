"""Tiny random decoders on disk, as transformers writes them, for tests of several folders."""

import torch

from distqtrl.language import arithmetic, pretrain
from distqtrl.language.pretrain import FAMILIES, Settings

__all__ = ["FAMILIES", "write"]


def write(directory, family="qwen2", width=64, scale=3.0):
    """A decoder of two layers; its weights are scaled up, so that what it says is far from uniform."""
    tokenizer = pretrain.characters(arithmetic.CHARACTERS)
    settings = Settings(family=family, layers=2, width=width, heads=4, seed=1)
    network = pretrain.decoder(settings, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            else:
                parameter *= scale
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
