"""Eight numbers at a time in Numba kernels: a vector type with load, store, arithmetic and lane exchange.

LLVM turns ``<8 x double>`` into whatever vectors the processor has (AVX-512, AVX2, NEON). Explicit vectors are
needed because LLVM does not vectorize the kernels' loops by itself: it cannot know that two halves of one array do
not overlap, and gates on the three lowest qubits act inside a vector.

Every operation rounds as it is written: what is fused into one rounding says so (``fused``, ``reduced``), so that a
circuit among others gives the same bits as alone. ``at`` and ``put`` let one function work on numbers or on vectors
of them: on a[i] of an array of numbers, on the vector a[i] of an array (count, LANES).
"""

import operator
import platform
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import lower_builtin, models, register_model, type_callable

LANES = 8
BITS = 3  # log2 of LANES
CONFIG: Any = numba.config  # its settings are attributes made at run time
intrinsic: Any = extending.intrinsic  # the arguments of what it returns are not those that are declared


def _fuses() -> bool:
    """Whether the processor multiplies and adds in one instruction; elsewhere two are used, not a library's call."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return CONFIG.CPU_NAME != "generic" and bool(llvmlite.binding.get_host_cpu_features().get("fma"))


FUSES = _fuses()


class Vector(types.Type):
    """LANES floats of one width."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), LANES))


def _data(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to the number with this index in memory, whatever the array's shape."""
    return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, array).data, [index])


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Pointer to the vector that starts at a number of the array; aligned like one number."""
    kind = signature.args[0]
    vector = ir.VectorType(context.get_value_type(kind.dtype), LANES)
    return builder.bitcast(_data(context, builder, kind, *args[:2]), vector.as_pointer()), kind.dtype.bitwidth // 8


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The vector of LANES numbers from this one on, of a contiguous array; bounds are not checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _address(context, builder, signature, args)
        return builder.load(pointer, align=align)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to where ``load`` reads it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _address(context, builder, signature, args)
        builder.store(args[2], pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def add(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Add a vector to the one that ``load`` reads there."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _address(context, builder, signature, args)
        builder.store(builder.fadd(builder.load(pointer, align=align), args[2]), pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def exchanged(typing: Any, vector: Any, bit: Any) -> Any:
    """The vector with lane i taken from the lane whose number differs in a bit, 0 to 2."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, bit = args
        found = cgutils.alloca_once(builder, value.type)
        lanes = ir.VectorType(ir.IntType(32), LANES)
        for number in range(BITS):
            with builder.if_then(builder.icmp_signed("==", bit, ir.Constant(bit.type, number))):
                order = ir.Constant(lanes, [i ^ (1 << number) for i in range(LANES)])
                builder.store(builder.shuffle_vector(value, value, order), found)
        return builder.load(found)

    return vector(vector, types.intp), generate


def _spread(builder: Any, number: Any) -> Any:
    """LANES times a number."""
    vector = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


@intrinsic
def splat(typing: Any, array: Any, index: Any, number: Any) -> Any:
    """Write a number LANES times to where ``load`` reads them, rounded to the array's dtype."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _address(context, builder, signature, args)
        kind, number = context.get_value_type(signature.args[0].dtype), args[2]
        rounded = number if number.type == kind else builder.fptrunc(number, kind)
        builder.store(_spread(builder, rounded), pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float64), generate


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """A vector of zeros of the array's dtype."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return Vector(array.dtype)(array), generate


def _double(array: Any) -> Any:
    """What an entry of the array is in double precision: a number, or a vector where the array has a second axis."""
    return types.float64 if array.ndim == 1 else Vector(types.float64)


@intrinsic
def at(typing: Any, array: Any, index: Any) -> Any:
    """Entry ``index`` of an array (count,) or (count, LANES), in double precision; bounds are not checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        if kind.ndim == 1:
            value = builder.load(_data(context, builder, kind, *args))
        else:
            first = builder.mul(args[1], ir.Constant(args[1].type, LANES))
            pointer, align = _address(context, builder, signature, (args[0], first))
            value = builder.load(pointer, align=align)
        wide = context.get_value_type(signature.return_type)
        return value if value.type == wide else builder.fpext(value, wide)

    return _double(array)(array, types.intp), generate


@intrinsic
def put(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write an entry where ``at`` reads it, rounded to the array's dtype."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, value = signature.args[0], args[2]
        narrow = context.get_value_type(kind.dtype)
        if kind.ndim == 1:
            pointer, align = _data(context, builder, kind, *args[:2]), None
        else:
            first = builder.mul(args[1], ir.Constant(args[1].type, LANES))
            pointer, align = _address(context, builder, signature, (args[0], first))
            narrow = ir.VectorType(narrow, LANES)
        builder.store(value if value.type == narrow else builder.fptrunc(value, narrow), pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, _double(array)), generate


@intrinsic
def constant(typing: Any, array: Any, value: Any) -> Any:
    """A number as an entry of the array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[1] if signature.args[0].ndim == 1 else _spread(builder, args[1])

    return _double(array)(array, types.float64), generate


def _plus(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """c + a b, rounded once where the processor can."""
    if not FUSES:
        return builder.fadd(c, builder.fmul(a, b))
    name = f"llvm.fma.v{LANES}{a.type.element.intrinsic_name}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, (a, b, c))


def _minus(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """c - a b, likewise."""
    return _plus(builder, builder.fneg(a), b, c)


@intrinsic
def fused(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """c + a b of vectors."""
    return a(a, a, a), lambda context, builder, signature, args: _plus(builder, *args)


@intrinsic
def reduced(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """c - a b of vectors."""
    return a(a, a, a), lambda context, builder, signature, args: _minus(builder, *args)


@intrinsic
def real_part(typing: Any, d: Any, a: Any, o: Any, b: Any, e: Any, c: Any, q: Any, f: Any) -> Any:
    """d a + o b - e c - q f of vectors: Re((d + ie)(a + ic) + (o + iq)(b + if))."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        d, a, o, b, e, c, q, f = args
        total = _plus(builder, d, a, builder.fmul(o, b))
        return _minus(builder, q, f, _minus(builder, e, c, total))

    return d(*(d,) * 8), generate


@intrinsic
def imaginary_part(typing: Any, d: Any, a: Any, o: Any, b: Any, e: Any, c: Any, q: Any, f: Any) -> Any:
    """d c + o f + e a + q b of vectors: Im((d + ie)(a + ic) + (o + iq)(b + if))."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        d, a, o, b, e, c, q, f = args
        total = _plus(builder, d, c, builder.fmul(o, f))
        return _plus(builder, q, b, _plus(builder, e, a, total))

    return d(*(d,) * 8), generate


def _define(function: Any, instruction: str) -> None:
    @type_callable(function)
    def kind(context: Any) -> Any:
        return lambda a, b: a if isinstance(a, Vector) and a == b else None

    @lower_builtin(function, Vector, Vector)
    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")


@type_callable(operator.neg)
def _negative_kind(context: Any) -> Any:
    return lambda a: a if isinstance(a, Vector) else None


@lower_builtin(operator.neg, Vector)
def _negative(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.fneg(args[0])
