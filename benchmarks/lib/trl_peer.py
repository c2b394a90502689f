"""TRL's GRPOTrainer on the task of qerl_speed.py: LoRA on a decoder in float32, the loss, batch and lengths of ours.

What TRL would do beyond that is turned off: bfloat16, gradient checkpointing, dropout, logging, saving. Old log
probabilities are not computed apart, as one step is made on every rollout.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from distqtrl.config.frozen import TARGETS
from distqtrl.language.model import Model
from distqtrl.language.questions import Question, Task
from lib.watch import watched

NEVER = "<never>"  # a token that the decoder does not have ends completions
QUESTIONS = 2000


class Theirs:
    """A trainer that is made, and trains when it is told to."""

    def __init__(self, base: Path, task: Task, case: Any, *, rank: int, rate: float, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        tokenizer.add_special_tokens({"eos_token": NEVER})
        network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        network.generation_config.eos_token_id = None
        questions = [task.question("train", number) for number in range(QUESTIONS)]

        def reward(completions: list[str], prompts: list[str], answer: list[str], **_: Any) -> list[float]:
            return [task.reward(c, Question(p, a)) for c, p, a in zip(completions, prompts, answer, strict=True)]

        batch = case.prompts * case.group
        self.settings: dict[str, Any] = {
            **{"output_dir": str(folder / "trl"), "use_cpu": True, "bf16": False, "gradient_checkpointing": False},
            **{"per_device_train_batch_size": batch, "num_generations": case.group, "steps_per_generation": 1},
            **{"max_completion_length": case.answered, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            **{"loss_type": "dapo", "scale_rewards": "none", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.28},
            **{"learning_rate": rate, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0},
            **{"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True},
            **{"dataloader_pin_memory": False, "disable_dropout": True},
        }
        self.lora = LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(TARGETS), task_type="CAUSAL_LM"
        )
        self.network, self.tokenizer, self.reward = network, tokenizer, reward
        self.weights = network.num_parameters()  # those of LoRA not among them
        self.data = Dataset.from_list([{"prompt": q.prompt, "answer": q.answer} for q in questions])
        self.steps_s: list[float] = []
        self.rollouts_s: list[float] = []
        self.tokens = 0

    @torch.no_grad()
    def differs(self, model: Model) -> float:
        """By what log probabilities of a few tokens differ from ours at the start."""
        tokens_NT = torch.arange(3, 15)[None]
        theirs, ours = self.network(tokens_NT).logits, model.logits(tokens_NT, None, None)
        return float((theirs.log_softmax(-1) - ours.log_softmax(-1)).abs().max())

    def train(self, steps: int, between: Sequence[Callable[[], None]]) -> None:
        """Make so many steps, and call these after every one."""
        turns = Turns(self, between)
        trainer = GRPOTrainer(
            model=self.network,
            reward_funcs=self.reward,
            args=GRPOConfig(**self.settings, max_steps=steps),
            train_dataset=self.data,
            processing_class=self.tokenizer,
            peft_config=self.lora,
            callbacks=[turns],
        )
        trainer.remove_callback(PrinterCallback)
        rollout = watched(trainer._generate_and_score_completions, self.rollouts_s)

        def counted(*args: Any) -> Any:
            found = rollout(*args)
            self.tokens = int(found["completion_mask"].sum())
            return found

        trainer._generate_and_score_completions = counted
        trainer.train()


class Turns(TrainerCallback):
    """A step of the trainer from the end of the last one's, others' turns left out."""

    def __init__(self, theirs: Theirs, between: Sequence[Callable[[], None]]) -> None:
        self.theirs, self.between, self.begin = theirs, between, time.process_time()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begin = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.theirs.steps_s.append(time.process_time() - self.begin)
        for other in self.between:
            other()
        self.begin = time.process_time()
