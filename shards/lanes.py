"""Vectors of float32 for the loops that numba compiles, each lane another frame.

LLVM has them, whatever the registers of the processor; numba only has to be told. Its cache does
not notice a change in this file: make one in kernels.py too.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, overload, register_model

LANES = 16
intrinsic: Any = extending.intrinsic  # its own type counts an argument that no caller gives


def llvm(lanes: int) -> ir.VectorType:
    """LLVM's type."""
    return ir.VectorType(ir.FloatType(), lanes)


class Vector(types.Type):
    """numba's type of LANES float32."""

    def __init__(self) -> None:
        super().__init__(f"float32x{LANES}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """As what numba hands a Vector to LLVM."""

    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, llvm(LANES))


vector = Vector()


def lanewise(function: Any, instruction: str) -> None:
    """Make a function of operator mean an instruction, where both sides are vectors."""

    @intrinsic
    def emitted(_: Any, a: Any, b: Any) -> Any:
        return a(a, b), lambda context, builder, signature, both: getattr(builder, instruction)(
            *both, flags=["contract"]
        )

    overload(function)(lambda a, b: (lambda a, b: emitted(a, b)) if a == b == vector else None)


lanewise(operator.add, "fadd")
lanewise(operator.sub, "fsub")
lanewise(operator.mul, "fmul")


def mixed(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    """The lanes of `a` and then `b` at some places."""
    mask = ir.VectorType(ir.IntType(32), len(places))
    return builder.shuffle_vector(a, b, ir.Constant(mask, places))


def address(
    context: Any, builder: Any, how: tuple[Any, Any], lanes: int = LANES, below: int = 0
) -> Any:
    """Where the first argument, an array, has `lanes` numbers from [row + below, column] on."""
    kind, (array, row, column) = how[0].args[0], how[1][:3]
    array = context.make_array(kind)(context, builder, array)
    place = [builder.add(row, row.type(below)), column]
    place = cgutils.get_item_pointer(context, builder, kind, array, place)
    return builder.bitcast(place, llvm(lanes).as_pointer())


@intrinsic
def filled(_: Any, value: Any) -> Any:
    """A vector of one float32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = builder.bitcast(arguments[0], llvm(1))
        return mixed(builder, one, one, [0] * LANES)

    return vector(types.float32), emit


@intrinsic
def larger(_: Any, a: Any, b: Any) -> Any:
    """Lane by lane the larger; NaN where `a` is."""

    def emit(context: Any, builder: Any, signature: Any, both: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", both[1], both[0]), both[1], both[0])

    return vector(a, b), emit


@intrinsic
def load(_: Any, array: Any, row: Any, column: Any) -> Any:
    """array[row, column : column + LANES]."""

    def emit(context: Any, builder: Any, *how: Any) -> Any:
        return builder.load(address(context, builder, how), align=4)

    return vector(array, types.int64, types.int64), emit


@intrinsic
def store(_: Any, array: Any, row: Any, column: Any, values: Any) -> Any:
    """array[row, column : column + LANES] = values."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[3], address(context, builder, (signature, arguments)), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, values), emit


@intrinsic
def columns(_: Any, array: Any, row: Any, column: Any) -> Any:
    """Four vectors: array[row : row + LANES, column + n] for n = 0 .. 3.

    A vector takes four numbers from every fourth row; the two steps of a transpose then stay
    within fours, where every processor is quick.
    """
    four = types.UniTuple(vector, 4)

    def emit(context: Any, builder: Any, *how: Any) -> Any:
        def rows(first: int) -> Any:
            places = [address(context, builder, how, 4, n) for n in range(first, LANES, 4)]
            parts = [builder.load(place, align=4) for place in places]
            while len(parts) > 1:
                every = list(range(2 * parts[0].type.count))
                pairs = zip(parts[::2], parts[1::2], strict=True)
                parts = [mixed(builder, *pair, every) for pair in pairs]
            return parts[0]

        def zipped(a: Any, b: Any, half: int) -> Any:
            pairs = [n for four in range(half, LANES, 4) for n in (four, four + 1)]
            return mixed(builder, a, b, [place for n in pairs for place in (n, LANES + n)])

        found = [rows(n) for n in range(4)]
        for _ in range(2):
            found = [zipped(found[n], found[n + 2], half) for n in (0, 1) for half in (0, 2)]
        return context.make_tuple(builder, four, found)

    return four(array, types.int64, types.int64), emit
