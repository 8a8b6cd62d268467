// The passes of kernels/rprelu.py over maps in channels_last, which are rows of channels.
#include <algorithm>
#include <array>
#include <vector>

#include "rows.h"

namespace {

// Vectors of channels; ``offset`` may be null.
struct Vectors {
  const float *weight, *bias, *mean, *rstd, *slope, *shift, *offset;
};

// The same, as wide as a wide row.
struct Channels {
  Wide mean, scale, bias, slope, shift, offset;

  Channels(const Shape& shape, const Vectors& of)
      : mean(shape, [&](int c) { return of.mean[c]; }),
        scale(shape, [&](int c) { return of.weight[c] * of.rstd[c]; }),
        bias(shape, [&](int c) { return of.bias[c]; }),
        slope(shape, [&](int c) { return of.slope[c]; }),
        shift(shape, [&](int c) { return of.shift[c]; }),
        offset(shape, [&](int c) { return of.offset ? of.offset[c] : 0.0f; }) {}
};

// v, to which RPReLU is applied, of ``length`` values of a row.
template <class T>
inline void normalize(const Channels& channels, const T* z, const T* residual, int from,
                      int length, float* v) {
  const float *mean = &channels.mean[from], *scale = &channels.scale[from];
  const float* bias = &channels.bias[from];
  for (int i = 0; i < length; i++)
    v[i] = bias[i] + (load(z + i) - mean[i]) * scale[i] + load(residual + i);
}

// y of v, as maps of T have it.
template <class T>
inline void activate(const Channels& channels, const float* v, int from, int length, float* y) {
  const float *slope = &channels.slope[from], *shift = &channels.shift[from];
  for (int i = 0; i < length; i++) {
    const float low = slope[i] * v[i];
    y[i] = (v[i] > 0 ? v[i] : low) + shift[i];
  }
  for (int i = 0; i < length; i++) y[i] = as_stored(static_cast<const T*>(nullptr), y[i]);
}

template <class T>
void forward(const T* z, const T* residual, const Vectors& vectors, int64_t rows, int width, T* y,
             T* yb, int threads) {
  const Shape shape(rows, width);
  const Channels channels(shape, vectors);
  const auto row = [&](int64_t at, int from, int length) {
    const float* offset = &channels.offset[from];
    float v[MOST], own[MOST];
    normalize(channels, z + at, residual + at, from, length, v);
    activate<T>(channels, v, from, length, own);
    for (int i = 0; i < length; i++) store(y + at + i, own[i]);
    if (yb)
      for (int i = 0; i < length; i++) store(yb + at + i, sign(own[i] + offset[i]));
  };
  each_chunk(shape, threads,
             [&](int64_t, const Chunk& chunk) { each_piece(shape, chunk, row); });
}

constexpr int SUMS = 5;  // of g, g (z - mean), dy in all, that where v <= 0 times v, that by the sign

// The gradients of y that come by its sign: dyb h(y + offset), 0 without dyb.
template <class T>
inline void by_sign(Factor h, const float* params, const Channels& channels, const T* dyb,
                    const float* v, int from, int length, float* found) {
  if (!dyb) return std::fill(found, found + length, 0.0f);
  const float* offset = &channels.offset[from];
  float x[MOST], factor[MOST];
  activate<T>(channels, v, from, length, x);
  for (int i = 0; i < length; i++) x[i] += offset[i];
  h(params, x, factor, length);
  for (int i = 0; i < length; i++) {
    const float product = load(dyb + i) * factor[i];
    found[i] = x[i] == x[i] ? product : x[i];
  }
}

// g of v, from ``own``, the gradient of y that comes by its sign; and what it adds to the sums.
template <class T>
inline void differentiate(const Channels& channels, const T* dy, const T* z, const float* v,
                          const float* own, int from, int length, T* g, float* sums, int step) {
  const float *slope = &channels.slope[from], *mean = &channels.mean[from];
  float whole[MOST], gradient[MOST];
  for (int i = 0; i < length; i++) whole[i] = own[i] + (dy ? load(dy + i) : 0.0f);
  for (int i = 0; i < length; i++) {
    const float low = slope[i] * whole[i];
    gradient[i] = as_stored(g, v[i] > 0 ? whole[i] : low);
  }
  for (int i = 0; i < length; i++) store(g + i, gradient[i]);
  for (int i = 0; i < length; i++) sums[i] += gradient[i];
  for (int i = 0; i < length; i++) sums[step + i] += gradient[i] * (load(z + i) - mean[i]);
  for (int i = 0; i < length; i++) sums[2 * step + i] += whole[i];
  for (int i = 0; i < length; i++) sums[3 * step + i] += (v[i] > 0 ? 0.0f : v[i]) * whole[i];
  for (int i = 0; i < length; i++) sums[4 * step + i] += own[i];
}

template <class T>
void reduce(Factor h, const float* params, const T* dy, const T* dyb, const T* z,
            const T* residual, const Vectors& vectors, int64_t rows, int width, T* g, float* sums,
            int threads) {
  const Shape shape(rows, width);
  const Channels channels(shape, vectors);
  std::array<std::vector<double>, SUMS> each;
  each.fill(std::vector<double>(shape.chunks() * width));
  each_chunk(shape, threads, [&](int64_t number, const Chunk& chunk) {
    std::vector<float> wide(SUMS * shape.width(), 0.0f);
    each_piece(shape, chunk, [&](int64_t at, int from, int length) {
      float v[MOST], own[MOST];
      normalize(channels, z + at, residual + at, from, length, v);
      by_sign(h, params, channels, dyb ? dyb + at : nullptr, v, from, length, own);
      differentiate(channels, dy ? dy + at : nullptr, z + at, v, own, from, length, g + at,
                    &wide[from], shape.width());
    });
    for (int k = 0; k < SUMS; k++)
      fold(shape, &wide[k * shape.width()], &each[k][number * width]);
  });
  std::vector<double> total(width);
  for (int k = 0; k < SUMS; k++) {
    add_up(shape, each[k], total.data());
    for (int c = 0; c < width; c++)
      sums[k * width + c] = float(k == 1 ? total[c] * vectors.rstd[c] : total[c]);
  }
}

}  // namespace

#define EXPORTS(T, NAME)                                                                          \
  void prelu_forward_##NAME(const T* z, const T* residual, const float* weight,                   \
                            const float* bias, const float* mean, const float* rstd,              \
                            const float* slope, const float* shift, const float* offset,          \
                            int64_t rows, int channels, T* y, T* yb, int threads) {               \
    const Vectors vectors{weight, bias, mean, rstd, slope, shift, offset};                        \
    forward(z, residual, vectors, rows, channels, y, yb, threads);                                \
  }                                                                                               \
  void prelu_reduce_##NAME(const T* dy, const T* dyb, const T* z, const T* residual,              \
                           const float* weight, const float* bias, const float* mean,             \
                           const float* rstd, const float* slope, const float* shift,             \
                           const float* offset, Factor h, const float* params, int64_t rows,      \
                           int channels, T* g, float* sums, int threads) {                        \
    const Vectors vectors{weight, bias, mean, rstd, slope, shift, offset};                        \
    reduce(h, params, dy, dyb, z, residual, vectors, rows, channels, g, sums, threads);           \
  }

#pragma GCC visibility push(default)
extern "C" {
EXPORTS(float, float32)
EXPORTS(Bfloat16, bfloat16)
}
#pragma GCC visibility pop
