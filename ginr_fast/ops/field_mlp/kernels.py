"""The Triton backend of ``field_mlp``: fields without a view branch, up to 512 wide.

For a tile of coordinates v of one instance, with that instance's own weights:

    1  h_1 = f(W_1 γ(v) + b_1)       γ(v) formed on chip, or v itself, in float32
    2  h_ℓ = f(W_ℓ h_{ℓ−1} + b_ℓ)    ℓ = 2..L+1
    3  y   = f_out(W_o h + b_o)

Fields up to 128 wide run in one kernel, with 16-bit operands (``kernels/field_chain_kernels.py``).
Wider ones take a kernel a layer, 3 being the epilogue of the last hidden one. What a layer hands to
the next lies in a workspace that holds a span, a run of points of several instances, and is reused
from span to span: memory does not grow with the number of coordinates.

        registers             shared memory           workspace of a span     inputs, output
    1   W γ accumulator       W_1 blocks              h_1                     v
    2   accumulator           h_{ℓ−1}, W_ℓ            h_ℓ                     –
    3   y                     –                       –                       y

Operands have the dtype of the weights, sums and phases are float32. Where a sine is among the
activations 16-bit operands are float16 whatever the weights are: bfloat16 would cost the phases
their accuracy. A weight above 65,504, which only bfloat16 can hold, becomes infinite there, and
the output NaN.

Backward: a span is computed again with every h and, for sines, f' kept; the layers are walked in
reverse (``kernels_backward.py``). No addition is atomic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops.kernels.field_chains import chains, field_chain
from ginr_fast.ops.kernels.field_layers import Encoded, FieldHead, field_layer
from ginr_fast.ops.kernels.fourier import phase_table
from ginr_fast.ops.kernels.launch import power_of_two, tiles
from ginr_fast.ops.kernels.layers import padded_width

MOST_INSTANCES = 32768
"""Of a span: a dimension of a launch ends at 65,535."""


def compute_dtype(spec: FieldSpec, dtype: torch.dtype) -> torch.dtype:
    """The dtype of operands in shared memory, for weights in ``dtype``."""
    sines = "sine" in (spec.activation, spec.out_activation)
    return torch.float16 if sines and dtype == torch.bfloat16 else dtype


@functools.lru_cache(maxsize=64)
def _phases(
    encoding: FourierEncoding, coord_dim: int, multiple: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies in half turns (n,); the same for every phase, with what rounding lost,
    (2, phases); and the axis of every phase. Kept: copies to a device would break CUDA graphs."""
    exact = torch.tensor(encoding.frequencies, dtype=torch.float64) / math.pi
    rounded = exact.float()
    table, axis = phase_table(rounded, coord_dim, multiple)
    lost, _ = phase_table((exact - rounded).float(), coord_dim, multiple)
    return rounded.to(device), torch.stack((table, lost)).to(device), axis.to(device)


class Call:
    """The packed operands of one call, and the forward of one span."""

    def __init__(self, coords: Tensor, weights: Tensor, spec: FieldSpec):
        self.coords, self.spec = coords.contiguous(), spec
        self.dtype, self.device = compute_dtype(spec, weights.dtype), weights.device
        self.batch, self.points = weights.shape[0], coords.shape[1]
        self.width = padded_width(spec.hidden_dim)
        self.chained = chains(self.device, self.dtype, self.width)
        self._pack_first(weights)
        self._pack_hidden(weights)
        weight, bias = self._layer(weights, spec.layers - 1)
        channels = power_of_two(spec.out_dim)
        self.head = self._padded(weight, (channels, self.width), self.dtype)
        self.head_bias = self._padded(bias, (channels,), torch.float32)

    def _tile(self, kind: str) -> dict[str, int]:
        return tiles(kind, self.device, self.dtype, self.width)

    def _layer(self, weights: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        """Views of a layer's weight (B, out, in) and bias (B, out) in the packed rows."""
        step = 2 if self.spec.bias else 1
        slots = self.spec.slots[step * layer : step * layer + step]
        views = [weights[:, s.offset : s.offset + s.size].unflatten(1, s.shape) for s in slots]
        return views[0], views[1] if self.spec.bias else None

    def _padded(self, view: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous copy, (B, *shape), with zeros behind what is there."""
        if view is not None and view.shape[1:] == shape:
            return torch.empty((self.batch, *shape), dtype=dtype, device=self.device).copy_(view)
        out = torch.zeros((self.batch, *shape), dtype=dtype, device=self.device)
        if view is not None:
            inside = out
            for axis, size in enumerate(view.shape):
                inside = inside.narrow(axis, 0, size)
            inside.copy_(view)
        return out

    def _pack_first(self, weights: Tensor) -> None:
        spec = self.spec
        weight, bias = self._layer(weights, 0)
        self.first_bias = self._padded(bias, (self.width,), torch.float32)
        self.frequency: Tensor | None = None
        self.axis: Tensor | None = None
        if spec.encoding is None:
            weight = weight.transpose(1, 2)
            self.first = self._padded(weight, (spec.coord_dim, self.width), torch.float32)
            return
        # Every kernel takes whole steps of phases, which are powers of two.
        steps = {"field_encoded": "step", "field_input": "step", "field_coords": "inner"}
        if self.chained:
            steps |= {"field_chain": "step", "field_chain_saved": "step"}
        multiple = max(self._tile(kind)[size] for kind, size in steps.items())
        self.half_turns, self.frequency, self.axis = _phases(
            spec.encoding, spec.coord_dim, multiple, self.device
        )
        weight = weight.unflatten(-1, (2, -1))
        self.first = self._padded(weight, (self.width, 2, self.axis.shape[0]), self.dtype)

    def _pack_hidden(self, weights: Tensor) -> None:
        spec, hidden = self.spec, self.spec.hidden_layers
        if hidden == 0:
            empty = torch.empty(self.batch, 0, self.width, self.width, device=self.device)
            self.hidden, self.hidden_bias = empty.to(self.dtype), empty[:, :, 0]
            return
        square, first = spec.hidden_dim**2, spec.slots[2 if spec.bias else 1].offset
        stride = square + (spec.hidden_dim if spec.bias else 0)
        rows = weights[:, first : first + hidden * stride].unflatten(1, (hidden, stride))
        matrices = rows[:, :, :square].unflatten(2, (spec.hidden_dim, spec.hidden_dim))
        self.hidden = self._padded(matrices, (hidden, self.width, self.width), self.dtype)
        bias = rows[:, :, square:] if spec.bias else None
        self.hidden_bias = self._padded(bias, (hidden, self.width), torch.float32)

    def spans(self, kind: str, columns: int) -> Iterator[tuple[slice, slice]]:
        """Runs of points and instances whose workspace, ``columns`` a row, is of constant size."""
        tile = self._tile("field_span")
        rows = max(1, (tile[kind] << 10) // (columns * self.dtype.itemsize))
        least = tile["least"]
        points = max(least, rows // self.batch // least * least)
        for first in range(0, self.points, points):
            block = slice(first, min(first + points, self.points))
            count = block.stop - block.start
            step = max(1, min(self.batch, rows // count, MOST_INSTANCES))
            for instance in range(0, self.batch, step):
                yield block, slice(instance, min(instance + step, self.batch))

    def empty(self, *shape: int) -> Tensor:
        """Workspace of a span."""
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def below(self, block: slice, group: slice) -> Encoded:
        """The coordinates of a span."""
        sets = group if self.coords.shape[0] > 1 else slice(None)
        return Encoded(self.coords[sets, block], self.frequency, self.axis)

    def head_of(self, group: slice, out: Tensor, slope: bool = False) -> FieldHead:
        """The last layer, into ``out`` (instances, points, out); or f_out' in place of f_out."""
        activation = self.spec.out_activation
        return FieldHead(self.head[group], self.head_bias[group], out, activation, slope)

    def evaluate(self, block: slice, group: slice, head: FieldHead) -> None:
        """A span, with nothing kept."""
        shape = head.out.shape[0], head.out.shape[1]
        if self.chained:
            self.chain(block, group, shape, head=head)
            return
        top = self.spec.hidden_layers
        work = [self.empty(*shape, self.width) for _ in range(min(2, top))]
        below: Tensor | Encoded = self.below(block, group)
        for index in range(top):
            self.layer(index, below, group, shape, work[index % 2])
            below = work[index % 2]
        self.layer(top, below, group, shape, None, head=head)

    def chain(
        self,
        block: slice,
        group: slice,
        shape: tuple[int, int],
        y: Tensor | None = None,
        slope: Tensor | None = None,
        head: FieldHead | None = None,
    ) -> None:
        """Every layer of a span in one kernel."""
        field_chain(
            self.below(block, group),
            (self.first[group], self.first_bias[group]),
            (self.hidden[group], self.hidden_bias[group]),
            shape,
            activation=self.spec.activation,
            w0=self.spec.w0,
            y=y,
            slope=slope,
            head=head,
        )

    def layer(
        self,
        index: int,
        below: Tensor | Encoded,
        group: slice,
        shape: tuple[int, int],
        y: Tensor | None,
        slope: Tensor | None = None,
        head: FieldHead | None = None,
    ) -> None:
        """Layer ``index``, counted from 0, of a span."""
        if index == 0:
            weight, bias = self.first[group], self.first_bias[group]
        else:
            weight = self.hidden[group, index - 1]
            bias = self.hidden_bias[group, index - 1]
        field_layer(
            below,
            weight,
            bias,
            shape,
            activation=self.spec.activation,
            w0=self.spec.w0,
            y=y,
            slope=slope,
            head=head,
        )


def forward(coords: Tensor, weights: Tensor, spec: FieldSpec) -> Tensor:
    """``(B, N, out)`` in the dtype of the weights; coords ``(B or 1, N, d)`` float32, weights
    ``(B, P)``. B and N are at least 1."""
    call = Call(coords, weights, spec)
    out = weights.new_empty(call.batch, call.points, spec.out_dim)
    for block, group in call.spans("forward", max(1, min(2, spec.hidden_layers)) * call.width):
        call.evaluate(block, group, call.head_of(group, out[group, block]))
    return out


def backward(
    grad: Tensor, coords: Tensor, weights: Tensor, spec: FieldSpec, needed: Collection[str]
) -> dict[str, Tensor]:
    """The gradients named in ``needed`` ("coords", "weights"), in float32 and the shape of the
    arguments of :func:`forward`; ``grad`` is that of its result."""
    from ginr_fast.ops.field_mlp.kernels_backward import Backward

    return Backward(Call(coords, weights, spec), needed).run(grad)
