// Fields of bfloat16 weights with the processor's bfloat16 dot products (AVX512_BF16).
//
// As block.h, but two features at a time: an array of activations is [feature / 2][kSamples] pairs,
// and a weight row is read as pairs as it lies in memory. Sums and activations are float32; what
// goes from layer to layer is rounded to bfloat16. Serves encoded fields of even width.
#include "field_mlp/block.h"
#include "field_mlp/job.h"

namespace ginr {
namespace GINR_SIMD {
namespace {

constexpr int kVecs = 4;  // kSamples / 16

inline uint32_t rounded(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  if (x != x) return 0x7fc0u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// Two rows of float32 as one row of pairs.
inline __m512i paired(Floats low, Floats high) {
  const __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low.v));
  const __m512i b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high.v));
  return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

template <int Rows, class End>
inline void tile(const uint16_t* weight, const uint16_t* bias, int64_t columns, const uint32_t* in,
                 int64_t r0, const End& end) {
  __m512 sum[Rows][kVecs];
  GINR_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const __m512 start = _mm512_set1_ps(bias == nullptr ? 0.0f : widened(bias[r0 + r]));
    GINR_UNROLL
    for (int v = 0; v < kVecs; ++v) sum[r][v] = start;
  }
  const uint16_t* row = weight + r0 * columns;
  for (int64_t k = 0; k < columns / 2; ++k) {
    __m512i operand[kVecs];
    GINR_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      operand[v] = _mm512_loadu_si512(in + k * kSamples + v * 16);
      __asm__("" : "+v"(operand[v]));
    }
    GINR_UNROLL
    for (int r = 0; r < Rows; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, row + r * columns + 2 * k, sizeof(pair));
      const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
      GINR_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], factor, (__m512bh)operand[v]);
      }
    }
  }
  GINR_UNROLL
  for (int r = 0; r < Rows; r += (Rows > 1 ? 2 : 1)) {
    GINR_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      end(r0 + r, v * 16, Floats{sum[r][v]}, Floats{sum[Rows > 1 ? r + 1 : r][v]});
    }
  }
}

// end(r, c, row r, row r + 1): pairs of rows, and of an odd last row twice the same.
template <class End>
inline void product16(const uint16_t* weight, const uint16_t* bias, int64_t rows, int64_t columns,
                      const uint32_t* in, const End& end) {
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6) tile<6>(weight, bias, columns, in, r, end);
  for (; r + 2 <= rows; r += 2) tile<2>(weight, bias, columns, in, r, end);
  if (r < rows) tile<1>(weight, bias, columns, in, r, end);
}

inline Floats activated(Activation f, float w0, Floats x) {
  if (f == Activation::relu) return Floats::max(all(0.0f), x);
  if (f == Activation::sine) return sine(x * all(w0));
  return x;
}

}  // namespace

void field_forward_bf16(const FieldTask& task, const uint16_t* weights) {
  const Field& field = task.field;
  float* coords = task.scratch;
  float* out = coords + field.coord_dim * kSamples;
  float* features = out + field.out_dim * kSamples;
  uint32_t* here = reinterpret_cast<uint32_t*>(features + field.input_dim() * kSamples);
  uint32_t* there = here + widest_of(field) / 2 * kSamples + kSamples;
  const int64_t last = field.layers() - 1;
  for (int64_t first = 0; first < task.count; first += kSamples) {
    const int64_t count = task.count - first < kSamples ? task.count - first : kSamples;
    gather(task.coords + first * field.coord_dim, field.coord_dim, count, coords);
    encode(field, task.frequencies, coords, features);
    for (int64_t k = 0; k < field.input_dim() / 2; ++k) {
      const float* low = features + 2 * k * kSamples;
      for (int64_t c = 0; c < kSamples; c += 16) {
        _mm512_storeu_si512(here + k * kSamples + c, paired(Floats::load(low + c),
                                                            Floats::load(low + kSamples + c)));
      }
    }
    for (int64_t l = 0; l <= last; ++l) {
      const uint16_t* weight = weights + field.weight(l);
      const uint16_t* bias = field.bias ? weights + field.bias_at(l) : nullptr;
      const Activation f = field.activation_after(l);
      const float w0 = field.w0;
      if (l == last) {
        product16(weight, bias, field.out_dim, field.columns(l), here,
                  [=](int64_t r, int64_t c, Floats low, Floats high) {
                    activated(f, w0, low).store(out + r * kSamples + c);
                    if (r + 1 < field.out_dim) {
                      activated(f, w0, high).store(out + (r + 1) * kSamples + c);
                    }
                  });
        break;
      }
      uint32_t* to = there;
      product16(weight, bias, field.width, field.columns(l), here,
                [=](int64_t r, int64_t c, Floats low, Floats high) {
                  _mm512_storeu_si512(to + r / 2 * kSamples + c,
                                      paired(activated(f, w0, low), activated(f, w0, high)));
                });
      there = here;
      here = to;
    }
    for (int64_t s = 0; s < count; ++s) {
      uint16_t* row = reinterpret_cast<uint16_t*>(task.out) + (first + s) * field.out_dim;
      for (int64_t i = 0; i < field.out_dim; ++i) {
        row[i] = static_cast<uint16_t>(rounded(out[i * kSamples + s]));
      }
    }
  }
}

}  // namespace GINR_SIMD
}  // namespace ginr
