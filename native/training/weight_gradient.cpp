// The gradient of the weights of a convolution of +-1, see convolution.cpp: a sum over all positions.
//
// The work is cut into pieces, of some outputs in a chunk of the images. Neither depends on the
// number of threads, and the sums of the chunks are added in their order: every number of threads
// gives the same bits.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "tiles.h"

namespace {

constexpr int OUTPUTS = 16;  // of a piece, whose sums stay near
constexpr int PIECES = 32;   // so many are enough for all threads

// Vectors of floats, of the widest kind that the processor has.
#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
constexpr int ROWS = 4, COLUMNS = 2;  // outputs and vectors of channels of a tile

// From and to any address.
inline Vector read(const float* from) {
  Vector values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void write(const Vector& values, float* to) { std::memcpy(to, &values, sizeof values); }

// sums (ROWS, COLUMNS * LANES) += the products of dz and x at ``count`` positions of a line.
inline void add_tile(const float* dz, int dz_step, const float* x, int x_step, int count,
                     Vector (&sums)[ROWS][COLUMNS]) {
  for (int i = 0; i < count; i++, dz += dz_step, x += x_step)
    for (int v = 0; v < COLUMNS; v++) {
      Vector here = read(x + v * LANES);
#ifdef __AVX__
      asm("" : "+x"(here));  // read once, and not with each product
#endif
      for (int o = 0; o < ROWS; o++) sums[o][v] += here * dz[o];
    }
}

// The pixels of lines of an image as floats, (width, channels), ``channels`` rounded up to a tile.
struct Lines {
  const Convolution& c;
  const int channels;
  Buffer<float> values;
  int held[3] = {-1, -1, -1};

  explicit Lines(const Convolution& c)
      : c(c),
        channels(channels_of(c)),
        values(size_t(3) * c.width * channels) {}

  static int channels_of(const Convolution& c) {
    return (c.channels + COLUMNS * LANES - 1) / (COLUMNS * LANES) * COLUMNS * LANES;
  }

  const float* line(const uint8_t* image, int h) {
    float* first = values.data() + size_t(h % 3) * c.width * channels;
    if (held[h % 3] == h) return first;
    held[h % 3] = h;
    const uint8_t* bits = image + int64_t(h) * c.width * c.bytes();
    for (int w = 0; w < c.width; w++)
      unpack(bits + w * c.bytes(), c.channels, first + int64_t(w) * channels);
    return first;
  }
};

// A line of dz as floats, (width, OUTPUTS), from output ``first`` on.
template <class T>
inline void widen(const Convolution& c, const T* dz, int first, float* line) {
  for (int w = 0; w < c.out_width(); w++)
    for (int o = 0; o < OUTPUTS; o++)
      line[w * OUTPUTS + o] =
          first + o < c.outputs ? load(dz + int64_t(w) * c.outputs + first + o) : 0.0f;
}

// The sums of one tap += the products of dz and x at ``count`` positions of a line.
inline void add_tap(int channels, int step, const float* x, const float* dz, int count,
                    float* sums) {
  for (int o = 0; o < OUTPUTS; o += ROWS)
    for (int k = 0; k < channels; k += COLUMNS * LANES) {
      Vector tile[ROWS][COLUMNS];
      float* at[ROWS];
      for (int r = 0; r < ROWS; r++) {
        at[r] = sums + size_t(o + r) * TAPS * channels + k;
        for (int v = 0; v < COLUMNS; v++) tile[r][v] = read(at[r] + v * LANES);
      }
      add_tile(dz + o, OUTPUTS, x + k, step, count, tile);
      for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < COLUMNS; v++) write(tile[r][v], at[r] + v * LANES);
    }
}

// sums (OUTPUTS, TAPS, channels) += those over the positions of images, of outputs from ``first`` on.
template <class T>
void add_images(const Convolution& c, const uint8_t* bits, const T* dz, int first, int64_t image,
                int64_t end_image, float* sums) {
  Lines lines(c);
  const int width = c.out_width(), channels = lines.channels;
  Buffer<float> gradient(size_t(width) * OUTPUTS);
  float* const dz_line = gradient.data();
  for (; image < end_image; image++) {
    std::fill(lines.held, lines.held + 3, -1);
    const uint8_t* here = bits + image * c.height * c.width * c.bytes();
    for (int line = 0; line < c.out_height(); line++) {
      widen(c, dz + (image * c.out_height() + line) * width * c.outputs, first, dz_line);
      for (int tap = 0; tap < TAPS; tap++) {
        const int h = line * c.stride - 1 + tap / 3, shift = tap % 3 - 1;
        if (h < 0 || h >= c.height) continue;
        const int from = shift < 0 ? 1 : 0;  // the first position whose tap lies in the map
        const int last = c.width - 1 - shift;  // in the map's columns; -1 in a map of one
        const int end = last < 0 ? 0 : std::min(width, last / c.stride + 1);
        const float* x = lines.line(here, h) + (from * c.stride + shift) * channels;
        add_tap(channels, c.stride * channels, x, dz_line + from * OUTPUTS, end - from,
                sums + tap * channels);
      }
    }
  }
}

// The gradient of OUTPUTS outputs' weights, (OUTPUTS, TAPS, c.channels), from their sums.
template <class T>
void store_sums(const Convolution& c, int first, const float* sums, T* dw) {
  const int channels = Lines::channels_of(c);
  for (int o = 0; o < OUTPUTS && first + o < c.outputs; o++)
    for (int tap = 0; tap < TAPS; tap++)
      for (int k = 0; k < c.channels; k++)
        store(dw + (int64_t(first + o) * TAPS + tap) * c.channels + k,
              sums[(size_t(o) * TAPS + tap) * channels + k]);
}

template <class T>
void weight_gradients(const Convolution& c, const uint8_t* bits, const T* dz, T* dw, int threads) {
  const size_t size = size_t(OUTPUTS) * TAPS * Lines::channels_of(c);
  const int groups = (c.outputs + OUTPUTS - 1) / OUTPUTS;
  const int chunks = int(std::min<int64_t>(c.images, (PIECES + groups - 1) / groups));
  std::vector<Buffer<float>> sums(size_t(groups) * chunks);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(dynamic)
    for (int i = 0; i < groups * chunks; i++) {
      const int64_t chunk = i % chunks;
      Buffer<float> own(size);
      add_images(c, bits, dz, i / chunks * OUTPUTS, c.images * chunk / chunks,
                 c.images * (chunk + 1) / chunks, own.data());
      if (chunks == 1)
        store_sums(c, i * OUTPUTS, own.data(), dw);
      else
        sums[i] = std::move(own);
    }
#pragma omp for schedule(static)
    for (int group = 0; group < (chunks == 1 ? 0 : groups); group++) {
      float* total = sums[group * chunks].data();
      for (int chunk = 1; chunk < chunks; chunk++) {
        const float* more = sums[group * chunks + chunk].data();
        for (size_t i = 0; i < size; i++) total[i] += more[i];
      }
      store_sums(c, group * OUTPUTS, total, dw);
    }
  }
}

}  // namespace

#define EXPORTS(T, NAME)                                                                          \
  void weight_gradient_##NAME(const uint8_t* bits, const T* dz, int64_t images, int height,       \
                              int width, int channels, int outputs, int stride, T* dw,            \
                              int threads) {                                                      \
    const Convolution c{images, height, width, channels, outputs, stride};                        \
    if (!tiles::weight_gradient(c, bits, dz, dw, threads))                                        \
      weight_gradients(c, bits, dz, dw, threads);                                                 \
  }                                                                                               \
  int input_gradient_##NAME(const T* dz, const T* w, int64_t images, int height, int width,       \
                            int channels, int outputs, int stride, T* dx, int threads) {          \
    const Convolution c{images, height, width, channels, outputs, stride};                        \
    return tiles::input_gradient(c, dz, w, dx, threads);                                          \
  }

#pragma GCC visibility push(default)
extern "C" {
EXPORTS(float, float32)
EXPORTS(Bfloat16, bfloat16)
}
#pragma GCC visibility pop
