// Addresses as the bindings get them from Python: integers.
#pragma once

#include <cstdint>
#include <vector>

namespace ginr {

using Addresses = std::vector<uintptr_t>;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> pointers(const Addresses& addresses) {
  std::vector<T*> result;
  result.reserve(addresses.size());
  for (uintptr_t address : addresses) result.push_back(pointer<T>(address));
  return result;
}

}  // namespace ginr
