// A small pool of persistent worker threads.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ginr {

// Calls task(context, i) once for every i in [0, tasks), on the calling thread and on at most
// `threads - 1` workers; returns when all calls have returned. Tasks are handed out one by one.
//
// - The first exception a task throws is rethrown here; tasks not yet started are then skipped.
// - One caller uses the workers at a time. A call that finds them taken (from another thread, or
//   from within a task) runs all its tasks itself, so it can neither wait in line nor deadlock.
// - After fork() the child starts its own workers on its first call.
void parallel_for(int64_t tasks, int threads, void (*task)(void* context, int64_t index),
                  void* context);

// The same for a callable: body(index).
template <class Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_for(
      tasks, threads,
      [](void* context, int64_t index) { (*static_cast<Plain*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace ginr
