// Threads that work on one image together, and meet after every step.
#pragma once

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

// A barrier at which threads spin, because steps take microseconds, but not for long, because
// another program may have the processor.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}

  void wait() {
    if (size_ == 1) return;
    const int turn = turn_.load();
    if (arrived_.fetch_add(1) == size_ - 1) {
      arrived_.store(0);
      turn_.store(turn + 1);
      return;
    }
    for (int spins = 0; turn_.load() == turn; spins++)
      if (spins > 1000) std::this_thread::yield();
  }

 private:
  const int size_;
  std::atomic<int> arrived_{0}, turn_{0};
};

// work(rank) for every rank below ``size``, each in a thread; the last one in the caller's. False,
// with no work done, where the system gives no more threads.
template <class Work>
bool in_threads(int size, const Work& work) {
  enum { WAIT, GO, GIVE_UP };
  std::atomic<int> gate{WAIT};
  const auto start = [&](int rank) {
    while (gate.load() == WAIT) std::this_thread::yield();
    if (gate.load() == GO) work(rank);
  };
  std::vector<std::thread> threads;
  threads.reserve(size_t(size));
  try {
    for (int rank = 0; rank < size - 1; rank++) threads.emplace_back(start, rank);
    gate.store(GO);
    work(size - 1);
  } catch (const std::system_error&) {
    gate.store(GIVE_UP);
  }
  for (auto& each : threads) each.join();
  return gate.load() == GO;
}
