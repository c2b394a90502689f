"""What GRPO is compared with: the same factors, taught by answers."""

import time

import torch

from distqtrl import seeding
from distqtrl.config.run import Config
from distqtrl.language import sampler
from distqtrl.language.adapted import Adapted, asked
from distqtrl.training.grpo.spec import specs

BATCH = 256


def supervised(config: Config, steps: int) -> tuple[Adapted, float]:
    """The update after so many steps of Adam on the answers of 256 questions each, and CPU seconds."""
    began, seed = time.process_time(), config.train.seed
    (spec,) = specs(config)
    model, generator = spec.model, torch.Generator().manual_seed(seed)
    start_F = torch.cat([(2 * torch.rand(size, generator=generator) - 1) / fan**0.5 for size, fan in model.layers])
    model.start(start_F)
    factors_F = start_F.clone().requires_grad_()
    optimizer = torch.optim.Adam([factors_F], config.algorithm.learning_rate)
    for step in range(steps):
        questions = [asked(spec.task, "train", seeding.stream(seed, "episode", i, step)) for i in range(BATCH)]
        answers = [[*model.checkpoint.tokens(q.answer), model.checkpoint.ends[0]] for q in questions]
        length_N = torch.tensor([len(answer) for answer in answers])
        tokens_NT = torch.tensor([a + [model.checkpoint.pad] * (int(length_N.max()) - len(a)) for a in answers])
        prompts = [model.checkpoint.tokens(q.prompt) for q in questions]
        log_probs_NT = sampler.log_probs(model, factors_F, prompts, tokens_NT, length_N, temperature=1.0)
        optimizer.zero_grad()
        (-log_probs_NT.sum() / length_N.sum()).backward()
        optimizer.step()
    origin = {"source": "supervised", "env_steps": steps * BATCH, "seed": seed}
    made = Adapted(
        factors_F.detach(), start_F, spec.sha256, config.language, config.adapter, config.train.precision, origin
    )
    return made.with_model(model, spec.task), time.process_time() - began
