// Any processor: vectors of 16 bytes or 4 floats, which the compiler makes of what there is.
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint32_t Ints4 __attribute__((vector_size(16)));
typedef float Floats4 __attribute__((vector_size(16)));

struct Portable {
  using Bytes = Bytes16;
  using Ints = Ints4;
  using Floats = Floats4;
  static constexpr int bytes = 16, lanes = 4, tile = 1, real_tile = 2;
  static constexpr bool has_wide = false;

  template <class V, class T>
  static V read(const T* from) {
    V x;
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  template <class V, class T>
  static void write(T* to, V x) {
    std::memcpy(to, &x, sizeof x);
  }

  static Bytes zero_bytes() { return Bytes{}; }
  static Bytes load(const uint8_t* from) { return read<Bytes>(from); }
  // Without an instruction that looks bytes up, the bits are counted: the table is its own index.
  static Bytes table(const uint8_t*, int index) { return Bytes{} + uint8_t(index); }
  static Bytes lookup(Bytes weights, Bytes x) {
    const Bytes inside = Bytes((x & OUTSIDE) == 0);
    const Bytes both = (x | x << 4) ^ weights;  // what differs, of both outputs
    const Bytes twos = both - (both >> 1 & uint8_t(0x55));
    const Bytes fours = (twos & uint8_t(0x33)) + (twos >> 2 & uint8_t(0x33));
    return fours & inside;
  }
  static Bytes add(Bytes a, Bytes b) { return a + b; }
  static Bytes add_low(Bytes sum, Bytes both) { return sum + (both & uint8_t(15)); }
  static Bytes add_high(Bytes sum, Bytes both) { return sum + (both >> 4); }
  static void widen(uint16_t* counts, Bytes sum, bool is_first) {
    for (int i = 0; i < bytes; i++) counts[i] = uint16_t((is_first ? 0 : counts[i]) + sum[i]);
  }

  static Floats all(float x) { return Floats{x, x, x, x}; }
  static Floats load(const float* from) { return read<Floats>(from); }
  static void store(float* to, Floats x) { write(to, x); }
  static Floats fma(Floats a, Floats b, Floats c) {
    for (int i = 0; i < lanes; i++) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
  }
  static Floats plus(Floats a, Floats b) { return a + b; }
  static Floats subtract(Floats a, Floats b) { return a - b; }
  static Floats larger(Floats a, Floats b) { return a > b ? a : b; }
  static Floats relu(Floats x) { return larger(x, Floats{}); }
  static Floats leaky(Floats x, Floats slope) { return x > 0.0f ? x : slope * x; }
  static Floats from_shorts(const int16_t* from) {
    return Floats{float(from[0]), float(from[1]), float(from[2]), float(from[3])};
  }

  static Ints zero_ints() { return Ints{}; }
  static Ints with_bit(Ints signs, Floats y, Floats threshold, int bit) {
    return signs | (Ints(y >= threshold) & uint32_t(bit));
  }
  static void store_signs(uint8_t* to, const Ints (&signs)[4], Bytes edges) {
    for (int i = 0; i < bytes; i++) to[i] = uint8_t(signs[i / lanes][i % lanes] | edges[i]);
  }
};

bool is_supported() { return true; }

}  // namespace

KERNELS(portable, Portable, is_supported, nullptr)
