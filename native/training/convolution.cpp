// The 3x3 convolution with padding 1 of +-1 with +-1, and the gradient of its weights.
//
// Maps are (images, height, width, channels) and weights (outputs, 3, 3, channels). As bits, a 1 is
// a +1, and of a pixel or a weight 8 channels are a byte. The convolution counts the bits that
// differ: a sum of n products is n - 2 differences, which is exact. A pixel outside of the map has
// bits 0, as if it were -1, and what that adds is taken away again: the sum of the weights there.
//
// The gradient of a weight is a sum over all positions. Its order is the same for every number of
// threads, which share the outputs.
#include <algorithm>
#include <cstring>
#include <vector>

#include "values.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

constexpr int TAPS = 9;
constexpr int LINE = 512;  // positions of a line that are worked on at once, at most

struct Convolution {
  int64_t images;
  int height, width, channels, outputs, stride;

  int bytes() const { return channels / 8; }
  int words() const { return (TAPS * bytes() + 7) / 8; }
  int out_height() const { return (height - 1) / stride + 1; }
  int out_width() const { return (width - 1) / stride + 1; }
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
  unsigned byte = 0;
  for (int k = 0; k < 8; k++) {
    byte |= unsigned(~x[k].bits >> 15 & 1) << k;
    others |= (x[k].bits & 0x7fff) ^ 0x3f80;
  }
  return byte;
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

struct Weights {
  std::vector<uint64_t> bits;  // (outputs, words)
  std::vector<int> sums;       // (TAPS, outputs)

  template <class T>
  Weights(const Convolution& c, const T* w, bool& is_binary)
      : bits(size_t(c.outputs) * c.words(), 0), sums(size_t(TAPS) * c.outputs) {
    is_binary = true;
    for (int o = 0; o < c.outputs; o++) {
      uint8_t* row = reinterpret_cast<uint8_t*>(&bits[size_t(o) * c.words()]);
      is_binary &= pack(w + int64_t(o) * TAPS * c.channels, TAPS * c.channels, row);
      for (int tap = 0; tap < TAPS; tap++) {
        int ones = 0;
        for (int b = 0; b < c.bytes(); b++) ones += __builtin_popcount(row[tap * c.bytes() + b]);
        sums[tap * c.outputs + o] = 2 * ones - c.channels;
      }
    }
  }
};

// The bits of the nine pixels around each of ``count`` positions of a line, (count, words).
template <int BYTES>
void gather(const Convolution& c, const uint8_t* image, int line, int first, int count,
            uint64_t* rows) {
  const int bytes = BYTES ? BYTES : c.bytes(), step = c.words() * 8;
  uint8_t* const row = reinterpret_cast<uint8_t*>(rows);
  std::memset(row, 0, size_t(count) * step);
  for (int y = 0; y < 3; y++) {
    const int h = line * c.stride - 1 + y;
    if (h < 0 || h >= c.height) continue;
    const uint8_t* from = image + int64_t(h) * c.width * bytes;
    for (int i = 0; i < count; i++) {
      const int w = (first + i) * c.stride - 1;
      uint8_t* to = row + int64_t(i) * step + 3 * y * bytes;
      if (w >= 0 && w + 2 < c.width)
        std::memcpy(to, from + w * bytes, size_t(3) * bytes);
      else
        for (int x = std::max(0, -w); x < 3 && w + x < c.width; x++)
          std::memcpy(to + x * bytes, from + (w + x) * bytes, size_t(bytes));
    }
  }
}

template <int WORDS>
inline int differences(const uint64_t* a, const uint64_t* b, int words) {
  int64_t sum = 0;
  for (int i = 0; i < (WORDS ? WORDS : words); i++) sum += __builtin_popcountll(a[i] ^ b[i]);
  return int(sum);
}

// What the pixels outside of the map have added at a position of a line.
inline void add_border(const Convolution& c, const Weights& weights, int line, int column,
                       int* sums) {
  const int h = line * c.stride, w = column * c.stride;
  if (h > 0 && h < c.height - 1 && w > 0 && w < c.width - 1) return;
  for (int tap = 0; tap < TAPS; tap++) {
    const int y = h - 1 + tap / 3, x = w - 1 + tap % 3;
    if (y >= 0 && y < c.height && x >= 0 && x < c.width) continue;
    for (int o = 0; o < c.outputs; o++) sums[o] += weights.sums[tap * c.outputs + o];
  }
}

template <int WORDS, class T>
void convolve_line(const Convolution& c, const Weights& weights, const uint64_t* rows, int line,
                   int first, int count, int* sums, T* z) {
  const int words = WORDS ? WORDS : c.words();
  for (int i = 0; i < count; i++) {
    const uint64_t* row = rows + int64_t(i) * words;
    for (int o = 0; o < c.outputs; o++)
      sums[o] = TAPS * c.channels -
                2 * differences<WORDS>(row, &weights.bits[size_t(o) * words], words);
    add_border(c, weights, line, first + i, sums);
    for (int o = 0; o < c.outputs; o++) store(z + int64_t(i) * c.outputs + o, float(sums[o]));
  }
}

template <class T>
void convolve(const Convolution& c, const Weights& weights, const uint8_t* bits, T* z,
              int threads) {
  const int height = c.out_height(), width = c.out_width();
  auto gather_of = gather<0>;
  auto line_of = convolve_line<0, T>;
  const auto choose = [&](int bytes, auto gathering, auto convolving) {
    if (c.bytes() == bytes) gather_of = gathering, line_of = convolving;
  };
  choose(2, gather<2>, convolve_line<3, T>);
  choose(4, gather<4>, convolve_line<5, T>);
  choose(8, gather<8>, convolve_line<9, T>);
  choose(16, gather<16>, convolve_line<18, T>);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<uint64_t> rows(size_t(std::min(width, LINE)) * c.words());
    std::vector<int> sums(size_t(c.outputs));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < c.images * height; i++) {
      const int64_t image = i / height;
      const int line = int(i % height);
      const uint8_t* here = bits + image * c.height * c.width * c.bytes();
      for (int first = 0; first < width; first += LINE) {
        const int count = std::min(LINE, width - first);
        gather_of(c, here, line, first, count, rows.data());
        line_of(c, weights, rows.data(), line, first, count, sums.data(),
                z + (i * width + first) * c.outputs);
      }
    }
  }
}

// Vectors of floats, of the widest kind that the processor has.
#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
constexpr int ROWS = 4, COLUMNS = 2;  // outputs and vectors of channels of a tile

// sums (ROWS, COLUMNS * LANES) += the products of dz and x at ``count`` positions of a line.
inline void add_tile(const float* dz, int dz_step, const float* x, int x_step, int count,
                     Vector (&sums)[ROWS][COLUMNS]) {
  for (int i = 0; i < count; i++, dz += dz_step, x += x_step)
    for (int v = 0; v < COLUMNS; v++) {
      Vector here = *reinterpret_cast<const Vector*>(x + v * LANES);
#ifdef __x86_64__
      asm("" : "+x"(here));  // read once, and not with each product
#endif
      for (int o = 0; o < ROWS; o++) sums[o][v] += here * dz[o];
    }
}

// The pixels of lines of an image as floats, (width, channels), ``channels`` rounded up to a tile.
struct Lines {
  const Convolution& c;
  const int channels;
  std::vector<float> values;
  int held[3] = {-1, -1, -1};

  explicit Lines(const Convolution& c)
      : c(c),
        channels((c.channels + COLUMNS * LANES - 1) / (COLUMNS * LANES) * COLUMNS * LANES),
        values(size_t(3) * c.width * channels, 0.0f) {}

  const float* line(const uint8_t* image, int h) {
    float* first = &values[size_t(h % 3) * c.width * channels];
    if (held[h % 3] == h) return first;
    held[h % 3] = h;
    const uint8_t* bits = image + int64_t(h) * c.width * c.bytes();
    for (int w = 0; w < c.width; w++)
      unpack(bits + w * c.bytes(), c.channels, first + int64_t(w) * channels);
    return first;
  }
};

// A line of dz as floats, (width, outputs), ``outputs`` of them from ``first`` on.
template <class T>
inline void widen(const Convolution& c, const T* dz, int first, int outputs, float* line) {
  for (int w = 0; w < c.out_width(); w++)
    for (int o = 0; o < outputs; o++)
      line[w * outputs + o] =
          first + o < c.outputs ? load(dz + int64_t(w) * c.outputs + first + o) : 0.0f;
}

// The gradient of the weights of ``outputs`` outputs from ``first`` on: (outputs, TAPS, channels).
template <class T>
void weight_gradient(const Convolution& c, const uint8_t* bits, const T* dz, int first,
                     int outputs, T* dw) {
  Lines lines(c);
  const int width = c.out_width(), channels = lines.channels;
  std::vector<float> gradient(size_t(width) * outputs);
  std::vector<float> sums(size_t(outputs) * TAPS * channels, 0.0f);
  for (int64_t image = 0; image < c.images; image++) {
    std::fill(lines.held, lines.held + 3, -1);
    const uint8_t* here = bits + image * c.height * c.width * c.bytes();
    for (int line = 0; line < c.out_height(); line++) {
      widen(c, dz + (image * c.out_height() + line) * width * c.outputs, first, outputs,
            gradient.data());
      for (int tap = 0; tap < TAPS; tap++) {
        const int h = line * c.stride - 1 + tap / 3, shift = tap % 3 - 1;
        if (h < 0 || h >= c.height) continue;
        const int from = shift < 0 ? 1 : 0;  // the first position whose tap lies in the map
        const int last = c.width - 1 - shift;  // in the map's columns; -1 in a map of one
        const int end = last < 0 ? 0 : std::min(width, last / c.stride + 1);
        const float* x = lines.line(here, h) + (from * c.stride + shift) * channels;
        for (int o = 0; o < outputs; o += ROWS)
          for (int k = 0; k < channels; k += COLUMNS * LANES) {
            Vector tile[ROWS][COLUMNS];
            float* at[ROWS];
            for (int r = 0; r < ROWS; r++) {
              at[r] = &sums[(size_t(o + r) * TAPS + tap) * channels + k];
              for (int v = 0; v < COLUMNS; v++)
                tile[r][v] = *reinterpret_cast<Vector*>(at[r] + v * LANES);
            }
            add_tile(&gradient[size_t(from) * outputs + o], outputs, x + k, c.stride * channels,
                     end - from, tile);
            for (int r = 0; r < ROWS; r++)
              for (int v = 0; v < COLUMNS; v++)
                *reinterpret_cast<Vector*>(at[r] + v * LANES) = tile[r][v];
          }
      }
    }
  }
  for (int o = 0; o < outputs && first + o < c.outputs; o++)
    for (int tap = 0; tap < TAPS; tap++)
      for (int k = 0; k < c.channels; k++)
        store(dw + (int64_t(first + o) * TAPS + tap) * c.channels + k,
              sums[(size_t(o) * TAPS + tap) * channels + k]);
}

template <class T>
void weight_gradients(const Convolution& c, const uint8_t* bits, const T* dz, T* dw, int threads) {
  constexpr int OUTPUTS = 16;  // of a piece, whose sums stay near
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int first = 0; first < c.outputs; first += OUTPUTS)
    weight_gradient(c, bits, dz, first, OUTPUTS, dw);
}

// Both operands as bits; false, with nothing done, if one of their values is neither +1 nor -1.
template <class T>
bool convolve_signs(const Convolution& c, const T* x, const T* w, uint8_t* bits, T* z,
                    int threads) {
  bool is_binary;
  const Weights weights(c, w, is_binary);
  if (!is_binary) return false;
  const int64_t line = int64_t(c.width) * c.channels;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : is_binary)
  for (int64_t i = 0; i < c.images * c.height; i++)
    is_binary = pack(x + i * line, line, bits + i * (line / 8)) && is_binary;
  if (is_binary) convolve(c, weights, bits, z, threads);
  return is_binary;
}

}  // namespace

#define EXPORTS(T, NAME)                                                                          \
  int convolve_##NAME(const T* x, const T* w, int64_t images, int height, int width,              \
                      int channels, int outputs, int stride, uint8_t* bits, T* z, int threads) {  \
    const Convolution c{images, height, width, channels, outputs, stride};                        \
    return convolve_signs(c, x, w, bits, z, threads);                                             \
  }                                                                                               \
  void weight_gradient_##NAME(const uint8_t* bits, const T* dz, int64_t images, int height,       \
                              int width, int channels, int outputs, int stride, T* dw,            \
                              int threads) {                                                      \
    const Convolution c{images, height, width, channels, outputs, stride};                        \
    weight_gradients(c, bits, dz, dw, threads);                                                   \
  }

#pragma GCC visibility push(default)
extern "C" {
EXPORTS(float, float32)
EXPORTS(Bfloat16, bfloat16)
}
#pragma GCC visibility pop
