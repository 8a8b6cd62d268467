// x86 with AVX-512 F and BW.
#include "avx512.h"

#include "kernels.h"

KERNELS(avx512, Avx512, has_avx512, nullptr)
