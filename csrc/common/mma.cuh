// Matrix products on tensor cores, one warp at a time.
//
// A fragment is a 16 x 16 operand spread over a warp. With g = lane / 4 and t = lane % 4, a lane
// holds eight elements in this order, the one in which mma.m16n8 leaves two neighbouring n8 tiles
// of accumulators:
//
//   0, 1: (g, 2t), (g, 2t + 1)          2, 3: (g + 8, 2t), (g + 8, 2t + 1)
//   4, 5: (g, 8 + 2t), (g, 9 + 2t)      6, 7: (g + 8, 8 + 2t), (g + 8, 9 + 2t)
//
// So the accumulators of one layer are the operand of the next without leaving their lane. The
// other operand lies in shared memory as packets, 16 bytes for each lane, in the order in which it
// is read.
#pragma once

#include "common/device.cuh"

namespace ginr {
namespace device {

GINR_DEVICE uint32_t pack_half(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

GINR_DEVICE uint32_t pack_bfloat16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// c += a b, a (16, 16) row-major, b (16, 8) column-major, float32 accumulators.
GINR_DEVICE void mma_half(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef GINR_CUDA_EMULATION
  emulation::mma_16(c, a, b0, b1, [](uint16_t bits) { return __half2float(__half{bits}); });
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

GINR_DEVICE void mma_bfloat16(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef GINR_CUDA_EMULATION
  emulation::mma_16(c, a, b0, b1,
                    [](uint16_t bits) { return __bfloat162float(__nv_bfloat16{bits}); });
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// The same for (16, 8) by (8, 8) of tf32: floats of which the leading 11 bits count.
GINR_DEVICE void mma_tf32(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef GINR_CUDA_EMULATION
  emulation::mma_tf32(c, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// The types below are how a product represents its operands. In each:
//
//   kWide               a fragment takes eight registers rather than four
//   kThin               a warp takes 16 samples, whatever the width
//   kPackets            packets for 16 depths and 16 columns
//   from(c), to(f, c)   a fragment from and to float32
//   multiply(c, a, b)   c (16, 16) += a (16, 16) b; b: this lane's first packet, packets 32 apart
//   packet(q, at)       packet q of this lane from elements at(depth, column)
//   put, get            a fragment in memory, for a lane's own use
//   stage, staged_a, staged_b
//                       a fragment in shared memory, [column][kWords words for 16 rows], and from
//                       there the operands of (its transpose) x (another): the sum over rows
//   staged(word, half)  the number in a word of row g (half 0) or g + 8 (half 1)
//   sum                 of the numbers in a staged packet

// 16-bit operands. `Back`, what gradients are represented by, is bfloat16 for its range.
template <bool Brain>
struct Operand16 {
  using Back = Operand16<true>;
  static constexpr bool kWide = false, kThin = false;
  static constexpr int kPackets = 1;
  static constexpr int kWords = 8;
  static constexpr int kPolynomials = 1;  // sines of eight by polynomial; see sine.cuh
  struct Fragment {
    uint32_t w[4];
  };

  static GINR_DEVICE uint32_t pack(float low, float high) {
    return Brain ? pack_bfloat16(low, high) : pack_half(low, high);
  }
  static GINR_DEVICE Fragment from(const float (&c)[8]) {
    return {{pack(c[0], c[1]), pack(c[2], c[3]), pack(c[4], c[5]), pack(c[6], c[7])}};
  }
  static GINR_DEVICE void to(const Fragment& f, float (&c)[8]) {
    static_assert(Brain, "read back as bfloat16 only");
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      c[2 * i] = __uint_as_float(f.w[i] << 16);
      c[2 * i + 1] = __uint_as_float(f.w[i] & 0xffff0000u);
    }
  }
  static GINR_DEVICE void multiply(float (&c)[8], const Fragment& a, const uint4 (&b)[1]) {
    if (Brain) {
      mma_bfloat16(c, a.w, b[0].x, b[0].y);
      mma_bfloat16(c + 4, a.w, b[0].z, b[0].w);
    } else {
      mma_half(c, a.w, b[0].x, b[0].y);
      mma_half(c + 4, a.w, b[0].z, b[0].w);
    }
  }
  template <class At>
  static GINR_DEVICE uint4 packet(int, const At& at) {
    const int k = fragment_column(), n = fragment_row();
    return {pack(at(k, n), at(k + 1, n)), pack(at(k + 8, n), at(k + 9, n)),
            pack(at(k, n + 8), at(k + 1, n + 8)), pack(at(k + 8, n + 8), at(k + 9, n + 8))};
  }
  static GINR_DEVICE void put(const Fragment& f, uint4* at) {
    *at = {f.w[0], f.w[1], f.w[2], f.w[3]};
  }
  static GINR_DEVICE Fragment get(const uint4* at) {
    const uint4 p = *at;
    return {{p.x, p.y, p.z, p.w}};
  }
  // A word holds rows g and g + 8 of a column: which rows are neighbours does not matter to a sum
  // over them as long as both operands agree.
  static GINR_DEVICE void stage(const Fragment& f, uint32_t* at, int stride) {
    uint32_t* to = at + fragment_column() * stride + fragment_row();
    to[0] = __byte_perm(f.w[0], f.w[1], 0x5410);
    to[stride] = __byte_perm(f.w[0], f.w[1], 0x7632);
    to[8 * stride] = __byte_perm(f.w[2], f.w[3], 0x5410);
    to[9 * stride] = __byte_perm(f.w[2], f.w[3], 0x7632);
  }
  static GINR_DEVICE Fragment staged_a(const uint32_t* at, int stride) {
    const uint32_t* p = at + fragment_row() * stride + fragment_column() / 2;
    return {{p[0], p[8 * stride], p[4], p[8 * stride + 4]}};
  }
  static GINR_DEVICE void staged_b(const uint32_t* at, int stride, uint4 (&b)[1]) {
    const uint32_t* p = at + fragment_row() * stride + fragment_column() / 2;
    b[0] = {p[0], p[4], p[8 * stride], p[8 * stride + 4]};
  }
  static GINR_DEVICE float staged(uint32_t word, int half) {
    return __uint_as_float(half == 0 ? word << 16 : word & 0xffff0000u);
  }
  static GINR_DEVICE float sum(uint4 p) {
    const Fragment f{{p.x, p.y, p.z, p.w}};
    float c[8];
    to(f, c);
    return ((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7]));
  }
};

// float32 operands as sums of two tf32 numbers, and three of the four products: a relative error of
// about 2^-20 a product, over the whole range of float.
struct Operand32 {
  using Back = Operand32;
  static constexpr bool kWide = true, kThin = false;
  static constexpr int kPackets = 2;
  static constexpr int kWords = 16;
  static constexpr int kPolynomials = 8;
  struct Fragment {
    float v[8];
  };

  // Anew for every product: kept from one to the next, the parts of a layer's operands would fill
  // more registers than there are.
  static GINR_DEVICE uint32_t leading(float x) {
    uint32_t bits = __float_as_uint(x);
#ifndef GINR_CUDA_EMULATION
    asm volatile("and.b32 %0, %0, 0xffffe000;" : "+r"(bits));
#else
    bits &= 0xffffe000u;
#endif
    return bits;
  }
  static GINR_DEVICE uint32_t rest(float x, uint32_t leading) {
    return __float_as_uint(x - __uint_as_float(leading));
  }
  static GINR_DEVICE Fragment from(const float (&c)[8]) {
    return {{c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]}};
  }
  static GINR_DEVICE void to(const Fragment& f, float (&c)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = f.v[i];
  }
  // The instruction wants depths t and t + 4 in a lane that has 2t and 2t + 1; packets number them
  // accordingly.
  static GINR_DEVICE void multiply(float (&c)[8], const Fragment& a, const uint4 (&b)[2]) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float* v = a.v + 4 * q;
      const uint32_t high[4] = {leading(v[0]), leading(v[2]), leading(v[1]), leading(v[3])};
      const uint32_t low[4] = {rest(v[0], high[0]), rest(v[2], high[1]), rest(v[1], high[2]),
                               rest(v[3], high[3])};
      const uint32_t w[4] = {b[q].x, b[q].y, b[q].z, b[q].w};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float x = __uint_as_float(w[2 * n]), y = __uint_as_float(w[2 * n + 1]);
        const uint32_t x_high = leading(x), y_high = leading(y);
        mma_tf32(c + 4 * n, low, x_high, y_high);
        mma_tf32(c + 4 * n, high, rest(x, x_high), rest(y, y_high));
        mma_tf32(c + 4 * n, high, x_high, y_high);
      }
    }
  }
  template <class At>
  static GINR_DEVICE uint4 packet(int q, const At& at) {
    const int k = 8 * q + fragment_column(), n = fragment_row();
    return {__float_as_uint(at(k, n)), __float_as_uint(at(k + 1, n)), __float_as_uint(at(k, n + 8)),
            __float_as_uint(at(k + 1, n + 8))};
  }
  static GINR_DEVICE void put(const Fragment& f, uint4* at) {
    at[0] = {__float_as_uint(f.v[0]), __float_as_uint(f.v[1]), __float_as_uint(f.v[2]),
             __float_as_uint(f.v[3])};
    at[kWarp] = {__float_as_uint(f.v[4]), __float_as_uint(f.v[5]), __float_as_uint(f.v[6]),
                 __float_as_uint(f.v[7])};
  }
  static GINR_DEVICE Fragment get(const uint4* at) {
    const uint4 p = at[0], q = at[kWarp];
    return {{__uint_as_float(p.x), __uint_as_float(p.y), __uint_as_float(p.z),
             __uint_as_float(p.w), __uint_as_float(q.x), __uint_as_float(q.y),
             __uint_as_float(q.z), __uint_as_float(q.w)}};
  }
  static GINR_DEVICE void stage(const Fragment& f, uint32_t* at, int stride) {
    uint32_t* to = at + fragment_column() * stride + fragment_row();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      to[((i & 1) + (i & 4) * 2) * stride + (i & 2) * 4] = __float_as_uint(f.v[i]);
    }
  }
  static GINR_DEVICE Fragment staged_a(const uint32_t* at, int stride) {
    const uint32_t* p = at + fragment_row() * stride + fragment_column() / 2;
    Fragment f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      f.v[i] = __uint_as_float(p[(i & 2) * 4 * stride + (i & 4) * 2 + (i & 1) * 4]);
    }
    return f;
  }
  static GINR_DEVICE void staged_b(const uint32_t* at, int stride, uint4 (&b)[2]) {
    const uint32_t* p = at + fragment_row() * stride + fragment_column() / 2;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      b[q] = {p[8 * q], p[8 * q + 4], p[8 * stride + 8 * q], p[8 * stride + 8 * q + 4]};
    }
  }
  static GINR_DEVICE float staged(uint32_t word, int) { return __uint_as_float(word); }
  static GINR_DEVICE float sum(uint4 p) {
    return (__uint_as_float(p.x) + __uint_as_float(p.y)) +
           (__uint_as_float(p.z) + __uint_as_float(p.w));
  }
};

// The same operands in kernels that have registers for half as many samples.
template <class Op>
struct Thin : Op {
  using Back = Thin<typename Op::Back>;
  static constexpr bool kThin = true;
};
template <>
struct Thin<Operand32> : Operand32 {
  using Back = Thin<Operand32>;
  static constexpr bool kThin = true;
};
template <>
struct Thin<Operand16<true>> : Operand16<true> {
  using Back = Thin<Operand16<true>>;
  static constexpr bool kThin = true;
};

template <class Op>
GINR_DEVICE void load_packets(const uint4* from, uint4 (&b)[Op::kPackets]) {
#pragma unroll
  for (int q = 0; q < Op::kPackets; ++q) b[q] = from[q * kWarp];
}

}  // namespace device
}  // namespace ginr
