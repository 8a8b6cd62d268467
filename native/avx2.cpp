// x86 with AVX2 and FMA: 32 bytes or 8 floats in a vector.
#include <immintrin.h>

#include "kernels.h"

namespace {

struct Avx2 {
  using Bytes = __m256i;
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int bytes = 32, lanes = 8, tile = 4, real_tile = 3;
  static constexpr bool has_wide = false;

  static Bytes zero_bytes() { return _mm256_setzero_si256(); }
  static Bytes load(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static Bytes table(const uint8_t* tables, int index) {
    const auto* from = reinterpret_cast<const __m128i*>(tables) + index;
    return _mm256_broadcastsi128_si256(_mm_load_si128(from));
  }
  static Bytes lookup(Bytes table, Bytes x) { return _mm256_shuffle_epi8(table, x); }
  static Bytes add(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
  static Bytes add_low(Bytes sum, Bytes both) {
    return add(sum, _mm256_and_si256(both, _mm256_set1_epi8(15)));
  }
  static Bytes add_high(Bytes sum, Bytes both) {
    return add_low(sum, _mm256_srli_epi16(both, 4));
  }
  static void widen(uint16_t* counts, Bytes sum, bool is_first) {
    auto* to = reinterpret_cast<__m256i*>(counts);
    auto low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(sum));
    auto high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(sum, 1));
    if (!is_first) {
      low = _mm256_add_epi16(low, _mm256_loadu_si256(to));
      high = _mm256_add_epi16(high, _mm256_loadu_si256(to + 1));
    }
    _mm256_storeu_si256(to, low);
    _mm256_storeu_si256(to + 1, high);
  }

  static Floats all(float x) { return _mm256_set1_ps(x); }
  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats relu(Floats x) { return larger(x, _mm256_setzero_ps()); }
  static Floats leaky(Floats x, Floats slope) {
    const auto is_positive = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ);
    return _mm256_blendv_ps(_mm256_mul_ps(slope, x), x, is_positive);
  }
  static Floats from_shorts(const int16_t* from) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight));
  }

  static Ints zero_ints() { return _mm256_setzero_si256(); }
  static Ints with_bit(Ints signs, Floats y, Floats threshold, int bit) {
    const auto is_positive = _mm256_castps_si256(_mm256_cmp_ps(y, threshold, _CMP_GE_OQ));
    return _mm256_or_si256(signs, _mm256_and_si256(is_positive, _mm256_set1_epi32(bit)));
  }
  static void store_signs(uint8_t* to, const Ints (&signs)[4], Bytes edges) {
    const auto front = _mm256_packus_epi32(signs[0], signs[1]);
    const auto back = _mm256_packus_epi32(signs[2], signs[3]);
    const auto order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const auto all = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(front, back), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_or_si256(all, edges));
  }
};

bool is_supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

KERNELS(avx2, Avx2, is_supported, nullptr)
