// Vectors of x86 with AVX-512 F and BW: 64 bytes or 16 floats in each. See kernels.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Avx512 {
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int bytes = 64, lanes = 16, tile = 4, real_tile = 6;
  static constexpr bool has_wide = true;

  static Bytes zero_bytes() { return _mm512_setzero_si512(); }
  static Bytes load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Bytes table(const uint8_t* tables, int index) {
    const auto* from = reinterpret_cast<const __m128i*>(tables) + index;
    return _mm512_broadcast_i32x4(_mm_load_si128(from));
  }
  static Bytes lookup(Bytes table, Bytes x) { return _mm512_shuffle_epi8(table, x); }
  static Bytes add(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
  static Bytes add_low(Bytes sum, Bytes both) {
    return add(sum, _mm512_and_si512(both, _mm512_set1_epi8(15)));
  }
  static Bytes add_high(Bytes sum, Bytes both) {
    return add_low(sum, _mm512_srli_epi16(both, 4));
  }
  static void widen(uint16_t* counts, Bytes sum, bool is_first) {
    auto low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(sum));
    auto high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(sum, 1));
    if (!is_first) {
      low = _mm512_add_epi16(low, _mm512_loadu_si512(counts));
      high = _mm512_add_epi16(high, _mm512_loadu_si512(counts + 32));
    }
    _mm512_storeu_si512(counts, low);
    _mm512_storeu_si512(counts + 32, high);
  }

  static Floats all(float x) { return _mm512_set1_ps(x); }
  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats relu(Floats x) { return larger(x, _mm512_setzero_ps()); }
  static Floats leaky(Floats x, Floats slope) {
    const __mmask16 is_positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_mov_ps(_mm512_mul_ps(slope, x), is_positive, x);
  }
  static Floats from_shorts(const int16_t* from) {
    const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sixteen));
  }

  static Ints zero_ints() { return _mm512_setzero_si512(); }
  static Ints with_bit(Ints signs, Floats y, Floats threshold, int bit) {
    const __mmask16 is_positive = _mm512_cmp_ps_mask(y, threshold, _CMP_GE_OQ);
    return _mm512_mask_or_epi32(signs, is_positive, signs, _mm512_set1_epi32(bit));
  }
  static void store_signs(uint8_t* to, const Ints (&signs)[4], Bytes edges) {
    alignas(64) uint8_t all[64];
    for (int i = 0; i < 4; i++)
      _mm_store_si128(reinterpret_cast<__m128i*>(all) + i, _mm512_cvtepi32_epi8(signs[i]));
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_load_si512(all), edges));
  }

  // Wide signs.
  static Ints minus_ones() { return _mm512_set1_epi32(-1); }
  static Ints with_one(Ints signs, Floats y, Floats threshold, int byte) {
    const __mmask16 is_positive = _mm512_cmp_ps_mask(y, threshold, _CMP_GE_OQ);
    return _mm512_mask_xor_epi32(signs, is_positive, signs, _mm512_set1_epi32(0xfe << 8 * byte));
  }
  static void store_wide(uint8_t* to, const Ints (&signs)[4], const uint8_t* edges) {
    for (int i = 0; i < 4; i++) {
      const auto* outside = reinterpret_cast<const __m128i*>(edges) + i;
      const Ints edge = _mm512_cvtepi8_epi32(_mm_loadu_si128(outside));
      const __mmask16 is_pixel = _mm512_cmpeq_epi32_mask(edge, _mm512_setzero_si512());
      _mm512_storeu_si512(to + 64 * i, _mm512_maskz_mov_epi32(is_pixel, signs[i]));
    }
  }
};

inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

}  // namespace
