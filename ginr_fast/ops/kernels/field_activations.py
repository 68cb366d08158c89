"""Activations of fields on chip, their derivatives, and Fourier features in radians.

The phase of a sine is formed in float32 and brought to [-pi/2, pi/2] with pi in three parts, the
first two short enough that their multiples are exact; two minimax polynomials follow. Absolute
error below 3e-7 for phases to 5e4; up to 1.3e7 below what the phase's own rounding costs; beyond,
a float32 phase says nothing and 0 comes out (NaN where it is not finite).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ginr_fast.ops.kernels.fourier import sin_cos_half_turns
from ginr_fast.ops.kernels.layer_kernels import relu


@triton.jit
def _reduced(x):
    """r in [-pi/2, pi/2] with x = r + k pi, and the parity of k as a sign bit."""
    shifted = x * 0.31830988618379067 + 12582912.0  # 1.5 * 2**23: adding it rounds to an integer
    k = shifted - 12582912.0
    r = x - k * 3.140625
    r = r - k * 9.67502593994140625e-4
    r = r - k * 1.509957990978376432e-7
    r = tl.where(tl.abs(x) <= 1.3e7, r, 0.0 * x)
    return r, shifted.to(tl.int32, bitcast=True) << 31


@triton.jit
def _signed(value, sign):
    return (value.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def _sine_polynomial(r, square):
    p = square * 2.600024345156271e-06 - 0.00019806601630989462
    p = p * square + 0.008333017118275166
    p = p * square - 0.16666656732559204
    return (p * square) * r + r


@triton.jit
def _cosine_polynomial(square):
    p = square * -2.6193549729214283e-07 + 2.4769291485426947e-05
    p = p * square - 0.0013888569083064795
    p = p * square + 0.041666656732559204
    p = p * square - 0.5
    return p * square + 1.0


@triton.jit
def sine(x):
    r, sign = _reduced(x)
    return _signed(_sine_polynomial(r, r * r), sign)


@triton.jit
def cosine(x):
    r, sign = _reduced(x)
    return _signed(_cosine_polynomial(r * r), sign)


@triton.jit
def activate(z, w0, ACTIVATION: tl.constexpr):
    """f(z) for f = "relu", "sine" (sin(w0 z)) or "none"."""
    if ACTIVATION == "relu":
        z = relu(z)
    if ACTIVATION == "sine":
        z = sine(w0 * z)
    return z


@triton.jit
def derivative(z, w0, ACTIVATION: tl.constexpr):
    """f'(z)."""
    if ACTIVATION == "relu":
        found = tl.where(z > 0, 1.0, 0.0)
    elif ACTIVATION == "sine":
        found = w0 * cosine(w0 * z)
    else:
        found = tl.full(z.shape, 1.0, tl.float32)
    return found


@triton.jit
def through(t, saved, ACTIVATION: tl.constexpr):
    """t f' from what the forward saved: f(z) of a ReLU, f'(z) of a sine."""
    if ACTIVATION == "relu":
        t = tl.where(saved <= 0, 0.0, t)
    if ACTIVATION == "sine":
        t = t * saved.to(tl.float32)
    return t


@triton.jit
def fourier_features(
    coords_ptr,
    frequency_ptr,
    axis_ptr,
    rows,
    in_rows,
    phases,
    COORDS: tl.constexpr,
    PHASES: tl.constexpr,
    CORRECT: tl.constexpr,
):
    """cos and sin of a tile of phases, with what takes them further: axis and frequency.

    ``frequency_ptr`` is (2, PHASES): frequencies in half turns, and with CORRECT what rounding
    them to float32 lost, which a high frequency would feel.
    """
    frequency = tl.load(frequency_ptr + phases)
    axis = tl.load(axis_ptr + phases)
    coordinate = tl.load(
        coords_ptr + rows[:, None] * COORDS + axis[None, :], mask=in_rows[:, None], other=0.0
    )
    c, s = sin_cos_half_turns(frequency[None, :], coordinate)
    if CORRECT:
        lost = tl.load(frequency_ptr + PHASES + phases)[None, :] * coordinate * 3.1415926536
        c, s = c - lost * s, s + lost * c
    return c, s, axis, frequency
