# What ginr_fast/ops/native*.py use of the compiled extension (csrc/bindings.cpp) by name; the
# kernels of mixture_average are looked up by device and dtype.

from collections.abc import Sequence
from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_path() -> str: ...
def force_cpu_path(path: str) -> None: ...

class MixtureAverageProblem:
    def __init__(self, batch: int, layers: int, mixtures: int, sizes: Sequence[int]) -> None: ...

def mixture_average_grad_coefficients_parts(problem: MixtureAverageProblem) -> int: ...

class Field:
    def __init__(
        self,
        coord_dim: int,
        out_dim: int,
        width: int,
        hidden_layers: int,
        activation: int,
        out_activation: int,
        w0: float,
        bias: bool,
        frequencies: list[float],
    ) -> None: ...
    @property
    def parameters(self) -> int: ...

class Rendering:
    def __init__(
        self,
        samples: int,
        near: float,
        far: float,
        color: int,
        density: int,
        last_interval: float,
        scale_by_norm: bool,
        white_background: bool,
        epsilon: float,
        jitter: int,
        seed: int,
    ) -> None: ...

class Occupancy:
    def __init__(
        self, bits: int, resolution: int, low: list[float], high: list[float], stop: float
    ) -> None: ...

# Sizes, addresses of float32 arrays, and the number of threads; see the .cpp files.
def field_mlp_cpu_float32(
    field: Field,
    batch: int,
    count: int,
    shared: bool,
    grid: list[int],
    weights: int,
    coords: int,
    out: int,
    threads: int,
) -> None: ...
def field_mlp_cpu_bfloat16(
    field: Field,
    batch: int,
    count: int,
    shared: bool,
    weights: int,
    coords: int,
    out: int,
    threads: int,
) -> bool: ...
def field_mlp_backward_cpu_float32(
    field: Field,
    batch: int,
    count: int,
    shared: bool,
    grid: list[int],
    weights: int,
    coords: int,
    grad: int,
    grad_weights: int,
    grad_coords: int,
    threads: int,
) -> None: ...
def field_mlp_second_cpu_float32(
    field: Field,
    batch: int,
    count: int,
    shared: bool,
    weights: int,
    along: int,
    coords: int,
    grad: int,
    grad_grad: int,
    grad_weights: int,
    threads: int,
) -> None: ...
def volume_render_cpu_float32(
    field: Field,
    rendering: Rendering,
    occupancy: Occupancy,
    batch: int,
    rays: int,
    first_rays: int,
    weights: int,
    origins: int,
    directions: int,
    out: int,
    threads: int,
) -> None: ...
def volume_render_backward_cpu_float32(
    field: Field,
    rendering: Rendering,
    batch: int,
    rays: int,
    first_rays: int,
    weights: int,
    origins: int,
    directions: int,
    grad: int,
    grad_weights: int,
    grad_origins: int,
    grad_directions: int,
    threads: int,
) -> None: ...
def composite_cpu_float32(
    rendering: Rendering,
    channels: int,
    rays: int,
    values: int,
    positions: int,
    scales: int,
    out: int,
    threads: int,
) -> None: ...
def composite_backward_cpu_float32(
    rendering: Rendering,
    channels: int,
    rays: int,
    values: int,
    positions: int,
    scales: int,
    grad: int,
    grad_values: int,
    grad_positions: int,
    grad_scales: int,
    threads: int,
) -> None: ...
def vector_sine_cosine(x: int, count: int, sine: int, cosine: int) -> None: ...
def vector_exponential(x: int, count: int, out: int) -> None: ...

# Sizes, address and strides of A and of B, addresses of bias (0: none) and out; False: no AMX.
def split_gemm(
    rows: int,
    columns: int,
    depth: int,
    a: int,
    a_row: int,
    a_step: int,
    b: int,
    b_row: int,
    b_step: int,
    bias: int,
    relu: bool,
    out: int,
    out_row: int,
    threads: int,
) -> bool: ...

# With CUDA; the .cpp files name the arguments.
def field_mlp_backward_sizes_cuda(*arguments: Any) -> tuple[int, int]: ...
def volume_render_backward_sizes_cuda(*arguments: Any) -> tuple[int, int]: ...
