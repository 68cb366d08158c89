"""What each Triton kernel asks of a chip, counted from its launch, and the roofline.

A cost function reads the grid and the constants of a launch. It counts work as executed (padded
rows included) and bytes as each program moves them between the chip and the L2 cache, so that
operands read by several programs count several times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor

from ginr_fast.ops.kernels.launch import Launch


@dataclass(frozen=True)
class Cost:
    """Work of a launch: FLOPs of tensor cores, bytes, float32 and special-function operations."""

    tensor: float = 0.0
    l2: float = 0.0
    memory: float = 0.0
    """Bytes of the distinct tensors it touches: its traffic where they do not stay in L2."""
    float32: float = 0.0
    special: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


H200 = Cost(
    tensor=790e12,  # measured with library products in bfloat16
    l2=5.5e12,  # assumed
    memory=4.3e12,  # measured with a large copy
    float32=132 * 128 * 1.7e9,  # multiprocessors · lanes · an assumed clock of 1.7 GHz
    special=132 * 16 * 1.7e9,  # multiprocessors · results a clock · the same clock
)
"""Peaks a second of the chip that the roofline is drawn for."""

L2_BYTES = 50e6  # as published
LIMITS = ("tensor", "l2", "memory", "float32", "special")

# float32 instructions counted in the source, an element each.
PHASE = 32  # sin_cos_half_turns: reduction, two polynomials, signs; rounding to the operand dtype
FLOORS = 2  # of a phase; rounding to an integer runs on the special-function unit
LOGIT = 7  # mask, scale, maximum, difference, sum, rounding
GRADIENT = 5  # of a logit: difference, product, threshold, mask, rounding
EPILOGUE = 3  # bias, activation, rounding
SINE = 18  # of a field: phase, reduction in three parts, range, polynomial, sign


def roofline(cost: Cost, chip: Cost = H200) -> tuple[float, str]:
    """The least time of a launch in seconds, and the limit that sets it.

    Device memory counts only where the tensors of the launch do not fit into the L2 cache: a span
    is sized so that what one kernel hands to the next stays there.
    """
    times = {name: getattr(cost, name) / getattr(chip, name) for name in LIMITS}
    if cost.memory <= L2_BYTES:
        times["memory"] = 0.0
    binding = max(times, key=lambda name: times[name])
    return times[binding], binding


def cost(launch: Launch) -> Cost:
    """The cost of a launch.

    Raises:
        KeyError: a kernel without a cost function; every kernel needs one in ``COSTS``.
    """
    if launch.name not in COSTS:
        raise KeyError(f"launch: no cost function for the kernel {launch.name}; add it to COSTS")
    return COSTS[launch.name](launch) + Cost(memory=_distinct_bytes(launch))


def _distinct_bytes(launch: Launch) -> int:
    tensors = {id(t): t for t in launch.arguments.values() if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _size(launch: Launch, name: str) -> int:
    tensor = launch.arguments.get(name)
    return tensor.element_size() if isinstance(tensor, Tensor) else 0


def _programs(launch: Launch) -> int:
    return math.prod(launch.grid)


def _product(launch: Launch, size: int) -> Cost:
    """x Wᵀ of every tile of rows and columns; a resident W is read once a program."""
    c, tiles = launch.constants, _tiles(launch)
    weight = size * c["COLUMNS"] * c["INNER"]
    return Cost(
        tensor=2 * tiles * c["ROWS"] * c["COLUMNS"] * c["INNER"],
        l2=tiles * size * c["ROWS"] * c["INNER"]
        + weight * (_programs(launch) if c.get("RESIDENT") else tiles),
    )


def _tiles(launch: Launch) -> int:
    """Tiles of rows and columns: a program with a resident W walks over several tiles of rows."""
    c = launch.constants
    rows = math.ceil(launch.arguments["count"] / c["ROWS"])
    return rows * math.prod(launch.grid[1:]) * c.get("CHUNKS", 1)


def _layer(launch: Launch) -> Cost:
    c, tiles = launch.constants, _tiles(launch)
    size = _size(launch, "x_ptr")
    tile = c["ROWS"] * c["COLUMNS"]
    mish = c["ACTIVATION"] == "mish"
    added = (c["FEATURE"] != "none") + c["RESIDUAL"]
    moved = added + (c["SAVE"] != "none") + c["STORE"]
    epilogue = Cost(
        l2=size * moved * tile + 4 * c["COLUMNS"],
        float32=(EPILOGUE + added + 8 * mish) * tile,
        special=2 * mish * tile,
    )
    total = _product(launch, size) + _times(epilogue, tiles)
    if c["HEAD"]:
        head, passes = c["OUT_PADDED"], (not c["FIRST"]) + (not c["LAST"])
        out = 4 * c["ROWS"] * head * passes + size * c["ROWS"] * c["OUT"] * c["LAST"]
        if c["RESIDENT"]:  # sums over a row
            share = Cost(float32=c["OUT"] * tile, l2=size * c["OUT"] * c["COLUMNS"])
        else:
            share = Cost(tensor=2 * tile * head, l2=size * head * c["COLUMNS"])
        total += _times(share, tiles)
        total += _times(Cost(l2=out), tiles // c["CHUNKS"])
    return total


def _layer_backward(launch: Launch) -> Cost:
    c, tiles = launch.constants, _tiles(launch)
    size = max(_size(launch, "a_ptr"), _size(launch, "b_ptr"))
    tile = c["ROWS"] * c["COLUMNS"]
    wanted = [name for name in (c["A"], c["B"]) if name != "none"]
    slopes = [name for name in wanted if name != "identity"]
    epilogue = Cost(
        l2=size * tile * (len(wanted) + len(slopes)),
        float32=EPILOGUE * tile * len(wanted) + 15 * tile * slopes.count("mish"),
        special=2 * tile * slopes.count("mish"),
    )
    if c["HEAD"] and c["B"] != "none":
        bytes_of_head = size * c["OUT"] * (c["ROWS"] + c["COLUMNS"])
        epilogue += Cost(l2=bytes_of_head, float32=c["OUT"] * tile)
    total = _times(epilogue, tiles)
    return total + _product(launch, size) if c["PRODUCT"] else total


def _widths(c: Any) -> tuple[int, int]:
    return c["QUERY_DIM"] * c["QUERY_CHUNKS"], c["VALUE_DIM"] * c["VALUE_CHUNKS"]


def _attention(launch: Launch) -> Cost:
    """A resident K and V are read once a program, which walks over several tiles of rows."""
    c = launch.constants
    size, query = _size(launch, "q_ptr"), _widths(c)[0]
    rows, tokens, value = c["ROWS"], c["ALL_TOKENS"], c["VALUE_DIM"]
    passes = 1 + c["THRESHOLD"]
    rescaled = 0 if c["THRESHOLD"] else rows * value * tokens // c["TOKENS"]
    total = Cost(
        tensor=2 * rows * tokens * (passes * query + value),
        l2=size * rows * (query + value) + 4 * rows * c["STATISTICS"] * passes,
        float32=passes * LOGIT * rows * tokens + rescaled,
        special=passes * rows * tokens,
    )
    tiles = _programs(launch)
    if c["RESIDENT"]:
        tiles = math.ceil(launch.arguments["points"] / rows) * launch.grid[1]
    operands = Cost(l2=size * tokens * (passes * query + value))
    return _times(total, tiles) + _times(operands, _programs(launch))


def _query_gradient(launch: Launch) -> Cost:
    c, n = launch.constants, _programs(launch)
    size, (query, value) = _size(launch, "g_ptr"), _widths(c)
    rows, tokens = c["ROWS"], c["ALL_TOKENS"]
    passes = c["THRESHOLD"] + c["QUERIES"]
    total = Cost(l2=2 * size * rows * value + 4 * rows, float32=2 * rows * value)
    total += Cost(
        tensor=2 * rows * tokens * passes * (query + value),
        l2=size * passes * tokens * (query + value) + size * rows * query * (passes > 0),
        float32=passes * (LOGIT + GRADIENT) * rows * tokens,
        special=passes * rows * tokens,
    )
    if c["QUERIES"]:
        total += Cost(
            tensor=2 * rows * tokens * c["QUERY_DIM"], l2=size * (rows + tokens) * c["QUERY_DIM"]
        )
    return _times(total, n)


def _token_gradient(launch: Launch) -> Cost:
    c = launch.constants
    size, (query, value) = _size(launch, "g_ptr"), _widths(c)
    tokens, points = c["TOKENS"], launch.arguments["points"]
    owners = launch.grid[0] * launch.grid[1]  # each walks over all points, in SPLITS shares
    inner = query + c["VALUES"] * c["VALUE_DIM"] + c["KEYS"] * (value + c["QUERY_DIM"])
    read = query + c["VALUE_DIM"] + c["KEYS"] * (value + c["QUERY_DIM"])
    walk = Cost(
        tensor=2 * points * tokens * inner,
        l2=points * (size * read + 4 * (1 + c["KEYS"] + 2 * c["THRESHOLD"])),
        float32=(LOGIT + c["KEYS"] * GRADIENT) * points * tokens,
        special=points * tokens,
    )
    kept = c["KEYS"] * c["QUERY_DIM"] + c["VALUES"] * c["VALUE_DIM"]
    once = Cost(l2=size * tokens * (query + value) + 8 * tokens * kept)
    return _times(walk, owners) + _times(once, _programs(launch))


def _fourier_linear(launch: Launch) -> Cost:
    c, n = launch.constants, _programs(launch)
    size = _size(launch, "out_ptr")
    rows, columns, phases = c["ROWS"], c["COLUMNS"], c["PHASES"]
    total = Cost(
        tensor=4 * rows * columns * phases,
        l2=size * columns * (2 * phases + rows) + 4 * rows * c["COORDS"] + 8 * phases,
        float32=PHASE * rows * phases + EPILOGUE * rows * columns,
        special=FLOORS * rows * phases,
    )
    return _times(total, n)


def _fourier(launch: Launch) -> Cost:
    c, n = launch.constants, _programs(launch)
    size, phases = _size(launch, "out_ptr"), c["ROWS"] * c["INNER"]
    total = Cost(l2=2 * size * phases, float32=PHASE * phases, special=FLOORS * phases)
    return _times(total, n)


def _expand_grid(launch: Launch) -> Cost:
    c, n = launch.constants, _programs(launch)
    size, tile = _size(launch, "out_ptr"), c["ROWS"] * c["COLUMNS"]
    total = Cost(l2=size * tile * (c["AXES"] + 1), float32=(c["AXES"] + EPILOGUE) * tile)
    return _times(total, n)


def _field_input(c: Any, size: int, columns: int) -> Cost:
    """What the first layer of a field reads and multiplies for a tile of ``columns`` columns."""
    rows, phases = c["ROWS"], c["PHASES"]
    tile = rows * columns
    if c["INPUT"] == "coordinates":
        return Cost(l2=4 * c["COORDS"] * (rows + columns), float32=c["COORDS"] * tile)
    return Cost(
        tensor=4 * tile * phases,
        l2=2 * size * columns * phases + 4 * rows * c["COORDS"] + 12 * phases,
        float32=PHASE * rows * phases,
        special=FLOORS * rows * phases,
    )


def _field_epilogue(c: Any, size: int, columns: int) -> Cost:
    """Bias, activation and what is stored of a tile of one layer of a field."""
    tile = c["ROWS"] * columns
    sines = (c["ACTIVATION"] == "sine") * (1 + c["SAVE"])
    return Cost(
        l2=size * tile * (c["STORE"] + c["SAVE"]) + 4 * columns,
        float32=(EPILOGUE + SINE * sines) * tile,
    )


def _field_head(launch: Launch, size: int, columns: int, sums: bool) -> Cost:
    """The last layer of a field for a tile, as a product or as sums over the row."""
    c = launch.constants
    if c["HEAD"] == "none":
        return Cost()
    channels, tile = c["OUT"] if sums else c["OUT_PADDED"], c["ROWS"] * columns
    moved = size * channels * columns + _size(launch, "out_ptr") * c["ROWS"] * c["OUT"]
    work = Cost(float32=channels * tile) if sums else Cost(tensor=2 * tile * channels)
    return work + Cost(l2=moved)


def _field_tiles(launch: Launch) -> int:
    """Tiles of rows, column chunks and instances of a field's layer."""
    c = launch.constants
    rows = math.ceil(launch.arguments["count"] / c["ROWS"])
    return rows * math.prod(launch.grid[1:]) * c.get("CHUNKS", 1)


def _field_layer(launch: Launch) -> Cost:
    """The forward of a field's layer; a resident W is read once a program."""
    c, tiles = launch.constants, _field_tiles(launch)
    size = max(_size(launch, name) for name in ("y_ptr", "head_ptr"))
    columns = c["COLUMNS"]
    total = _field_epilogue(c, size, columns) + _field_head(launch, size, columns, c["RESIDENT"])
    if c["INPUT"] != "layer":
        return _times(total + _field_input(c, size, columns), tiles)
    total += Cost(tensor=2 * c["ROWS"] * columns * c["INNER"], l2=size * c["ROWS"] * c["INNER"])
    weights = Cost(l2=size * columns * c["INNER"])
    return _times(total, tiles) + _times(weights, _programs(launch) if c["RESIDENT"] else tiles)


def _field_backward(launch: Launch) -> Cost:
    c, tiles = launch.constants, _field_tiles(launch)
    size, rows, tile = _size(launch, "out_ptr"), c["ROWS"], c["ROWS"] * c["COLUMNS"]
    total = Cost(l2=size * tile * (1 + (c["ACTIVATION"] != "none")), float32=EPILOGUE * tile)
    if c["HEAD"]:
        narrow = Cost(l2=c["OUT"] * (4 * rows + size * c["COLUMNS"]), float32=c["OUT"] * tile)
        return _times(total + narrow, tiles)
    total += Cost(tensor=2 * tile * c["INNER"], l2=size * rows * c["INNER"])
    weights = Cost(l2=size * c["COLUMNS"] * c["INNER"])
    return _times(total, tiles) + _times(weights, _programs(launch) if c["RESIDENT"] else tiles)


def _field_chain(launch: Launch) -> Cost:
    """A whole field: every weight is read once a program."""
    c, steps = launch.constants, launch.arguments["steps"]
    size, width = _size(launch, "w_ptr"), c["WIDTH"]
    total = _field_input(c, size, width) + _field_head(launch, size, width, False)
    total += _times(_field_epilogue(c, size, width), steps + 1)
    layer = Cost(tensor=2 * c["ROWS"] * width**2, l2=size * width**2)
    return _times(total + _times(layer, steps), _programs(launch))


def _field_chain_backward(launch: Launch) -> Cost:
    c, steps = launch.constants, launch.arguments["steps"]
    size, width, tile = _size(launch, "out_ptr"), c["WIDTH"], c["ROWS"] * c["WIDTH"]
    saved = c["ACTIVATION"] != "none"
    each = Cost(l2=size * tile * (1 + saved), float32=EPILOGUE * tile)
    layer = Cost(tensor=2 * tile * width, l2=size * width**2)
    head = Cost(l2=c["OUT"] * (4 * c["ROWS"] + size * width), float32=c["OUT"] * tile)
    total = _times(each, steps + 1) + _times(layer, steps) + head
    return _times(total, _programs(launch))


def _field_coords(launch: Launch) -> Cost:
    c, n = launch.constants, _programs(launch)
    size, rows, phases = _size(launch, "g_ptr"), c["ROWS"], c["PHASES"]
    total = Cost(
        tensor=4 * rows * phases * c["WIDTH"],
        l2=size * c["WIDTH"] * (rows * phases // c["INNER"] + 2 * phases)
        + 8 * rows * c["COORDS"]
        + 12 * phases,
        float32=(PHASE + 4 + 2 * c["COORDS"]) * rows * phases,
        special=FLOORS * rows * phases,
    )
    return _times(total, n)


def _rows_of_weights(launch: Launch) -> Cost:
    """Kernels that pass over the rows of a layer's weights: every pass reads or writes a matrix."""
    c = launch.constants
    size = max(_size(launch, name) for name in ("out_ptr", "grad_ptr"))
    matrix = c["FAN_OUT"] * c["FAN_IN"]
    passes, work = _ROW_PASSES[launch.name]
    instances = launch.arguments["count"] if "count" in launch.arguments else launch.grid[0]
    return _times(Cost(l2=passes * size * matrix, float32=work * matrix), instances)


def _low_rank(launch: Launch) -> Cost:
    """A product a tile; where rows are normalised it is formed twice."""
    c, n = launch.constants, _programs(launch)
    size = _size(launch, "out_ptr")
    width = c["COLUMNS"] * math.ceil(c["FAN_IN"] / c["COLUMNS"])
    rank, passes = c["RANK"], 1 + c["NORMALIZE"]
    operands = rank * (c["ROWS"] * width // c["COLUMNS"] + c["FAN_IN"])
    total = Cost(
        tensor=2 * passes * c["ROWS"] * width * rank,
        l2=size * (passes * operands + c["ROWS"] * c["FAN_IN"]),
        float32=EPILOGUE * c["ROWS"] * width,
    )
    return _times(total, n)


def _times(cost: Cost, count: int) -> Cost:
    return Cost(*(count * value for value in astuple(cost)))


_ROW_PASSES = {  # matrices read or written, float32 instructions a weight
    "group_weights_kernel": (5, 4),
    "row_dots_kernel": (2, 1),
    "group_gradient_kernel": (3, 4),
    "group_base_gradient_kernel": (3, 4),
    "low_rank_rows_kernel": (3, 4),
}

COSTS: dict[str, Callable[[Launch], Cost]] = {
    "layer_kernel": _layer,
    "layer_backward_kernel": _layer_backward,
    "attention_kernel": _attention,
    "query_gradient_kernel": _query_gradient,
    "token_gradient_kernel": _token_gradient,
    "fourier_linear_kernel": _fourier_linear,
    "fourier_kernel": _fourier,
    "expand_grid_kernel": _expand_grid,
    "field_layer_kernel": _field_layer,
    "field_backward_kernel": _field_backward,
    "field_chain_kernel": _field_chain,
    "field_chain_backward_kernel": _field_chain_backward,
    "field_coords_kernel": _field_coords,
    **dict.fromkeys(_ROW_PASSES, _rows_of_weights),
    "low_rank_kernel": _low_rank,
}
"""The cost of a launch, by the name of its kernel."""
