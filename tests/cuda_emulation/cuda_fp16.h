#pragma once

#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

// Finite values only.
inline float __half2float(__half x) {
  const int exponent = (x.bits >> 10) & 31;
  const int mantissa = (x.bits & 1023) + (exponent > 0 ? 1024 : 0);
  const float value = std::ldexp(static_cast<float>(mantissa), (exponent > 0 ? exponent : 1) - 25);
  return (x.bits & 0x8000) != 0 ? -value : value;
}

inline __half __float2half_rn(float x) {
  const float size = std::fabs(x);
  const int exponent = size > std::ldexp(1.0f, -14) ? std::ilogb(size) : -14;
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  const int bits = ((exponent + 14) << 10) + mantissa;
  return {static_cast<uint16_t>(bits | (std::signbit(x) ? 0x8000 : 0))};
}
