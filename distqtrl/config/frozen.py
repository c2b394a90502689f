"""The sections of what is frozen: a policy or a decoder with an update of low rank, and a decoder's completions."""

from typing import Annotated

from pydantic import AfterValidator, Field

from distqtrl.config.values import Few, File, Many, Positive, Rate, Stage, Text, Width, from_anywhere

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _task(text: str) -> str:
    return from_anywhere(text) if text.endswith((".jsonl", ".py")) else text  # "arithmetic" may be a folder here, too


class Adapter(Stage):
    """A frozen policy plus an update of low rank, whose factors the generator makes."""

    base: File | None = Field(
        None, description="policy file of the frozen policy; none = weights are made, not adapted"
    )
    rank: Width = Field(4, description="rank of the factors of every layer's update")
    precision: Text = Field("none", description="number format of the frozen weights: nvfp4, mxfp4, int8, ...")
    pad: bool = Field(False, description="fill a frozen layer's inputs up with zeros to whole blocks of the format")


class Language(Stage):
    """A decoder as the policy: one environment step is one completion (QeRL, arXiv 2510.11696)."""

    base: File | None = Field(
        None,
        description="directory of a decoder as transformers writes it (Qwen2, Qwen3, Llama); stays as it is",
    )
    task: Annotated[Text, AfterValidator(_task)] = Field(
        "arithmetic",
        description="arithmetic, a .jsonl file of questions and answers, or a .py file with your own",
    )
    prompts: Many = Field(32, description="prompts of every rank in one update")
    group: Few = Field(8, ge=2, description="completions of every prompt, whose rewards are compared")
    max_tokens: Positive = Field(16, description="tokens after which a completion is cut")
    temperature: Rate = Field(1.0, description="temperature of the completions that are learned from")
    targets: tuple[Text, ...] = Field(
        TARGETS, max_length=100, description="linear layers, by the ends of their names, that get factors of low rank"
    )
