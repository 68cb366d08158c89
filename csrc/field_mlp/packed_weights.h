// The weights of a batch of fields as the vector path in use takes them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "field_mlp/job.h"

namespace ginr {
namespace field_mlp {
namespace cpu {

// Some instances of a batch, one after the other.
struct Instances {
  int64_t first, count;
};

// Their weights; what is packed stays valid until the calling thread packs others.
class PackedWeights {
 public:
  // rows (batch, P). Packs what the path in use wants packed, if `samples` an instance are enough
  // to pay for it; `transposed`: for a backward too.
  PackedWeights(const Field& field, const float* rows, const Instances& some, int64_t samples,
                bool transposed, int threads);

  FieldWeights of(int64_t instance) const {
    return {rows_ + instance * parameters_,
            split_ == nullptr ? nullptr : split_ + (instance - first_) * split_size_};
  }

 private:
  const float* rows_;
  int64_t first_, parameters_, split_size_;
  const uint16_t* split_;
};

// How many instances of a batch are packed together: 64 MB of weights, or an instance a thread.
int64_t packed_together(const Field& field, int64_t batch, int64_t samples, int threads);

// Calls body(instances, their weights) until the batch is done, for at most `most` at a time.
template <class Body>
void over_weights(const Field& field, const float* rows, int64_t batch, int64_t samples,
                  bool transposed, int threads, int64_t most, const Body& body) {
  const int64_t together = std::min(most, packed_together(field, batch, samples, threads));
  for (int64_t first = 0; first < batch; first += together) {
    const Instances some{first, std::min(together, batch - first)};
    body(some, PackedWeights(field, rows, some, samples, transposed, threads));
  }
}

}  // namespace cpu
}  // namespace field_mlp
}  // namespace ginr
