#include "common/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace ginr {
namespace {

using Task = void (*)(void*, int64_t);

constexpr int kMaxThreads = 1024;

class Pool {
 public:
  // Whether the caller may use the workers; release() gives them back.
  bool acquire() { return !taken_.exchange(true, std::memory_order_acquire); }
  void release() { taken_.store(false, std::memory_order_release); }

  void run(int64_t tasks, int threads, Task task, void* context) {
    // Threads that cannot be had (a limit of the system) only make the call slower.
    try {
      while (static_cast<int>(workers_.size()) < threads - 1) {
        workers_.emplace_back([this, index = static_cast<int>(workers_.size())] { work(index); });
      }
    } catch (const std::system_error&) {
    }
    const int helpers = std::min<int>(threads - 1, static_cast<int>(workers_.size()));
    task_ = task;
    context_ = context;
    tasks_ = tasks;
    error_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_ = helpers;
      open_ = true;
      ++generation_;
    }
    wake_.notify_all();
    drain();
    // Every task is taken now. Only workers that joined are waited for: on a busy machine one that
    // has not woken yet may take milliseconds to.
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = false;
    done_.wait(lock, [this] { return running_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void drain() {
    try {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) {
        task_(context_, i);
      }
    } catch (...) {
      next_.store(tasks_, std::memory_order_relaxed);
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void work(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (!open_ || index >= helpers_) continue;
      ++running_;
      lock.unlock();
      drain();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::atomic<bool> taken_{false};
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  uint64_t generation_ = 0;  // of the job, counted from 1
  bool open_ = false;        // whether the job still takes helpers
  int helpers_ = 0;          // at most how many
  int running_ = 0;          // how many joined and have not finished
  std::atomic<int64_t> next_{0};
  int64_t tasks_ = 0;
  Task task_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
};

// Never destroyed: workers wait on it until the process ends. In a forked child the workers of the
// parent do not exist and its locks may be held for ever, so the child drops the pool.
std::atomic<Pool*> g_pool{nullptr};

Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
  (void)registered;
  Pool* current = g_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (g_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

void parallel_for(int64_t tasks, int threads, Task task, void* context) {
  threads = static_cast<int>(std::min<int64_t>({threads, tasks, kMaxThreads}));
  Pool* workers = threads > 1 ? &pool() : nullptr;
  if (workers == nullptr || !workers->acquire()) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  struct Release {
    Pool* pool;
    ~Release() { pool->release(); }
  } release{workers};
  workers->run(tasks, threads, task, context);
}

}  // namespace ginr
