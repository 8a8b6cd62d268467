// The kernels, written once for a vector type S. Each instruction set includes this file with its
// own S, in a file that is compiled with its own flags. Nothing here is inlined from elsewhere: an
// inline function that two files share could be linked with the wrong instructions.
#pragma once

#include "tasks.h"

namespace {

struct Range {
  int first, last;
};

// Part ``rank`` of ``size`` parts of ``count`` items.
inline Range part(int count, int rank, int size) {
  return {int(int64_t(count) * rank / size), int(int64_t(count) * (rank + 1) / size)};
}

inline int rounded_up(int count, int unit) { return (count + unit - 1) / unit * unit; }

// For P vectors of positions and two outputs: in how many bits weights and signs differ.
//
// A byte of weights holds four bits of both outputs. It chooses a table of 16 bytes, in which four
// bits of signs look up both counts at once. ROUND of them are added before they are split.
template <class S, int P>
inline void count_differences(const BinaryTask& task, const uint8_t* x, const uint8_t* weights,
                              uint16_t (*counts)[P * S::bytes]) {
  constexpr int MOST = 255 / (4 * ROUND) * ROUND;  // steps that fit into a byte
  for (int first = 0; first < task.steps; first += MOST) {
    typename S::Bytes low[P], high[P];
    for (int v = 0; v < P; v++) low[v] = high[v] = S::zero_bytes();
    const int last = first + MOST < task.steps ? first + MOST : task.steps;
    for (int step = first; step < last; step += ROUND) {
      const auto first_table = S::table(task.differences, weights[step]);
      const auto second_table = S::table(task.differences, weights[step + 1]);
      const auto third_table = S::table(task.differences, weights[step + 2]);
      const uint8_t *first_x = x + task.offsets[step], *second_x = x + task.offsets[step + 1];
      const uint8_t* third_x = x + task.offsets[step + 2];
      for (int v = 0; v < P; v++) {
        auto both = S::lookup(first_table, S::load(first_x + v * S::bytes));
        both = S::add(both, S::lookup(second_table, S::load(second_x + v * S::bytes)));
        both = S::add(both, S::lookup(third_table, S::load(third_x + v * S::bytes)));
        low[v] = S::add_low(low[v], both);
        high[v] = S::add_high(high[v], both);
      }
    }
    for (int v = 0; v < P; v++) {
      S::widen(counts[0] + v * S::bytes, low[v], first == 0);
      S::widen(counts[1] + v * S::bytes, high[v], first == 0);
    }
  }
}

template <class S>
inline typename S::Floats prelu(const Prelu& task, int channel, typename S::Floats x) {
  return S::plus(S::leaky(x, S::all(task.leak[channel])), S::all(task.shift[channel]));
}

constexpr int PARTS = 4;  // vectors of reals for a vector of bytes, of every instruction set

// Signs of S::bytes positions, as they are collected and then stored.
template <class S>
struct Signs {
  typename S::Ints parts[PARTS];
  const bool is_wide;

  explicit Signs(bool is_wide) : is_wide(is_wide) {
    for (auto& each : parts) each = S::zero_ints();
    if constexpr (S::has_wide)
      if (is_wide)
        for (auto& each : parts) each = S::minus_ones();
  }

  void add(int part, int output, typename S::Floats y, typename S::Floats threshold) {
    if constexpr (S::has_wide)
      if (is_wide) {
        parts[part] = S::with_one(parts[part], y, threshold, output);
        return;
      }
    parts[part] = S::with_bit(parts[part], y, threshold, 1 << output);
  }

  void store(uint8_t* next, ptrdiff_t at, const uint8_t* edges) const {
    if constexpr (S::has_wide)
      if (is_wide) return S::store_wide(next + 4 * at, parts, edges);
    S::store_signs(next + at, parts, S::load(edges));
  }
};

// Norm, residual, PReLU and sign of S::bytes positions of a block of outputs, of which ``sums(o, i)``
// is vector number i.
template <class S, class Sums>
inline void finish(const BinaryTask& task, int block, int p, const Sums& sums) {
  Signs<S> signs(task.next_is_wide);
  for (int o = 0; o < BLOCK; o++) {
    const int channel = block * BLOCK + o;
    const auto mean = S::all(task.norm.mean[channel]), slope = S::all(task.norm.slope[channel]);
    const auto bias = S::all(task.norm.bias[channel]), threshold = S::all(task.threshold[channel]);
    const ptrdiff_t at = channel * task.plane + p;
    for (int i = 0; i < PARTS; i++) {
      auto u = sums(o, i);
      if (task.norm.relu) u = S::relu(u);
      auto y = S::fma(S::subtract(u, mean), slope, bias);
      if (task.residual) y = S::plus(y, S::load(task.residual + at + i * S::lanes));
      if (task.prelu.leak) y = prelu<S>(task.prelu, channel, y);
      if (task.real) S::store(task.real + at + i * S::lanes, y);
      signs.add(i, o, y, threshold);
    }
  }
  if (task.next) signs.store(task.next, block * task.next_plane + p, task.edges + p);
}

template <class S, int P>
inline void binary_tile(const BinaryTask& task, int block, int p) {
  uint16_t counts[BLOCK][P * S::bytes];
  const uint8_t* weights = task.weights + ptrdiff_t(block) * task.steps * (BLOCK / 2);
  for (int o = 0; o < BLOCK; o += 2, weights += task.steps)
    count_differences<S, P>(task, task.signs + p, weights, counts + o);
  for (int v = 0; v < P; v++) {
    int16_t z[BLOCK][S::bytes];
    const int16_t* base = task.base + p + v * S::bytes;
    for (int o = 0; o < BLOCK; o++)
      for (int i = 0; i < S::bytes; i++)
        z[o][i] = int16_t(base[i] - 2 * counts[o][v * S::bytes + i]);
    finish<S>(task, block, p + v * S::bytes,
              [&z](int o, int i) { return S::from_shorts(z[o] + i * S::lanes); });
  }
}

// A tile of ``vectors`` vectors, at most P.
template <class S, int P>
inline void binary_tile_of(int vectors, const BinaryTask& task, int block, int p) {
  if (vectors == P) return binary_tile<S, P>(task, block, p);
  if constexpr (P > 1) binary_tile_of<S, P - 1>(vectors, task, block, p);
}

// Tiles of S::tile vectors, and what is left. All outputs of a tile before the next: its signs stay
// in the nearest cache.
template <class S>
void binary(const BinaryTask& task, int rank, int size) {
  constexpr int P = S::tile;
  const int vectors = rounded_up(task.positions, S::bytes) / S::bytes;
  const Range range = part(rounded_up(vectors, P) / P * task.blocks, rank, size);
  for (int i = range.first; i < range.last; i++) {
    const int tile = i / task.blocks, left = vectors - tile * P;
    binary_tile_of<S, P>(left < P ? left : P, task, i % task.blocks, tile * P * S::bytes);
  }
}

template <class S, int P>
inline void real_tile(const RealTask& task, int block, int p) {
  typename S::Floats sums[BLOCK][P];
  for (int o = 0; o < BLOCK; o++)
    for (auto& sum : sums[o]) sum = S::all(task.start[block * BLOCK + o]);
  const float* w = task.weights + ptrdiff_t(block) * task.steps * BLOCK;
  const float* x = task.input + p;
  for (int step = 0; step < task.steps; step++, w += BLOCK) {
    const float* here = x + task.offsets[step];
    typename S::Floats inputs[P];
    for (int v = 0; v < P; v++) inputs[v] = S::load(here + v * S::lanes);
    for (int o = 0; o < BLOCK; o++) {
      const auto weight = S::all(w[o]);
      for (int v = 0; v < P; v++) sums[o][v] = S::fma(weight, inputs[v], sums[o][v]);
    }
  }
  for (int o = 0; o < BLOCK; o++) {
    const int channel = block * BLOCK + o;
    const auto mean = S::all(task.norm.mean[channel]), slope = S::all(task.norm.slope[channel]);
    const auto bias = S::all(task.norm.bias[channel]);
    float* real = task.real + channel * task.plane + p;
    for (int v = 0; v < P; v++) {
      const auto u = task.norm.relu ? S::relu(sums[o][v]) : sums[o][v];
      S::store(real + v * S::lanes, S::fma(S::subtract(u, mean), slope, bias));
    }
  }
}

template <class S, int P>
inline void real_tile_of(int vectors, const RealTask& task, int block, int p) {
  if (vectors == P) return real_tile<S, P>(task, block, p);
  if constexpr (P > 1) real_tile_of<S, P - 1>(vectors, task, block, p);
}

template <class S>
void real(const RealTask& task, int rank, int size) {
  constexpr int P = S::real_tile;
  const int vectors = rounded_up(task.positions, S::lanes) / S::lanes;
  const Range range = part(rounded_up(vectors, P) / P * task.blocks, rank, size);
  for (int i = range.first; i < range.last; i++) {
    const int tile = i / task.blocks, left = vectors - tile * P;
    real_tile_of<S, P>(left < P ? left : P, task, i % task.blocks, tile * P * S::lanes);
  }
}

template <class S>
void sign(const SignTask& task, int rank, int size) {
  const Range range = part(task.blocks, rank, size);
  for (int block = range.first; block < range.last; block++) {
    const float* real = task.real + block * BLOCK * task.plane;
    for (int p = 0; p < task.positions; p += S::bytes) {
      Signs<S> signs(task.next_is_wide);
      for (int o = 0; o < BLOCK; o++) {
        const auto threshold = S::all(task.threshold[block * BLOCK + o]);
        for (int i = 0; i < PARTS; i++)
          signs.add(i, o, S::load(real + o * task.plane + p + i * S::lanes), threshold);
      }
      signs.store(task.next, block * task.next_plane + p, task.edges + p);
    }
  }
}

// LANES partial sums, then half of them to the other half, until one is left: the same order for
// every width of a vector.
template <class S>
void linear(const LinearTask& task, int rank, int size) {
  constexpr int VECTORS = LANES / S::lanes;
  const Range range = part(task.count, rank, size);
  for (int o = range.first; o < range.last; o++) {
    const float* w = task.weights + ptrdiff_t(o) * task.length;
    typename S::Floats sums[VECTORS];
    for (auto& each : sums) each = S::all(0.0f);
    for (int i = 0; i < task.length; i += LANES)
      for (int j = 0; j < VECTORS; j++) {
        const int at = i + j * S::lanes;
        sums[j] = S::fma(S::load(w + at), S::load(task.inputs + at), sums[j]);
      }
    float lanes[LANES];
    for (int j = 0; j < VECTORS; j++) S::store(lanes + j * S::lanes, sums[j]);
    for (int half = LANES / 2; half; half /= 2)
      for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    task.outputs[o] = task.bias[o] + lanes[0];
  }
}

template <class S>
void maxima(float* to, const float* from, int count) {
  const int whole = count / S::lanes * S::lanes;
  for (int i = 0; i < whole; i += S::lanes)
    S::store(to + i, S::larger(S::load(from + i), S::load(to + i)));
  for (int i = whole; i < count; i++) to[i] = from[i] > to[i] ? from[i] : to[i];
}

}  // namespace

#define KERNELS(name, S, is_supported, wide) \
  extern const Kernels name##_kernels; \
  const Kernels name##_kernels = {#name, is_supported, binary<S>, wide, real<S>, sign<S>, \
                                 linear<S>, maxima<S>};
