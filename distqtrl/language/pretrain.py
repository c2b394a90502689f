"""A base of one's own: a small decoder that learns a task's answers from a split's questions, by next-token prediction.

It stops early, at an accuracy that leaves reinforcement learning something to do. The same seed makes the same bytes
on one machine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distqtrl.errors import UserError, lookup
from distqtrl.language import arithmetic, checkpoint, library, sampler
from distqtrl.language.arithmetic import Arithmetic
from distqtrl.language.model import Model
from distqtrl.seeding import integer, stream

FAMILIES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
CONTEXT = 64
BATCH, RATE, WARMUP = 128, 2e-3, 50
EVERY, JUDGED = 10, 500  # steps, and questions of the train split that tell when to stop
IGNORED = -100  # of labels, in the library


@dataclass(frozen=True)
class Settings:
    """The decoder's size, the steps at most, and the accuracy at which it ends."""

    family: str = "qwen2"
    layers: int = 4
    width: int = 128
    heads: int = 4
    steps: int = 2000
    accuracy: float = 0.7
    seed: int = 0


def pretrain(directory: Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Write a pre-trained decoder and its tokenizer; returns what is known of it. Raises UserError before it begins."""
    if directory.exists():
        raise UserError(f"{directory} exists: give -o a new directory, or remove it")
    tokenizer = characters(arithmetic.CHARACTERS)
    network = decoder(settings, len(tokenizer), ends=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    with checkpoint.whole(directory) as place:  # where nothing can be written, nothing is trained
        _train(network, tokenizer, settings, say)
        network.save_pretrained(place)
        tokenizer.save_pretrained(place)
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    return {"directory": str(directory), "weights": num_weights, "accuracy": accuracy(directory)}


def characters(known: str) -> Any:
    """A tokenizer whose tokens are these characters, padding, an end and one for what is unknown."""
    transformers = library.transformers()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate((PAD, END, UNKNOWN, *known))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=CONTEXT
    )


def decoder(settings: Settings, vocabulary: int, ends: int, pad: int) -> Any:
    """A decoder with weights that follow from the seed; raises UserError for sizes that do not fit."""
    family = lookup("--family", settings.family, FAMILIES)
    if settings.width % (2 * settings.heads):
        raise UserError(f"--width {settings.width} is not a multiple of twice --heads {settings.heads}: choose another")
    library_ = library.transformers()
    config = getattr(library_, f"{family}Config")(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.width // settings.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=ends,
        pad_token_id=pad,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(settings.seed, "initialise"))
        return library_.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def accuracy(directory: Path) -> float:
    """Right answers of greedy completions to all questions of the test split."""
    found = checkpoint.opened(directory)
    model, task = Model(found, "none", rank=1, targets=("proj",)), Arithmetic()
    questions = [task.question("test", number) for number in range(task.size("test"))]
    prompts = [found.tokens(question.prompt) for question in questions]
    made = sampler.complete(
        model, None, prompts, streams=(), max_tokens=arithmetic.LONGEST, temperature=1.0, greedy=True
    )
    lengths = made.length_N.tolist()
    texts = [found.text(row[:length]) for row, length in zip(made.tokens_NT.tolist(), lengths, strict=True)]
    return sum(map(task.reward, texts, questions)) / len(questions)


def _train(network: Any, tokenizer: Any, settings: Settings, say: Callable[[str], None]) -> None:
    """Steps until ``settings.accuracy`` is reached on questions of the train split that are left out here."""
    tokens_NT, labels_NT = _examples(tokenizer)
    num = len(tokens_NT) - JUDGED
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(1, settings.steps + 1):
        rows = torch.from_numpy(stream(settings.seed, "minibatch", step).integers(num, size=BATCH))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(step / WARMUP, 1)
        logits_NTV = network(input_ids=tokens_NT[rows]).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits_NTV.flatten(0, 1), labels_NT[rows, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % EVERY == 0 or step == settings.steps:
            right = _right(network, tokens_NT[num:], labels_NT[num:])
            say(f"step {step}: loss {loss.item():.3f}, {right:.1%} right")
            if right >= settings.accuracy:
                return


@torch.no_grad()
def _right(network: Any, tokens_NT: Tensor, labels_NT: Tensor) -> float:
    """The part of answers whose every token is the likeliest: those that a greedy completion has right."""
    likeliest_NT, wanted_NT = network(input_ids=tokens_NT).logits[:, :-1].argmax(-1), labels_NT[:, 1:]
    return float(((likeliest_NT == wanted_NT) | (wanted_NT == IGNORED)).all(1).double().mean())


def _examples(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """All questions of the train split with their answers (N, T), and labels, which leave the questions out."""
    task = Arithmetic()
    rows, labels = [], []
    for number in range(task.size("train")):
        question = task.question("train", number)
        prompt = tokenizer(question.prompt)["input_ids"]
        answer = [*tokenizer(question.answer)["input_ids"], tokenizer.eos_token_id]
        missing = arithmetic.LONGEST - len(answer)
        rows.append([*prompt, *answer, *[tokenizer.pad_token_id] * missing])
        labels.append([*[IGNORED] * len(prompt), *answer, *[IGNORED] * missing])
    return torch.tensor(rows), torch.tensor(labels)
