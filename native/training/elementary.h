// Elementary functions for single values, so plain that the compiler makes vectors of the loops that
// call them; the C library's would be calls. Their error is a few units in the last place. Polynomials
// are summed by pairs, which wait less for each other than Horner's steps.
#pragma once

#include <cstdint>
#include <cstring>

namespace elementary {

inline int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float absolute(float x) { return float_of(bits_of(x) & 0x7fffffff); }
inline float least(float a, float b) { return a < b ? a : b; }
inline float greatest(float a, float b) { return a > b ? a : b; }

// The nearest whole number, for |x| below 2^22: adding this leaves no bits for a fraction.
inline float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

// 2^x for x from -126 to 127. Taylor's series of the fraction, |r| <= ln 2 / 2.
inline float bounded_exp2(float x) {
  const float whole = nearest(x), r = (x - whole) * 0.693147181f;
  const float square = r * r;
  const float high = (1.0f / 24 + r * (1.0f / 120)) + square * (1.0f / 720);
  const float sum = (1 + r) + square * ((0.5f + r * (1.0f / 6)) + square * high);
  return sum * float_of((int32_t(whole) + 127) << 23);
}

// 2^x, from 2^-126 to 2^127: beyond, the value there.
inline float exp2(float x) { return bounded_exp2(least(greatest(x, -126.0f), 127.0f)); }

inline float exp(float x) { return exp2(x * 1.44269504f); }

// log2 of a normal x > 0: its exponent, and 2 atanh(s) / ln 2 of a mantissa from sqrt(1/2) to sqrt(2).
inline float log2(float x) {
  const int32_t bits = bits_of(x), power = (bits - 0x3f3504f3) >> 23;
  const float mantissa = float_of(bits - power * (1 << 23));
  const float s = (mantissa - 1) / (mantissa + 1), square = s * s;
  const float sum = (1 + square * (1.0f / 3)) + square * square * (1.0f / 5 + square * (1.0f / 7));
  return float(power) + sum * s * 2.88539008f;
}

// 1 / cosh^2(x).
inline float sech2(float x) {
  const float q = exp(-2 * absolute(x));
  return 4 * q / ((1 + q) * (1 + q));
}

// x tanh(x).
inline float x_tanh(float x) {
  const float q = exp(-2 * absolute(x));
  return absolute(x) * (1 - q) / (1 + q);
}

// x less the nearest multiple of pi, whose number is ``turns``; for |x| below 10^4. pi is taken away
// in parts of few bits, whose products with a small whole number are exact.
inline float without_turns(float x, float& turns) {
  turns = nearest(x * 0.318309886f);
  return ((x - turns * 3.140625f) - turns * 9.67502593994e-4f) - turns * 1.50995799e-7f;
}

// +1 for an even whole number, -1 for an odd one.
inline float parity(float whole) {
  const float half = nearest(whole * 0.5f) * 2 - whole;  // 0 or +-1
  return 1 - 2 * half * half;
}

inline float sin_of_rest(float r) {  // |r| <= pi / 2
  const float square = r * r;
  float sum = -1.0f / 39916800;
  sum = sum * square + 1.0f / 362880;
  sum = sum * square - 1.0f / 5040;
  sum = sum * square + 1.0f / 120;
  sum = sum * square - 1.0f / 6;
  return r + r * square * sum;
}

inline float sin(float x) {
  float turns;
  const float rest = without_turns(x, turns);
  return parity(turns) * sin_of_rest(rest);
}

inline float cos(float x) {
  float turns;
  const float rest = without_turns(x, turns);
  const float half = sin_of_rest(rest * 0.5f);
  return parity(turns) * (1 - 2 * half * half);
}

}  // namespace elementary
