// The two types in which maps lie in memory; all arithmetic is in float.
#pragma once

#include "elementary.h"

struct Bfloat16 {
  uint16_t bits;
};

inline float load(const float* at) { return *at; }
inline float load(const Bfloat16* at) { return elementary::float_of(int32_t(uint32_t(at->bits) << 16)); }

inline void store(float* at, float x) { *at = x; }
inline void store(Bfloat16* at, float x) {  // to the nearest, of two equally near the even one
  const uint32_t bits = uint32_t(elementary::bits_of(x));
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  at->bits = uint16_t(x == x ? rounded : 0x7fc0);
}

// What ``store`` leaves of x.
inline float as_stored(const float*, float x) { return x; }
inline float as_stored(const Bfloat16*, float x) {
  Bfloat16 stored;
  store(&stored, x);
  return load(&stored);
}

inline float sign(float x) { return x >= 0 ? 1.0f : x < 0 ? -1.0f : x; }
