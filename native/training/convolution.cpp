// The 3x3 convolution with padding 1 of +-1 with +-1; weight_gradient.cpp has the gradient.
//
// Maps are (images, height, width, channels) and weights (outputs, 3, 3, channels). The convolution
// counts the bits that differ: a sum of n products is n - 2 differences, which is exact. A pixel
// outside of the map has bits 0, as if it were -1, and what that adds is taken away again: the sum of
// the weights there.
#include <algorithm>
#include <cstring>
#include <vector>

#include "tiles.h"

namespace {

constexpr int LINE = 512;  // positions of a line that are worked on at once, at most
#ifdef __AVX512VPOPCNTDQ__
constexpr int ROWS = 8;    // outputs whose bits lie word by word, in one vector
#else
constexpr int ROWS = 4;
#endif

struct Weights {
  std::vector<uint64_t> bits;  // (outputs / ROWS, words, ROWS), those beyond the last output 0
  std::vector<int> sums;       // (TAPS, outputs)

  // From what ``pack`` makes of them.
  Weights(const Convolution& c, const uint8_t* packed)
      : bits(size_t(rounded(c.outputs)) * c.words(), 0), sums(size_t(TAPS) * c.outputs) {
    std::vector<uint64_t> row(c.words(), 0);
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(row.data());
    for (int o = 0; o < c.outputs; o++) {
      std::copy_n(packed + int64_t(o) * TAPS * c.bytes(), TAPS * c.bytes(), bytes);
      for (int i = 0; i < c.words(); i++) bits[(o / ROWS * c.words() + i) * ROWS + o % ROWS] = row[i];
      for (int tap = 0; tap < TAPS; tap++) {
        int ones = 0;
        for (int b = 0; b < c.bytes(); b++) ones += __builtin_popcount(bytes[tap * c.bytes() + b]);
        sums[tap * c.outputs + o] = 2 * ones - c.channels;
      }
    }
  }

  static int rounded(int outputs) { return (outputs + ROWS - 1) / ROWS * ROWS; }
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

// How many of the bits of ``row`` differ from those of each of ROWS outputs.
template <int WORDS>
inline void differences(const uint64_t* row, const uint64_t* weights, int words, int* counts) {
  const int count = WORDS ? WORDS : words;
#ifdef __AVX512VPOPCNTDQ__
  __m512i sums = _mm512_setzero_si512();
  for (int i = 0; i < count; i++) {
    const __m512i eight = _mm512_loadu_si512(weights + i * ROWS);
    const __m512i x = _mm512_xor_si512(_mm512_set1_epi64(int64_t(row[i])), eight);
    sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(x));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts), _mm512_cvtepi64_epi32(sums));
#elif defined(__AVX2__)
  const __m256i low = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  const __m256i bits_of = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  __m256i sums = zero;
  for (int first = 0; first < count; first += 31) {  // a byte holds the bits of 31
    __m256i bytes = zero;
    for (int i = first; i < std::min(count, first + 31); i++) {
      const auto* four = reinterpret_cast<const __m256i*>(weights + i * ROWS);
      const __m256i x = _mm256_xor_si256(_mm256_set1_epi64x(row[i]), _mm256_loadu_si256(four));
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(x, 4), low);
      bytes = _mm256_add_epi8(bytes, _mm256_shuffle_epi8(bits_of, _mm256_and_si256(x, low)));
      bytes = _mm256_add_epi8(bytes, _mm256_shuffle_epi8(bits_of, high));
    }
    sums = _mm256_add_epi64(sums, _mm256_sad_epu8(bytes, zero));
  }
  const __m256i even = _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(counts), _mm256_castsi256_si128(even));
#else
  int64_t sums[ROWS] = {};
  for (int i = 0; i < count; i++)
    for (int r = 0; r < ROWS; r++) sums[r] += __builtin_popcountll(row[i] ^ weights[i * ROWS + r]);
  std::copy(sums, sums + ROWS, counts);
#endif
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
    for (int o = 0; o < c.outputs; o += ROWS)
      differences<WORDS>(row, &weights.bits[size_t(o) * words], words, sums + o);
    for (int o = 0; o < c.outputs; o++) sums[o] = TAPS * c.channels - 2 * sums[o];
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
  choose(32, gather<32>, convolve_line<36, T>);
  choose(64, gather<64>, convolve_line<72, T>);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<uint64_t> rows(size_t(std::min(width, LINE)) * c.words());
    std::vector<int> sums(size_t(Weights::rounded(c.outputs)));
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

// Both operands as bits; false, with nothing done, if one of their values is neither +1 nor -1.
template <class T>
bool convolve_signs(const Convolution& c, const T* x, const T* w, uint8_t* bits, T* z,
                    int threads) {
  std::vector<uint8_t> weights(size_t(c.outputs) * TAPS * c.bytes());
  bool is_binary = pack(w, int64_t(c.outputs) * TAPS * c.channels, weights.data());
  if (!is_binary) return false;
  const int64_t line = int64_t(c.width) * c.channels;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : is_binary)
  for (int64_t i = 0; i < c.images * c.height; i++)
    is_binary = pack(x + i * line, line, bits + i * (line / 8)) && is_binary;
  if (is_binary && !tiles::convolve(c, x, w, z, threads))
    convolve(c, Weights(c, weights.data()), bits, z, threads);
  return is_binary;
}

}  // namespace

#define EXPORTS(T, NAME)                                                                          \
  int convolve_##NAME(const T* x, const T* w, int64_t images, int height, int width,              \
                      int channels, int outputs, int stride, uint8_t* bits, T* z, int threads) {  \
    const Convolution c{images, height, width, channels, outputs, stride};                        \
    return convolve_signs(c, x, w, bits, z, threads);                                             \
  }

#pragma GCC visibility push(default)
extern "C" {
EXPORTS(float, float32)
EXPORTS(Bfloat16, bfloat16)
}
#pragma GCC visibility pop
