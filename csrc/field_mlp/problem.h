// A field as the bindings make it: its description and its frequencies.
#pragma once

#include <vector>

#include "common/field_layout.h"
#include "field_mlp/job.h"

namespace ginr {
namespace field_mlp {

struct Problem {
  Field field;
  std::vector<float> high, low;  // angular frequencies as sums of two floats

  Frequencies frequencies() const { return {high.data(), low.data()}; }
};

}  // namespace field_mlp
}  // namespace ginr
