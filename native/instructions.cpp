// The instruction sets of which this library was built.
#include "tasks.h"

#if defined(__x86_64__)
extern const Kernels amx_kernels, avx512_kernels, avx2_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_kernels;
#endif
extern const Kernels portable_kernels;

const Kernels* const* all_kernels(int* count) {
  static const Kernels* const all[] = {
#if defined(__x86_64__)
      &amx_kernels, &avx512_kernels, &avx2_kernels,
#elif defined(__aarch64__)
      &neon_kernels,
#endif
      &portable_kernels};
  *count = int(sizeof all / sizeof *all);
  return all;
}
