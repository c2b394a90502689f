"""Eight numbers at a time in Numba kernels: a vector type with load, store, splat, arithmetic and lane exchange.

LLVM turns ``<8 x double>`` into whatever vectors the processor has (AVX-512, AVX2, NEON). Explicit vectors are
needed because LLVM does not vectorize the kernels' loops by itself: it cannot know that two halves of one array do
not overlap, and gates on the three lowest qubits act inside a vector.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 8
BITS = 3  # log2 of LANES


class Vector(types.Type):
    """LANES floats of one width."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), LANES))


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Pointer to the vector that starts at array[index]; aligned like one number."""
    kind, (array, index) = signature.args[0], args[:2]
    data = cgutils.create_struct_proxy(kind)(context, builder, array).data
    vector = ir.VectorType(context.get_value_type(kind.dtype), LANES)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer()), kind.dtype.bitwidth // 8


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The vector array[index : index + LANES] of a contiguous array; bounds are not checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _address(context, builder, signature, args)
        return builder.load(pointer, align=align)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """array[index : index + LANES] = vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _address(context, builder, signature, args)
        builder.store(args[2], pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def exchanged(typing: Any, vector: Any, distance: Any) -> Any:
    """The vector with lane i taken from lane i ^ distance; distance is a literal 1, 2 or 4."""
    if not isinstance(distance, types.IntegerLiteral):
        return None
    mask = [i ^ distance.literal_value for i in range(LANES)]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask)
        return builder.shuffle_vector(args[0], args[0], lanes)

    return vector(vector, distance), generate


@intrinsic
def splat(typing: Any, array: Any, index: Any) -> Any:
    """LANES times the number array[index]; bounds are not checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, vector = signature.args[0], context.get_value_type(signature.return_type)
        data = cgutils.create_struct_proxy(kind)(context, builder, args[0]).data
        number = builder.load(builder.gep(data, [args[1]]))
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(first, first, mask)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """A vector of zeros of the array's dtype."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return Vector(array.dtype)(array), generate


def _define(function: Any, instruction: str) -> None:
    @type_callable(function)
    def kind(context: Any) -> Any:
        return lambda a, b: a if isinstance(a, Vector) and a == b else None

    @lower_builtin(function, Vector, Vector)
    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=("contract", "nsz"))


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
