// Checks of csrc/common/parallel.h that no kernel can stand for; prints what failed.
#include "common/parallel.h"

#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (!holds) {
    std::printf("failed: %s\n", what);
    ++failures;
  }
}

std::string message_of(int threads) {
  try {
    ginr::parallel_for(1000, threads, [](int64_t i) {
      if (i == 17) throw std::runtime_error("task 17");
    });
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool each_once(int64_t tasks, int threads) {
  std::vector<std::atomic<int>> calls(static_cast<size_t>(tasks));
  ginr::parallel_for(tasks, threads, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
  for (const std::atomic<int>& count : calls) {
    if (count != 1) return false;
  }
  return true;
}

}  // namespace

int main() {
  for (int threads : {1, 2, 7}) {
    for (int64_t tasks : {0, 1, 2, 5, 1000}) expect(each_once(tasks, threads), "every task once");
    expect(message_of(threads) == "task 17", "an exception reaches the caller");
    expect(each_once(100, threads), "the pool works after an exception");
  }

  std::atomic<int> inner{0};
  ginr::parallel_for(8, 4, [&](int64_t) {
    ginr::parallel_for(8, 4, [&](int64_t) { ++inner; });
  });
  expect(inner == 64, "a task may itself call parallel_for");

  std::atomic<bool> good{true};
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        if (!each_once(20, 3)) good = false;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  expect(good, "several threads may call at once");
  return failures;
}
