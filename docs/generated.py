"""What pages of the site are made of besides words, as Markdown: the configuration, the commands, the papers.

conf.py puts it in the place of a page's line ``<!-- generated: NAME -->``.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from distqtrl.cli.parser import parser
from distqtrl.config.run import field_names, stages

ROOT = Path(__file__).parents[1]
CITED = re.compile(r"\b(\d{4}\.\d{4,5})\b")

# what is cited, by its number at arXiv: authors, title
PAPERS = {
    "1412.6980": ("Kingma, Ba", "Adam: A Method for Stochastic Optimization"),
    "1506.02438": (
        "Schulman and others",
        "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    ),
    "1509.06569": ("Novikov and others", "Tensorizing Neural Networks"),
    "1612.00858": ("McKay and others", "Efficient Z-Gates for Quantum Computing"),
    "1702.03275": (
        "Ioffe",
        "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
    ),
    "1902.05605": (
        "Bhatt and others",
        "CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample Efficiency and Simplicity",
    ),
    "1910.07207": ("Christodoulou", "Soft Actor-Critic for Discrete Action Settings"),
    "2502.15280": ("Lee and others", "Hyperspherical Normalization for Scalable Deep Reinforcement Learning"),
    "1707.01068": (
        "Lerer, Peysakhovich",
        "Maintaining Cooperation in Complex Social Dilemmas Using Deep Reinforcement Learning",
    ),
    "1707.06347": ("Schulman and others", "Proximal Policy Optimization Algorithms"),
    "1801.01290": (
        "Haarnoja and others",
        "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic Actor",
    ),
    "1803.00745": ("Mitarai and others", "Quantum Circuit Learning"),
    "1804.08838": ("Li and others", "Measuring the Intrinsic Dimension of Objective Landscapes"),
    "1810.02244": ("Morris and others", "Weisfeiler and Leman Go Neural: Higher-Order Graph Neural Networks"),
    "1812.05905": ("Haarnoja and others", "Soft Actor-Critic Algorithms and Applications"),
    "1812.06162": ("McCandlish and others", "An Empirical Model of Large-Batch Training"),
    "1902.08153": ("Esser and others", "Learned Step Size Quantization"),
    "1906.04721": ("Nagel and others", "Data-Free Quantization Through Weight Equalization and Bias Correction"),
    "2009.02823": (
        "Jones, Gacon",
        "Efficient Calculation of Gradients in Classical Simulations of Variational Quantum Algorithms",
    ),
    "2106.09685": ("Hu and others", "LoRA: Low-Rank Adaptation of Large Language Models"),
    "2107.12390": ("Wierichs and others", "General Parameter-Shift Rules for Quantum Gradients"),
    "2108.13264": ("Agarwal and others", "Deep Reinforcement Learning at the Edge of the Statistical Precipice"),
    "2205.10287": ("Malladi and others", "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms"),
    "2312.08399": ("Chang and others", "Principled Weight Initialization for Hypernetworks"),
    "2402.03300": (
        "Shao and others",
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    ),
    "2405.17486": ("DeRieux, Saad", "eQMARL: Entangled Quantum Multi-Agent Reinforcement Learning"),
    "2407.06103": ("Liu and others", "QTRL: Toward Practical Quantum Reinforcement Learning via Quantum-Train"),
    "2407.08617": ("Lin and others", "Quantum-Train Long Short-Term Memory"),
    "2412.08845": (
        "Chen, Chen, Liu, Leung",
        "Quantum-Train-Based Distributed Multi-Agent Reinforcement Learning (Dist-QTRL)",
    ),
    "2503.14476": ("Yu and others", "DAPO: An Open-Source LLM Reinforcement Learning System at Scale"),
    "2510.11696": ("Huang and others", "QeRL: Quantization-Enhanced Reinforcement Learning for Large Language Models"),
    "2511.07046": ("Kresse, Lampert", "Learning Quantized Continuous Controllers for Integer Hardware"),
}


# ---- the configuration


def configuration() -> str:
    """A section for every stage, an entry for every key."""
    lines = []
    for stage, model in stages().items():
        lines += [f"## {stage}", "", escaped((model.__doc__ or "").strip().splitlines()[0]), ""]
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            lines += [
                f"```{{confval}} {stage}.{name}",
                f":type: {kind(field.annotation, field.metadata)}",
                f":default: {escaped(value(default))}",
                "",
                escaped(field.description or ""),
                "```",
                "",
            ]
    return "\n".join(lines)


def value(x: Any) -> str:
    """A default as it is written in a flag.

    >>> value(None), value(True), value((64, 64)), value(100_000), value({})
    ('none', 'true', '64 64', '100,000', '{}')
    """
    if isinstance(x, tuple):
        return " ".join(map(value, x)) or "none"
    if isinstance(x, int) and not isinstance(x, bool) and x >= 10_000:
        return f"{x:,}"
    return {None: "none", True: "true", False: "false"}[x] if x is None or isinstance(x, bool) else str(x)


def kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a key takes, in words, of its annotation and the conditions beside it.

    >>> from pydantic import Field
    >>> kind(Annotated[int, Field(ge=1, le=1000)] | None)
    'whole number from 1 to 1,000, or none'
    >>> kind(tuple[Literal["mean", "sum"], ...])
    'list: mean or sum'
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(parts[0], [*parts[1:], *metadata])
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(kind(part, metadata) for part in parts))
    if origin is Literal:
        return f"{', '.join(parts[:-1])} or {parts[-1]}" if parts[1:] else str(parts[0])
    if origin is tuple:
        return f"list: {kind(parts[0])}" if parts[-1] is Ellipsis else "list"
    words = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "none"}
    return words.get(annotation, "table, as JSON") + (_bounds(metadata) if annotation in (int, float) else "")


def _bounds(metadata: Iterable[Any]) -> str:
    conditions = [c for each in metadata for c in getattr(each, "metadata", [each])]
    found = {name: getattr(c, name) for c in conditions for name in ("ge", "gt", "le", "lt") if hasattr(c, name)}
    start = f" from {found['ge']:,}" if "ge" in found else f" above {found['gt']:,}" if "gt" in found else ""
    high = found["le"] if "le" in found else found["lt"] - 1 if "lt" in found else None
    return start + (f" to {high:,}" if high is not None else "")


# ---- the commands


def commands() -> str:
    """A section for every command: what it does, its arguments and flags; fields of the configuration are left out."""
    fields, lines = set(field_names()), []
    for name, command in parser().commands.items():
        actions = [action for action in command._actions if action.dest not in (*fields, "help")]
        lines += [f"## {name}", "", escaped(command.description or ""), ""]
        for action in actions:
            what = ", ".join(action.option_strings)
            taken = action.metavar if what else action.metavar or action.dest
            if not taken and action.nargs != 0:
                taken = " | ".join(action.choices) if action.choices else action.dest.upper()
            shown = " ".join(filter(None, (what, taken if isinstance(taken, str) else None)))
            lines.append(f"* `{shown}`: {escaped((action.help or '').replace('%%', '%'))}")
        if any(action.dest in fields for action in command._actions):
            lines.append("* every [key of the configuration](configuration.md), as `--stage.field value`")
        lines.append("")
    return "\n".join(lines)


# ---- the papers


def papers() -> str:
    """Every paper that a module's docstring cites, with the modules; then those that pages alone cite."""
    citing = cited_in_modules()
    lines = []
    for number in sorted(citing, reverse=True):
        authors, title = PAPERS[number]
        lines += [f"**{title}**, {authors}, [arXiv {number}](https://arxiv.org/abs/{number})", ""]
        lines += [f"* `{module}`: {escaped(sentence)}" for module, sentence in citing[number]]
        lines.append("")
    others = {n for page in (ROOT / "docs").glob("*.md") for n in CITED.findall(page.read_text())} & PAPERS.keys()
    if others := sorted(others - citing.keys(), reverse=True):
        lines += ["## Of pages alone", ""]
        lines += [f"* **{PAPERS[n][1]}**, {PAPERS[n][0]}, [arXiv {n}](https://arxiv.org/abs/{n})" for n in others]
    return "\n".join(lines) + "\n"


def cited_in_modules() -> dict[str, list[tuple[str, str]]]:
    """Number of a paper -> the modules whose docstrings or help cite it, each with its first sentence."""
    found = defaultdict(list)
    for name, first, text in modules():
        for number in sorted(set(CITED.findall(text))):
            found[number].append((name, first))
    return dict(found)


def modules() -> Iterator[tuple[str, str, str]]:
    """Every module of the package: its path, the first sentence of its docstring, and all of its text."""
    for path in sorted((ROOT / "distqtrl").rglob("*.py")):
        text = path.read_text()
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
        yield path.relative_to(ROOT).as_posix(), " ".join(first.split()), text


def escaped(text: str) -> str:
    """Text without what Markdown would read as more than text."""
    return re.sub(r"([*<\[\]|`])", r"\\\1", text)
