"""The optimizer beside torch's own class."""

import torch

from distqtrl.algorithm.adam import Adam


def test_it_is_torchs_bit_for_bit():
    """Two groups, gradients that are missing at times, rates that change, a state that is taken over."""
    generator = torch.Generator().manual_seed(3)
    start = [torch.randn(n, generator=generator) for n in (5, 3, 2)]
    ours, theirs = ([p.clone() for p in start] for _ in range(2))
    optimizer = Adam([(ours[:2], 1e-2), (ours[2:], 3e-3)], eps=1e-5)
    groups = [{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:], "lr": 3e-3}]
    reference = torch.optim.Adam(groups, eps=1e-5, fused=True)
    for step in range(8):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(p.shape, generator=generator)
            p.grad = gradient
            q.grad = None if (step + i) % 3 == 0 else gradient.clone()
        if step == 4:
            optimizer.rates = [rate / 2 for rate in optimizer.rates]
            for group in reference.param_groups:
                group["lr"] /= 2
            state = {i: {k: t.clone() for k, t in s.items()} for i, s in optimizer.state.items()}
            optimizer = Adam([(ours[:2], optimizer.rates[0]), (ours[2:], optimizer.rates[1])], eps=1e-5)
            optimizer.state = state
        optimizer.step([i for i in range(3) if (step + i) % 3])
        reference.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert sorted(optimizer.state) == sorted(reference.state_dict()["state"])
