"""The program as C99: one header and one source, integers only after the conversion of the observation.

Layers are those of ``products``. The same source compiles as CUDA.
"""

import textwrap
from importlib import resources
from pathlib import Path
from typing import Any

from distqtrl.export import loader, tools
from distqtrl.export.check import BUILT, EQUAL, Check, Question, equal
from distqtrl.export.options import Options
from distqtrl.export.products import Layer
from distqtrl.export.tools import Unchecked
from distqtrl.quantize.program import Argmax, Ints, Lookup, Matmul, Program, Range, Scale, within

SOURCES = ("policy.h", "policy.c")
CORTEX_M = ["-mcpu=cortex-m4", "-mthumb", "-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections"]
CORTEX_M += ["-fstack-usage", "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,policy_step"]
SIGNED = ("int8_t", "int16_t", "int32_t", "int64_t")


def write(folder: Path, program: Program, options: Options | None = None) -> dict[str, Any]:
    """Write the library's sources and the Python module that loads it; the manifest says nothing about them."""
    for name, text in sources(program).items():
        (folder / name).write_text(text)
    (folder / "policy.py").write_text(resources.files("distqtrl.export").joinpath("loader.py").read_text())
    return {}


def library(place: Path) -> loader.Policy:
    """The C policy whose sources are in a folder, built there; raises Unchecked."""
    compiler, file = tools.compiler(), place / "policy.so"
    tools.run(compiler, [*loader.FLAGS, "-o", file.name, "policy.c"], place)
    return loader.Policy(library=tools.library(compiler, file, "policy_step"))


def compared(name: str, q: Question) -> Check:
    """The check of the library that this machine's compiler makes."""
    equal(library(q.place).batch(q.x_BO), q.y_BA)
    return Check(name, EQUAL, vectors=len(q.x_BO), detail=tools.compiler().name)


def cortex_m(place: Path) -> dict[str, float]:
    """The bytes of flash, memory and stack that policy_step takes, linked for a Cortex-M4; raises Unchecked."""
    compiler, size = tools.arm(), tools.arm("size")
    tools.run(compiler, [*CORTEX_M, "-o", "policy.elf", "policy.c", "-lgcc"], place)
    tools.made(compiler, place / "policy.elf")
    lines = tools.run(size, ["policy.elf"], place).out.decode(errors="replace").splitlines()
    try:
        text, data, bss = map(int, lines[1].split()[:3])
    except (IndexError, ValueError):
        raise Unchecked(f"{size.name} printed no sizes: {size.remedy}") from None
    stacks = [line.split("\t") for path in place.glob("*.su") for line in path.read_text().splitlines()]
    stack = sum(int(words[1]) for words in stacks if not words[0].endswith(("policy_batch", "policy_convert")))
    return {"flash": text + data, "memory": data + bss, "stack": stack}


def linked(name: str, q: Question) -> Check:
    """The check that a microcontroller's compiler takes the sources, and what they need there."""
    f = cortex_m(q.place)
    detail = f"Cortex-M4: {f['flash']:,} bytes of flash, {f['memory']:,} of memory, at most {f['stack']:,} of stack"
    return Check(name, BUILT, detail=detail, figures=f)


def sources(program: Program) -> dict[str, str]:
    """File name -> text of the library of a program."""
    functions, body, source, kind = [], [], "observation", c_type(program.inputs)
    for number, (op, x, y) in enumerate(program.steps()):
        last = number == len(program.ops) - 1
        target, result = ("action", "int32_t") if last else (f"x{number}", c_type(y))
        head = f"POLICY_FUNCTION void op{number}(const {kind} *POLICY_RESTRICT x, {result} *POLICY_RESTRICT y)"
        statement = f"for (int i = 0; i < {len(y.low_N)}; i++)"
        functions.append(f"{head}\n{{\n{_indented(_body(op, x, number, statement, result))}\n}}\n")
        if not last:
            following = program.ops[number + 1]
            room = Layer(following, y, number + 1).room if isinstance(following, Matmul) else len(y.low_N)
            body.append(f"{result} {target}[{room}];")
            body += [f"for (int i = {len(y.low_N)}; i < {room}; i++) {target}[i] = 0;"] * (room > len(y.low_N))
        body.append(f"op{number}({source}, {target});")
        source, kind = target, result
    tables = [_tables(op, x, number) for number, (op, x, _) in enumerate(program.steps())]
    facts = {
        "INPUTS": len(program.input_fraction_O),
        "ACTIONS": len(program.outputs.low_N),
        "FRACTION": program.output_fraction,
        "OBSERVATION": c_type(program.inputs),
        "LOW": int(program.inputs.low_N[0]),
        "HIGH": int(program.inputs.high_N[0]),
        "FACTORS": _wrapped([repr(2.0**f) for f in program.input_fraction_O]),
        "TABLES": "\n".join(t for t in tables if t),
        "FUNCTIONS": "\n".join(functions),
        "BODY": _indented(body),
    }
    return {"policy.h": _filled(HEADER, facts), "policy.c": _filled(SOURCE, facts)}


def c_type(x: Range) -> str:
    """The smallest type that holds a range."""
    if not x.signed and x.high_N.max() <= 255:
        return "uint8_t"
    return next(kind for kind in SIGNED if x.bits <= int(kind[3:-2]))


def _tables(op: object, x: Range, number: int) -> str:
    """The constants of an operation."""
    if isinstance(op, Matmul):
        words = Layer(op, x, number).words()
        return _array("uint16_t", f"weights{number}[{words.size}]", words)
    if isinstance(op, Scale):
        texts = []
        for name, values in (("multiplier", op.multiplier_N), ("offset", op.offset_N)):
            if len(set(values.tolist())) > 1:
                texts.append(_array(_smallest(values), f"{name}{number}[{len(values)}]", values))
        return "".join(texts)
    if isinstance(op, Lookup):
        return _array(_smallest(op.table), f"table{number}[{len(op.table)}]", op.table)
    return ""


def _body(op: object, x: Range, number: int, loop: str, result: str) -> list[str]:
    """The statements of an operation: x -> y."""
    if isinstance(op, Matmul):
        return Layer(op, x, number).statements(result)
    if isinstance(op, Scale):
        wide = "int64_t" if max(op.shift + 1, *(r.bits for r in within(op, x))) > 32 else "int32_t"
        factor, offset = (
            f"{name}{number}[i]" if len(set(values.tolist())) > 1 else str(int(values[0]))
            for name, values in (("multiplier", op.multiplier_N), ("offset", op.offset_N))
        )
        return [
            f"{loop} {{",
            f"    {wide} v = (({wide})x[i] * {factor} + {offset}) >> {op.shift};",
            f"    v = v < {op.low} ? {op.low} : v;",
            f"    y[i] = ({result})(v > {op.high} ? {op.high} : v);",
            "}",
        ]
    if isinstance(op, Lookup):
        return [f"{loop} y[i] = table{number}[x[i]];"]
    assert isinstance(op, Argmax)
    lines = []
    for number, (first, num, start) in enumerate(op.factors(len(x.low_N))):
        plus = f" {'-' if start < first else '+'} {abs(start - first)}" if start != first else ""
        lines += [
            f"{'int ' * (not number)}best = {first};",
            f"for (int i = {first + 1}; i < {first + num}; i++) if (x[i] > x[best]) best = i;",
            f"y[{number}] = best{plus};",
        ]
    return lines


def _smallest(values: Ints) -> str:
    return c_type(Range(values, values))


def _array(kind: str, name: str, values: Ints) -> str:
    return f"POLICY_CONSTANT {kind} {name} = {{\n{_wrapped([str(v) for v in values])}\n}};\n"


def _wrapped(words: list[str]) -> str:
    return textwrap.fill(", ".join(words), 110, initial_indent="    ", subsequent_indent="    ")


def _indented(lines: list[str]) -> str:
    return textwrap.indent("\n".join(lines), "    ")


def _filled(text: str, facts: dict[str, object]) -> str:
    for key, value in facts.items():
        text = text.replace(f"@{key}@", str(value))
    return text


HEADER = """\
/* A policy as integers, exported by distqtrl. See README.md for the formats. */
#ifndef POLICY_H
#define POLICY_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define POLICY_INPUTS @INPUTS@
#define POLICY_ACTIONS @ACTIONS@
#define POLICY_FRACTION @FRACTION@ /* an action means action * 2^-POLICY_FRACTION */
typedef @OBSERVATION@ policy_observation_t;

/* The only step with floating point: units of the environment -> fixed point, rounded and saturated. */
void policy_convert(const double *values, policy_observation_t *observation);

/* One action; the arrays may not overlap. */
void policy_act(const policy_observation_t *observation, int32_t *action);

/* Many actions, row by row. */
void policy_batch(const policy_observation_t *observations, int32_t *actions, int32_t count);

/* policy_act on these two arrays, for callers that pay for every argument. Not for several threads. */
extern policy_observation_t policy_observation[POLICY_INPUTS];
extern int32_t policy_action[POLICY_ACTIONS];
void policy_step(void);

/* The same facts for callers that cannot read this file. */
extern const int32_t policy_inputs, policy_actions, policy_fraction, policy_observation_size;

#ifdef __cplusplus
}
#endif
#endif
"""

SOURCE = """\
/* A policy as integers, exported by distqtrl. Depends on nothing; every range was proven to fit its type. */
#ifdef __CUDACC__
#include <stdint.h>
typedef @OBSERVATION@ policy_observation_t;
#define POLICY_INPUTS @INPUTS@
#define POLICY_ACTIONS @ACTIONS@
#define POLICY_FUNCTION static __device__
#define POLICY_CONSTANT static __device__ const
#define POLICY_RESTRICT __restrict__
#else
#include "policy.h"
#define POLICY_FUNCTION static
#define POLICY_CONSTANT static const
#define POLICY_RESTRICT restrict
#endif

/* Two's complement and arithmetic right shifts, as in every compiler that we know. */
typedef char policy_needs_twos_complement[(-1 >> 1) == -1 && (int16_t)(uint16_t)65535 == -1 ? 1 : -1];

@TABLES@
@FUNCTIONS@
#ifdef __CUDACC__
static __device__
#endif
void policy_act(const policy_observation_t *observation, int32_t *action)
{
@BODY@
}

#ifndef __CUDACC__
policy_observation_t policy_observation[POLICY_INPUTS];
int32_t policy_action[POLICY_ACTIONS];
const int32_t policy_inputs = POLICY_INPUTS, policy_actions = POLICY_ACTIONS, policy_fraction = POLICY_FRACTION;
const int32_t policy_observation_size = sizeof(policy_observation_t);

void policy_step(void)
{
    policy_act(policy_observation, policy_action);
}

void policy_batch(const policy_observation_t *observations, int32_t *actions, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        policy_act(observations + (intptr_t)i * POLICY_INPUTS, actions + (intptr_t)i * POLICY_ACTIONS);
}

void policy_convert(const double *values, policy_observation_t *observation)
{
    static const double factors[POLICY_INPUTS] = {
@FACTORS@
    };
    for (int i = 0; i < POLICY_INPUTS; i++) {
        double v = values[i] * factors[i] + 0.5;
        if (!(v >= @LOW@))
            observation[i] = @LOW@;
        else if (v >= @HIGH@)
            observation[i] = @HIGH@;
        else {
            int32_t whole = (int32_t)v;
            observation[i] = (policy_observation_t)(whole - (v < whole));
        }
    }
}
#endif
"""
