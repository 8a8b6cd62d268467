// ARM with Advanced SIMD, which every 64-bit ARM processor has: 16 bytes or 4 floats in a vector.
#include <arm_neon.h>

#include "kernels.h"

namespace {

struct Neon {
  using Bytes = uint8x16_t;
  using Ints = uint32x4_t;
  using Floats = float32x4_t;
  static constexpr int bytes = 16, lanes = 4, tile = 4, real_tile = 5;
  static constexpr bool has_wide = false;

  static Bytes zero_bytes() { return vdupq_n_u8(0); }
  static Bytes load(const uint8_t* from) { return vld1q_u8(from); }
  static Bytes table(const uint8_t* tables, int index) { return vld1q_u8(tables + 16 * index); }
  static Bytes lookup(Bytes table, Bytes x) { return vqtbl1q_u8(table, x); }
  static Bytes add(Bytes a, Bytes b) { return vaddq_u8(a, b); }
  static Bytes add_low(Bytes sum, Bytes both) { return add(sum, vandq_u8(both, vdupq_n_u8(15))); }
  static Bytes add_high(Bytes sum, Bytes both) { return vsraq_n_u8(sum, both, 4); }
  static void widen(uint16_t* counts, Bytes sum, bool is_first) {
    auto low = vmovl_u8(vget_low_u8(sum)), high = vmovl_u8(vget_high_u8(sum));
    if (!is_first) {
      low = vaddq_u16(low, vld1q_u16(counts));
      high = vaddq_u16(high, vld1q_u16(counts + 8));
    }
    vst1q_u16(counts, low);
    vst1q_u16(counts + 8, high);
  }

  static Floats all(float x) { return vdupq_n_f32(x); }
  static Floats load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Floats x) { vst1q_f32(to, x); }
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats plus(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats larger(Floats a, Floats b) { return vmaxq_f32(a, b); }
  static Floats relu(Floats x) { return larger(x, all(0.0f)); }
  static Floats leaky(Floats x, Floats slope) {
    return vbslq_f32(vcgtzq_f32(x), x, vmulq_f32(slope, x));
  }
  static Floats from_shorts(const int16_t* from) { return vcvtq_f32_s32(vmovl_s16(vld1_s16(from))); }

  static Ints zero_ints() { return vdupq_n_u32(0); }
  static Ints with_bit(Ints signs, Floats y, Floats threshold, int bit) {
    return vorrq_u32(signs, vandq_u32(vcgeq_f32(y, threshold), vdupq_n_u32(bit)));
  }
  static void store_signs(uint8_t* to, const Ints (&signs)[4], Bytes edges) {
    const auto front = vcombine_u16(vmovn_u32(signs[0]), vmovn_u32(signs[1]));
    const auto back = vcombine_u16(vmovn_u32(signs[2]), vmovn_u32(signs[3]));
    const auto all = vcombine_u8(vmovn_u16(front), vmovn_u16(back));
    vst1q_u8(to, vorrq_u8(all, edges));
  }
};

bool is_supported() { return true; }

}  // namespace

KERNELS(neon, Neon, is_supported, nullptr)
