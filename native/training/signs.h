// What the files about convolutions of +-1 share: their shape, and the bits that such values are kept
// as. A 1 is a +1, and of a pixel or a weight 8 channels are a byte.
#pragma once

#include <vector>

#include "values.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

constexpr int TAPS = 9;

struct Convolution {
  int64_t images;
  int height, width, channels, outputs, stride;

  int bytes() const { return channels / 8; }
  int words() const { return (TAPS * bytes() + 7) / 8; }
  int out_height() const { return (height - 1) / stride + 1; }
  int out_width() const { return (width - 1) / stride + 1; }
};

// Zeros that begin with a line of the cache.
template <class T>
class Buffer {
  struct alignas(64) Line {
    T values[64 / sizeof(T)] = {};
  };
  std::vector<Line> lines;

 public:
  explicit Buffer(size_t count = 0) : lines((count * sizeof(T) + 63) / 64) {}
  T* data() { return lines.empty() ? nullptr : lines.data()->values; }
  const T* data() const { return lines.empty() ? nullptr : lines.data()->values; }
};

// Eight values as the bits of a byte; ``others`` becomes other than 0 if one is neither +1 nor -1.
inline unsigned byte_of(const float* x, int32_t& others) {
#ifdef __AVX2__
  const __m256i values = _mm256_castps_si256(_mm256_loadu_ps(x));
  const __m256i one = _mm256_set1_epi32(0x3f800000);
  const __m256i size = _mm256_and_si256(values, _mm256_set1_epi32(0x7fffffff));
  others |= ~_mm256_movemask_epi8(_mm256_cmpeq_epi32(size, one));
  return ~unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(values))) & 0xff;
#else
  unsigned byte = 0;
  for (int k = 0; k < 8; k++) {
    const int32_t bits = elementary::bits_of(x[k]);
    byte |= unsigned(bits >= 0) << k;
    others |= (bits & 0x7fffffff) ^ 0x3f800000;
  }
  return byte;
#endif
}

inline unsigned byte_of(const Bfloat16* x, int32_t& others) {
#ifdef __SSE2__
  const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  const __m128i size = _mm_and_si128(values, _mm_set1_epi16(0x7fff));
  others |= 0xffff ^ _mm_movemask_epi8(_mm_cmpeq_epi16(size, _mm_set1_epi16(0x3f80)));
  return ~unsigned(_mm_movemask_epi8(_mm_packs_epi16(values, values))) & 0xff;
#else
  unsigned byte = 0;
  for (int k = 0; k < 8; k++) {
    byte |= unsigned(~x[k].bits >> 15 & 1) << k;
    others |= (x[k].bits & 0x7fff) ^ 0x3f80;
  }
  return byte;
#endif
}

// The bits of ``count`` values, 8 to a byte; whether all of them are +1 or -1.
template <class T>
bool pack(const T* x, int64_t count, uint8_t* bits) {
  int32_t others = 0;
  for (int64_t i = 0; i < count / 8; i++) bits[i] = uint8_t(byte_of(x + 8 * i, others));
  return !others;
}

// Eight bits as values of +1 and -1.
struct Table {
  alignas(32) float values[256][8];

  Table() {
    for (int byte = 0; byte < 256; byte++)
      for (int k = 0; k < 8; k++) values[byte][k] = float((byte >> k & 1) * 2 - 1);
  }
};
const Table table;

// ``count`` bits as values; undoes ``pack``.
template <class T>
inline void unpack(const uint8_t* bits, int count, T* x) {
  for (int b = 0; b < count / 8; b++)
    for (int k = 0; k < 8; k++) store(x + 8 * b + k, table.values[bits[b]][k]);
}
