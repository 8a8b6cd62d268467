// The functions that native/library.py calls.
#include <atomic>
#include <cmath>
#include <cstring>

#include "steps.h"
#include "team.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

// The last value of an image, or NaN where one of its pixels is not finite: signs would hide that.
void hand_out(const Program& program, const uint8_t* arena, bool is_finite, float* to) {
  const float* from = reinterpret_cast<const float*>(arena + program.output);
  for (int channel = 0; channel < program.out_channels; channel++)
    for (int row = 0; row < program.out_height; row++)
      for (int column = 0; column < program.out_width; column++) {
        const int64_t at = channel * program.output_plane + row * program.out_pitch + column;
        *to++ = is_finite ? from[at] : NAN;
      }
}

// Threads in teams: a thread for each image where there are enough, else all of them for one.
class Run {
 public:
  Run(const Program& program, const Kernels& kernels, const Images& images, int threads)
      : program_(program), kernels_(kernels), images_(images),
        size_(images.count < threads ? threads : 1), teams_(threads / size_), barrier_(size_) {}

  void work(int thread) {
    for (int64_t i = thread / size_; i < images_.count; i += teams_)
      run(i, images_.arenas[thread / size_], thread % size_);
  }

 private:
  void run(int64_t number, uint8_t* arena, int rank) {
    const float* image = images_.pixels + number * images_.strides[0];
    const Place place{arena, image, images_.strides, program_.differences, kernels_, rank, size_};
    bool is_finite = true;
    for (int i = 0; i < program_.count; i += 1 + program_.steps[i].joined) {
      is_finite &= run_step(program_.steps[i], place);
      if (!is_finite) bad_.store(number);
      barrier_.wait();
    }
    if (size_ > 1) is_finite = bad_.load() != number;
    if (rank == 0)
      hand_out(program_, arena, is_finite, images_.results + number * program_.out_length);
    barrier_.wait();
  }

  const Program& program_;
  const Kernels& kernels_;
  const Images& images_;
  const int size_, teams_;
  Barrier barrier_;
  std::atomic<int64_t> bad_{-1};  // the last image with a bad pixel, where a team works on it
};

const Kernels* kernels_of(const char* name) {
  int count;
  const Kernels* const* all = all_kernels(&count);
  for (int i = 0; i < count; i++)
    if (!std::strcmp(all[i]->name, name) && all[i]->is_supported()) return all[i];
  return nullptr;
}

}  // namespace

// The name of the wanted one of the instruction sets that this processor has, from the fastest on.
EXPORTED const char* reste_instructions(int wanted) {
  int count;
  const Kernels* const* all = all_kernels(&count);
  for (int i = 0; i < count; i++)
    if (all[i]->is_supported() && wanted-- == 0) return all[i]->name;
  return nullptr;
}

// The bytes of a step, by which the caller's idea of it is checked.
EXPORTED int reste_step_size() { return int(sizeof(Step)); }

// 0, or 1 where there is no such instruction set, or 2 where the system gives no more threads.
EXPORTED int reste_run(const Program* program, const char* instructions, int threads,
                       const Images* images) {
  const Kernels* kernels = kernels_of(instructions);
  if (!kernels) return 1;
  Run run(*program, *kernels, *images, threads);
  return in_threads(threads, [&run](int thread) { run.work(thread); }) ? 0 : 2;
}
