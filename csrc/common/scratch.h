// Memory a thread keeps from call to call, for kernels that need some.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace ginr {

// An aligned array that only ever grows, so that repeated calls do not fault its pages in again.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* floats(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + kAlign - 1) / kAlign * kAlign;
#if defined(GINR_SANITIZE)
    const bool fits = bytes == bytes_;  // so that the sanitizer sees what is past the end
#else
    const bool fits = bytes <= bytes_;
#endif
    if (!fits) {
      std::free(data_);
      data_ = nullptr;
      bytes_ = 0;
      data_ = std::aligned_alloc(kAlign, bytes);
      if (data_ == nullptr) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<float*>(data_);
  }

 private:
  static constexpr size_t kAlign = 64;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace ginr
