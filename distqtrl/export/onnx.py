"""The program as an ONNX graph of standard integer operators.

An arithmetic shift is a division that floors, ONNX has one that truncates: of v - low * 2**shift they differ only
where it is negative, and there both results are cut to low. Max and Min see numbers of 32 bits only, because
onnxruntime 1.31 takes the greater of two 64-bit numbers wrongly when they need more than 32 bits.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from distqtrl.errors import UserError
from distqtrl.export.check import EQUAL, Check, Question, equal, first_line, parts
from distqtrl.export.options import Options
from distqtrl.export.tools import Missing, Unchecked
from distqtrl.quantize.program import Argmax, Ints, Lookup, Matmul, Program, Range, Scale

OPSET, IR_VERSION = 18, 10  # the newest that runtimes of the last two years read
UINT8, INT32, INT64 = 2, 6, 7  # numbers of onnx.TensorProto


def write(folder: Path, program: Program, options: Options) -> dict[str, Any]:
    """Write the model; the manifest says nothing about it. Raises UserError where onnx is missing."""
    try:
        data = model(program)
    except ImportError:
        raise UserError("target onnx: onnx is missing: install distqtrl[onnx], or leave the target out") from None
    (folder / "policy.onnx").write_bytes(data)
    return {}


def compared(name: str, q: Question) -> Check:
    """The check of the model in onnxruntime."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise Missing("no onnxruntime: install distqtrl[onnx]") from None
    except Exception as error:  # a library that it loads may be damaged in any way
        raise Unchecked(f"onnxruntime cannot be imported ({error}): install distqtrl[onnx] again") from None
    try:
        session = onnxruntime.InferenceSession(q.place / "policy.onnx", providers=["CPUExecutionProvider"])
        found = [session.run(None, {"observation": part})[0] for part in parts(q.x_BO.astype(np.int32), 4096)]
    except Exception as error:  # it has exceptions of its own for everything
        raise Unchecked(f"onnxruntime failed: {first_line(error)}: install distqtrl[onnx] again") from None
    equal(np.concatenate(found), q.y_BA)
    return Check(name, EQUAL, vectors=len(q.x_BO), detail=f"onnxruntime {onnxruntime.__version__}")


class Graph:
    """Nodes and constants in order."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.node, self.tensor = helper.make_node, numpy_helper.from_array
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of a new node's output."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(self.node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: Ints | Sequence[int] | int, kind: type) -> str:
        """The name of a new constant."""
        name = f"constant{len(self.constants)}"
        self.constants.append(self.tensor(np.asarray(values, kind), name))
        return name


def model(program: Program) -> bytes:
    """The serialized model: int32 observation (batch, O), fixed-point -> int32 action (batch, A).

    Raises UserError where 32 bits do not hold a scaled number.
    """
    from onnx import checker, helper

    graph, name = Graph(), "observation"
    for op, x, _ in program.steps():
        if isinstance(op, Matmul):
            # weights are unsigned around 128: by signed ones, CPUs without VNNI add pairs of products in 16 bits
            levels, zero, middle = graph.add("Cast", name, to=UINT8), *(graph.constant(x, np.uint8) for x in (0, 128))
            name = graph.add("MatMulInteger", levels, graph.constant(op.weights_NK.T + 128, np.uint8), zero, middle)
        elif isinstance(op, Scale):
            name = _scale(graph, op, x, name)
        elif isinstance(op, Lookup):
            name = graph.add("Gather", graph.constant(op.table, np.int32), name, axis=0)
        else:
            name = _argmax(graph, op, x, name)
    graph.nodes.append(graph.node("Identity", [name], ["action"]))
    ends = [
        helper.make_tensor_value_info(end, INT32, ["batch", size])
        for end, size in (("observation", len(program.input_fraction_O)), ("action", len(program.outputs.low_N)))
    ]
    made = helper.make_graph(graph.nodes, "policy", ends[:1], ends[1:], graph.constants)
    whole = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(whole, full_check=True)
    data: bytes = whole.SerializeToString()
    return data


def _scale(graph: Graph, op: Scale, x: Range, name: str) -> str:
    bottom = op.low << op.shift
    plus_N, shifted = op.offset_N - bottom, op.shifted(x)
    ranges = (op.product(x), Range(plus_N, plus_N), Range(shifted.low_N - bottom, shifted.high_N - bottom))
    wide = max(op.shift + 2, *(r.bits for r in ranges)) > 32
    kind = np.int64 if wide else np.int32
    if wide:
        name = graph.add("Cast", name, to=INT64)
    name = graph.add("Mul", name, graph.constant(op.multiplier_N, kind))
    name = graph.add("Add", name, graph.constant(plus_N, kind))
    name = graph.add("Div", name, graph.constant(1 << op.shift, kind))
    if wide:
        if ranges[-1].bits - op.shift > 32:
            raise UserError("target onnx: a scaled number needs more than 32 bits: use fewer bits")
        name = graph.add("Cast", name, to=INT32)
    name = graph.add("Max", name, graph.constant(0, np.int32))
    name = graph.add("Min", name, graph.constant(op.high - op.low, np.int32))
    return graph.add("Add", name, graph.constant(op.low, np.int32)) if op.low else name


def _argmax(graph: Graph, op: Argmax, x: Range, name: str) -> str:
    factors = op.factors(len(x.low_N))
    parts = [name]
    if len(factors) > 1:
        ends = [graph.constant([end], np.int64) for end in (*(first for first, _, _ in factors), len(x.low_N))]
        axis = graph.constant([1], np.int64)
        parts = [graph.add("Slice", name, *pair, axis) for pair in pairwise(ends)]
    found = [graph.add("ArgMax", part, axis=-1, keepdims=1) for part in parts]
    name = found[0] if len(found) == 1 else graph.add("Concat", *found, axis=-1)
    name = graph.add("Cast", name, to=INT32)
    starts = [start for _, _, start in factors]
    return graph.add("Add", name, graph.constant(starts, np.int32)) if any(starts) else name
