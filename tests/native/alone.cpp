// Runs a program from a file, without Python: under a sanitizer, or an emulator of another processor.
//
//   alone PROGRAM INSTRUCTIONS THREADS RESULTS
//
// tests/native/alone.py writes the file. Each of its arrays gets memory of its own.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../native/program.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#endif

extern "C" int reste_run(const Program*, const char*, int, const Images*);

static FILE* file;

static int64_t number() {
  int64_t value;
  if (std::fread(&value, sizeof value, 1, file) != 1) std::abort();
  return value;
}

static void* array() {
  const size_t size = size_t(number());
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, size) || std::fread(memory, 1, size, file) != size) std::abort();
  return memory;
}

// In the file a pointer is the number of an array, counted from 1.
template <class T>
static void point(T& pointer, const std::vector<void*>& arrays) {
  const size_t which = reinterpret_cast<size_t>(pointer);
  pointer = which ? static_cast<T>(arrays[which - 1]) : nullptr;
}

int main(int, char** arguments) {
  file = std::fopen(arguments[1], "rb");
  std::vector<void*> arrays(static_cast<size_t>(number()));
  for (auto& each : arrays) each = array();
  auto* program = static_cast<Program*>(array());
  auto* steps = static_cast<Step*>(array());
  program->steps = steps;
  point(program->differences, arrays);
  for (int i = 0; i < program->count; i++) {
    point(steps[i].weights, arrays), point(steps[i].offsets, arrays), point(steps[i].base, arrays);
    point(steps[i].edges, arrays), point(steps[i].mean, arrays), point(steps[i].slope, arrays);
    point(steps[i].bias, arrays), point(steps[i].start, arrays), point(steps[i].leak, arrays);
    point(steps[i].shift, arrays), point(steps[i].threshold, arrays);
  }
  auto* images = static_cast<Images*>(array());
  images->pixels = static_cast<float*>(array());
  const size_t arena = size_t(number());
  std::vector<int64_t> gaps(static_cast<size_t>(number()));
  for (auto& gap : gaps) gap = number();
  std::vector<int64_t> zeros(size_t(2) * static_cast<size_t>(number()));
  for (auto& zero : zeros) zero = number();
  const int threads = std::atoi(arguments[3]);
  std::vector<uint8_t*> arenas;
  for (int i = 0; i < threads; i++) {
    arenas.push_back(static_cast<uint8_t*>(std::aligned_alloc(64, arena)));
    std::memset(arenas.back(), 0x80, arena);
    for (size_t z = 0; z < zeros.size(); z += 2)
      std::memset(arenas.back() + zeros[z], 0, size_t(zeros[z + 1]));
    for (const int64_t gap : gaps) ASAN_POISON_MEMORY_REGION(arenas.back() + gap, 64);
  }
  images->arenas = arenas.data();
  const size_t length = size_t(images->count * program->out_length);
  std::vector<float> results(length);
  images->results = results.data();
  const int failure = reste_run(program, arguments[2], threads, images);
  FILE* out = std::fopen(arguments[4], "wb");
  std::fwrite(results.data(), sizeof(float), length, out);
  return std::fclose(out) ? 9 : failure;
}
