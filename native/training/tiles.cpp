// Convolutions of +-1 and their gradients by matrix tiles of bfloat16 (AMX), whose sums are floats.
//
// One factor of every product is +1 or -1, which is exact in bfloat16, and the other one, of dz, is
// the sum of three bfloat16 where it is a float: so every product is exact, and of floats the sums
// are as near as those of fused multiply-adds; only what is smaller than 1e-33 loses bits, since tiles
// take denormal numbers for 0. Sums of +-1 are integers, and exact. Work is cut into pieces that do
// not depend on the number of threads, whose sums are added in their order: every number of threads
// gives the same bits.
#include "tiles.h"

#ifdef __AMX_BF16__

#include <algorithm>
#include <utility>
#include <vector>

#include "../amx.h"

namespace {

constexpr int DEPTH = 32;         // bfloat16 of a row of a factor: products that a sum takes at once
constexpr int SUMS = SIDE * SIDE;
constexpr int OUTPUTS = 32;       // of a piece of the gradient of weights
constexpr int PIECES = 16;        // so many are enough for all threads
constexpr int POSITIONS = 1024;   // images are joined until they have about as many
constexpr int NEAR = 256;         // positions whose factors for SIDE outputs the nearest cache holds

template <class T>
constexpr int PARTS = sizeof(T) == sizeof(float) ? 3 : 1;  // bfloat16 of a value of dz

int tiles_of(int count) { return (count + SIDE - 1) / SIDE; }

// Four tiles of sums: 0 and 1 of the rows ``one``, 2 and 3 of the rows ``two``, which are ``pitch``
// apart; 0 and 2 with the columns ``left``, 1 and 3 with ``right``. A step is a tile of columns, and
// one of rows for each part, ``apart`` from each other.
template <int PARTS>
struct Square {
  const uint16_t *one, *two, *left, *right;
  int64_t pitch, apart;

  // The (SIDE, SIDE) sums over the steps, whose rows lie at ``offsets``; with ``left`` alone the
  // first and the third.
  template <bool HAS_RIGHT>
  void sum(const std::vector<int64_t>& offsets, float* sums) const {
    const int64_t bytes = pitch * int64_t(sizeof(uint16_t));
    write_all();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t step = 0; step < offsets.size(); step++) {
      _tile_loadd(6, (left + step * SIDE * DEPTH), 64);
      if (HAS_RIGHT) _tile_loadd(7, (right + step * SIDE * DEPTH), 64);
      for (int part = 0; part < PARTS; part++) {
        _tile_loadd(4, (one + offsets[step] + part * apart), bytes);
        _tile_loadd(5, (two + offsets[step] + part * apart), bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (HAS_RIGHT) _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        if (HAS_RIGHT) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sums, 64);
    if (HAS_RIGHT) _tile_stored(1, (sums + SUMS), 64);
    _tile_stored(2, (sums + 2 * SUMS), 64);
    if (HAS_RIGHT) _tile_stored(3, (sums + 3 * SUMS), 64);
  }
};

// Three (SIDE, SIDE) sums, of a row of taps, += rows x columns[tap] over ``steps`` steps of DEPTH
// positions. Rows are ``pitch`` apart.
template <int PARTS>
inline void add_taps(const uint16_t* rows, int64_t pitch, int64_t apart,
                     const uint16_t* const (&columns)[3], int64_t steps, float* sums) {
  const int64_t bytes = pitch * int64_t(sizeof(uint16_t));
  write_all();
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, (sums + SUMS), 64);
  _tile_loadd(2, (sums + 2 * SUMS), 64);
#define TAP(n)                                              \
  _tile_loadd(3, (columns[n] + step * SIDE * DEPTH), 64);     \
  _tile_dpbf16ps(n, 4, 3);                                  \
  if (PARTS > 1) {                                          \
    _tile_dpbf16ps(n, 5, 3);                                \
    _tile_dpbf16ps(n, 6, 3);                                \
  }
  for (int64_t step = 0; step < steps; step++, rows += DEPTH) {
    _tile_loadd(4, rows, bytes);
    if (PARTS > 1) {
      _tile_loadd(5, (rows + apart), bytes);
      _tile_loadd(6, (rows + 2 * apart), bytes);
    }
    TAP(0) TAP(1) TAP(2)
  }
#undef TAP
  _tile_stored(0, sums, 64);
  _tile_stored(1, (sums + SUMS), 64);
  _tile_stored(2, (sums + 2 * SUMS), 64);
}

// The positions of some images, row behind row, with zeros between them: one behind each row and a
// row before each image, so that every tap of every position is a position.
struct Plane {
  int images, height, width;
  int64_t pitch() const { return width + 1; }
  int64_t size() const { return (images * (height + 1) + 1) * pitch() + 1; }
  int64_t at(int image, int row) const {
    return (int64_t(image) * (height + 1) + row + 1) * pitch() + 1;
  }
  int64_t tap(int number) const { return (number / 3 - 1) * pitch() + number % 3 - 1; }
};

// At most so many images together, as have about POSITIONS.
Plane plane_of(const Convolution& c, int64_t images) {
  Plane plane{1, c.height, c.width};
  plane.images = int(std::max<int64_t>(1, std::min(images, POSITIONS / plane.size())));
  return plane;
}

// A mask of the first ``count`` of 16 lanes.
inline __mmask16 first(int count) { return __mmask16(count >= 16 ? 0xffff : (1 << count) - 1); }

// Values as the bfloat16 whose sum they are, in PARTS runs that are ``apart`` from each other.
inline void split(const Bfloat16* from, int64_t count, uint16_t* to, int64_t) {
  __builtin_memcpy(to, from, size_t(count) * sizeof(uint16_t));
}

inline void split(const float* from, int64_t count, uint16_t* to, int64_t apart, int parts = 3) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first(int(std::min<int64_t>(16, count - i)));
    __m512 rest = _mm512_maskz_loadu_ps(lanes, from + i);
    for (int part = 0; part < parts; part++) {
      const __m256i near = (__m256i)_mm512_cvtneps_pbh(rest);
      _mm256_mask_storeu_epi16(to + part * apart + i, lanes, near);
      const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(near), 16);
      rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(wide));
    }
  }
}

// ±1 of floats, which are exact.
inline void narrow(const Bfloat16* from, int64_t count, uint16_t* to) { split(from, count, to, 0); }
inline void narrow(const float* from, int64_t count, uint16_t* to) { split(from, count, to, 0, 1); }

inline void store_lanes(float* to, __m512 x, __mmask16 lanes) {
  _mm512_mask_storeu_ps(to, lanes, x);
}
inline void store_lanes(Bfloat16* to, __m512 x, __mmask16 lanes) {
  _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(x));
}

// Weights of +-1 as bfloat16.
template <class T>
class Signed {
  const Convolution& c;
  Buffer<uint16_t> values;

 public:
  Signed(const Convolution& c, const T* w) : c(c), values(size_t(c.outputs) * TAPS * c.channels) {
    narrow(w, int64_t(c.outputs) * TAPS * c.channels, values.data());
  }
  const uint16_t* at(int output, int tap) const {
    return values.data() + (int64_t(output) * TAPS + tap) * c.channels;
  }
};

// The sums over the nine neighbours of the positions of a plane: a convolution of ``depth`` channels
// with weights, at every position or at those of a stride.
template <int PARTS>
class Neighbours {
  const int depth, channels, steps;  // ``steps``: of a row of three neighbours
  const int stride;
  const int64_t apart;               // of a part of the plane from the next
  Buffer<uint16_t> columns;          // for every SIDE channels, all steps
  std::vector<int64_t> offsets;      // of the rows of each step
  std::vector<int64_t> starts;       // the first position of each tile
  std::vector<std::vector<int>> pixels;  // which pixels its rows are, or -1

  uint16_t* of(int channel) { return columns.data() + size_t(channel) * 3 * steps * DEPTH; }

 public:
  // ``pairs(tap, input, output, to)`` writes the weights of an input and the next for SIDE outputs,
  // or as many as there are.
  template <class Pairs>
  Neighbours(const Plane& plane, int depth, int channels, int stride, int64_t apart,
             const Pairs& pairs)
      : depth(depth),
        channels(channels),
        steps((3 * depth + DEPTH - 1) / DEPTH),
        stride(stride),
        apart(apart),
        columns(size_t(tiles_of(channels)) * SIDE * 3 * steps * DEPTH) {
    for (int o = 0; o < channels; o += SIDE)
      for (int tap = 0; tap < TAPS; tap++)
        for (int i = 0; i < depth; i += 2) {
          const int at = tap % 3 * depth + i, step = tap / 3 * steps + at / DEPTH;
          pairs(tap, i, o, of(o) + (step * SIDE + at % DEPTH / 2) * DEPTH);
        }
    for (int row = 0; row < 3; row++)
      for (int step = 0; step < steps; step++)
        offsets.push_back(plane.tap(3 * row) * depth + step * DEPTH);
    place(plane);
  }

  // The first ``count`` pixels of the result, (pixels, channels), of the images in ``values``. All
  // positions for some channels, then the next: there may be more columns than a cache holds.
  template <class T>
  void add(const uint16_t* values, int64_t count, T* to) {
    alignas(64) float sums[4 * SUMS];
    const auto rows = [&](size_t tile) { return values + starts[tile] * depth; };
    for (int k = 0; k < channels; k += 2 * SIDE)
      for (size_t tile = 0; tile < starts.size() && pixels[tile][0] < count; tile += 2) {
        const bool is_last = tile + 1 == starts.size(), is_narrow = k + SIDE >= channels;
        const uint16_t* const right = is_narrow ? nullptr : of(k + SIDE);
        const Square<PARTS> square{rows(tile), rows(is_last ? tile : tile + 1), of(k), right,
                                   int64_t(stride) * depth, apart};
        if (is_narrow)
          square.template sum<false>(offsets, sums);
        else
          square.template sum<true>(offsets, sums);
        for (int i = 0; i < (is_last ? 1 : 2) * SIDE; i++) {
          const int64_t pixel = pixels[tile + i / SIDE][i % SIDE];
          if (pixel < 0 || pixel >= count) continue;
          const float* from = sums + i / SIDE * 2 * SUMS + i % SIDE * SIDE;
          T* here = to + pixel * channels + k;
          store_lanes(here, _mm512_load_ps(from), first(channels - k));
          if (!is_narrow)
            store_lanes(here + SIDE, _mm512_load_ps(from + SUMS), first(channels - k - SIDE));
        }
      }
  }

 private:
  // Without a stride, all positions between the first and the last pixel of an image are one row.
  void place(const Plane& plane) {
    const int height = (plane.height - 1) / stride + 1, width = (plane.width - 1) / stride + 1;
    const int64_t pitch = stride == 1 ? plane.pitch() : width;
    const int lines = stride == 1 ? 1 : height;
    const int64_t length = stride == 1 ? height * pitch - 1 : width;
    for (int line = 0; line < plane.images * lines; line++)
      for (int64_t at = 0; at < length; at += SIDE) {
        const int image = line / lines, first = line % lines;
        starts.push_back(plane.at(image, first * stride) + at * stride);
        pixels.emplace_back(SIDE, -1);
        for (int i = 0; i < std::min<int64_t>(SIDE, length - at); i++)
          if ((at + i) % pitch < width)
            pixels.back()[i] = int((int64_t(image) * height + first + (at + i) / pitch) * width +
                                   (at + i) % pitch);
      }
  }
};

// Eight rows of eight values as columns.
inline void transpose(const uint16_t* from, int from_step, uint16_t* to, int64_t to_step) {
  __m128i rows[8], pairs[8], fours[8];
  for (int i = 0; i < 8; i++)
    rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_step));
  for (int i = 0; i < 4; i++) {
    pairs[i] = _mm_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]);
    pairs[4 + i] = _mm_unpackhi_epi16(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 8; i += 2) {
    fours[i] = _mm_unpacklo_epi32(pairs[i], pairs[i + 1]);
    fours[i + 1] = _mm_unpackhi_epi32(pairs[i], pairs[i + 1]);
  }
  for (int i = 0; i < 8; i++) {
    const __m128i low = fours[i / 4 * 4 + i / 2 % 2], high = fours[i / 4 * 4 + i / 2 % 2 + 2];
    const __m128i column = i % 2 ? _mm_unpackhi_epi64(low, high) : _mm_unpacklo_epi64(low, high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_step), column);
  }
}

// dz of some outputs of some images, position by position for each output: the rows of tiles.
template <class T>
class Rows {
  const Convolution& c;
  const int first, outputs, wide, columns;  // ``wide``: outputs in whole tiles
  Buffer<uint16_t> line, values;

 public:
  const int64_t pitch;  // of an output

  Rows(const Convolution& c, const Plane& plane, int first, int outputs)
      : c(c),
        first(first),
        outputs(outputs),
        wide(tiles_of(outputs) * SIDE),
        columns((c.out_width() + 7) / 8 * 8),
        line(size_t(PARTS<T>) * columns * wide),
        pitch((plane.size() / DEPTH + 2) / 2 * 2 * DEPTH + DEPTH) {
    values = Buffer<uint16_t>(size_t(PARTS<T>) * part());
  }
  int64_t part() const { return pitch * wide; }
  const uint16_t* of(int tile) { return values.data() + int64_t(tile) * SIDE * pitch; }

  // ``number``: the image's place in the plane.
  void fill(const Plane& plane, const T* dz, int64_t image, int number) {
    const int width = c.out_width(), apart = columns * wide;
    for (int row = 0; row < c.out_height(); row++) {
      const T* from = dz + (image * c.out_height() + row) * width * c.outputs + first;
      if (wide == c.outputs)
        split(from, int64_t(width) * wide, line.data(), apart);
      else
        for (int i = 0; i < width; i++)
          split(from + int64_t(i) * c.outputs, outputs, line.data() + i * wide, apart);
      const int64_t at = plane.at(number, row * c.stride);
      for (int part = 0; part < PARTS<T>; part++)
        for (int o = 0; o < wide; o += 8)
          for (int i = 0; i < columns; i += 8) {
            const uint16_t* block = line.data() + part * apart + i * wide + o;
            uint16_t* to = values.data() + (int64_t(part) * wide + o) * pitch + at + i * c.stride;
            if (c.stride == 1) {  // what follows the last column is 0, or is written later
              transpose(block, wide, to, pitch);
              continue;
            }
            uint16_t eight[8 * 8];
            transpose(block, wide, eight, 8);
            for (int j = 0; j < 8; j++)
              for (int k = 0; k < std::min(8, width - i); k++)
                to[j * pitch + k * c.stride] = eight[j * 8 + k];
          }
    }
  }
};

// The signs of some images as the columns of tiles: for every SIDE channels, pairs of positions that
// begin with an even one, and those that begin with an odd one, so that each tap's begin a column.
class Signs {
  const Convolution& c;
  const int64_t before, pairs;  // positions before the first, which taps read; pairs of all
  Buffer<uint8_t> bits, inside;
  Buffer<uint16_t> values;

 public:
  Signs(const Convolution& c, const Plane& plane)
      : c(c),
        before(plane.pitch() / 2 * 2 + 2),
        pairs(before + (plane.size() + DEPTH) / 2),
        bits(size_t(2 * pairs + 2) * c.bytes() + 8),
        inside(size_t(2 * pairs + 2)),
        values(size_t(2) * tiles_of(c.channels) * pairs * DEPTH) {}

  // The columns of a tile at the position ``at``, which is even, + an offset.
  const uint16_t* of(int tile, int64_t at, int64_t offset) {
    const int64_t first = before + at + offset;
    return values.data() + ((2 * tile + (first & 1)) * pairs + first / 2) * DEPTH;
  }

  void fill(const Plane& plane, const uint8_t* from) {
    std::fill_n(inside.data(), 2 * pairs + 2, uint8_t(0));
    const int64_t bytes = int64_t(c.width) * c.bytes();
    for (int image = 0; image < plane.images; image++)
      for (int row = 0; row < c.height; row++, from += bytes) {
        const int64_t at = before + plane.at(image, row);
        std::copy_n(from, bytes, bits.data() + at * c.bytes());
        std::fill_n(inside.data() + at, c.width, uint8_t(1));
      }
    for (int64_t at = 0; at < 2 * pairs; at++) fill_pair(at);
  }

 private:
  void fill_pair(int64_t at) {
    constexpr uint32_t EVEN = 0x55555555, ODD = 0xaaaaaaaa;
    const __m512i plus = _mm512_set1_epi16(0x3f80), minus = _mm512_set1_epi16(int16_t(0xbf80));
    const uint32_t known = (inside.data()[at] ? EVEN : 0) | (inside.data()[at + 1] ? ODD : 0);
    const uint8_t *one = bits.data() + at * c.bytes(), *two = one + c.bytes();
    uint16_t* to = values.data() + ((at & 1) * pairs + at / 2) * DEPTH;
    for (int tile = 0; tile < tiles_of(c.channels); tile++, to += 2 * pairs * DEPTH) {
      uint16_t even, odd;
      __builtin_memcpy(&even, one + 2 * tile, 2);
      __builtin_memcpy(&odd, two + 2 * tile, 2);
      const uint32_t both = _pdep_u32(even, EVEN) | _pdep_u32(odd, ODD);
      const __m512i signs = _mm512_mask_blend_epi16(both, minus, plus);
      _mm512_store_si512(to, _mm512_maskz_mov_epi16(known, signs));
    }
  }
};

// sums (channels / SIDE, outputs / SIDE, TAPS) tiles += those over the positions of images.
template <class T>
void add_images(const Convolution& c, const uint8_t* bits, const T* dz, int first, int outputs,
                int64_t image, int64_t end, float* sums) {
  Plane plane = plane_of(c, end - image);
  Rows<T> rows(c, plane, first, outputs);
  Signs signs(c, plane);
  for (; image < end; image += plane.images) {
    plane.images = int(std::min<int64_t>(plane.images, end - image));
    for (int i = 0; i < plane.images; i++) rows.fill(plane, dz, image + i, i);
    signs.fill(plane, bits + image * c.height * c.width * c.bytes());
    for (int64_t from = 0; from < plane.size(); from += NEAR) {
      const int64_t steps = (std::min<int64_t>(NEAR, plane.size() - from) + DEPTH - 1) / DEPTH;
      for (int of = 0; of < tiles_of(outputs); of++)
        for (int tile = 0; tile < tiles_of(c.channels); tile++)
          for (int tap = 0; tap < TAPS; tap += 3) {
            const int64_t offset = plane.tap(tap);
            const uint16_t* const columns[3] = {signs.of(tile, from, offset),
                                                signs.of(tile, from, offset + 1),
                                                signs.of(tile, from, offset + 2)};
            add_taps<PARTS<T>>(rows.of(of) + from, rows.pitch, rows.part(), columns, steps,
                               sums + (int64_t(tile * tiles_of(outputs) + of) * TAPS + tap) * SUMS);
          }
    }
  }
}

// The gradient of the weights of ``outputs`` outputs from their sums.
template <class T>
void store_sums(const Convolution& c, int first, int outputs, const float* sums, T* dw) {
  const int all = tiles_of(outputs);
  for (int o = 0; o < outputs; o++)
    for (int tap = 0; tap < TAPS; tap++)
      for (int k = 0; k < c.channels; k++) {
        const int64_t tile = (int64_t(k / SIDE) * all + o / SIDE) * TAPS + tap;
        store(dw + (int64_t(first + o) * TAPS + tap) * c.channels + k,
              sums[tile * SUMS + o % SIDE * SIDE + k % SIDE]);
      }
}

// The result of all images; fill(image, where its first pixel goes) for each.
template <class T, class N, class Fill>
void each_plane(const Convolution& c, const Plane& plane, N& neighbours, int depth,
                int64_t size, int64_t pixels, int64_t channels, T* to, int threads,
                const Fill& fill) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Tiles tiles;
    Buffer<uint16_t> values{size_t(size)};
#pragma omp for schedule(static)
    for (int64_t image = 0; image < c.images; image += plane.images) {
      const int64_t count = std::min<int64_t>(plane.images, c.images - image);
      for (int i = 0; i < count; i++) fill(image + i, values.data() + plane.at(i, 0) * depth);
      neighbours.add(values.data(), count * pixels, to + image * pixels * channels);
    }
  }
}

// Tiles read behind the last position, where nothing but zeros lies.
int64_t padded(const Plane& plane, int stride) {
  return plane.size() + int64_t(2) * SIDE * stride + DEPTH;
}

}  // namespace

template <class T>
bool tiles::convolve(const Convolution& c, const T* x, const T* w, T* z, int threads) {
  if (!are_permitted()) return false;
  const Plane plane = plane_of(c, c.images / PIECES);
  const Signed<T> weights(c, w);
  const auto pairs = [&](int tap, int k, int o, uint16_t* to) {
    for (int i = 0; i < std::min(SIDE, c.outputs - o); i++)
      __builtin_memcpy(to + 2 * i, weights.at(o + i, tap) + k, 2 * sizeof(uint16_t));
  };
  Neighbours<1> neighbours(plane, c.channels, c.outputs, c.stride, 0, pairs);
  const int64_t line = int64_t(c.width) * c.channels;
  each_plane(c, plane, neighbours, c.channels, padded(plane, c.stride) * c.channels,
             int64_t(c.out_height()) * c.out_width(), c.outputs, z, threads,
             [&](int64_t image, uint16_t* to) {
    for (int row = 0; row < c.height; row++)
      narrow(x + (image * c.height + row) * line, line, to + row * plane.pitch() * c.channels);
  });
  return true;
}

template <class T>
bool tiles::input_gradient(const Convolution& c, const T* dz, const T* w, T* dx, int threads) {
  if (!are_permitted()) return false;
  const Plane plane = plane_of(c, c.images / PIECES);
  const int depth = (c.outputs + 1) / 2 * 2;  // an odd number has a zero behind it
  const int64_t part = padded(plane, 1) * depth, line = int64_t(c.out_width()) * c.outputs;
  const Signed<T> weights(c, w);
  const auto pairs = [&](int tap, int o, int k, uint16_t* to) {
    const __mmask16 lanes = first(c.channels - k), more = o + 1 < c.outputs ? lanes : 0;
    const uint16_t* one = weights.at(o, TAPS - 1 - tap) + k;
    const uint16_t* two = one + int64_t(TAPS) * c.channels;
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, one));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(more, two));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  };
  Neighbours<PARTS<T>> neighbours(plane, depth, c.channels, 1, part, pairs);
  each_plane(c, plane, neighbours, depth, PARTS<T> * part, int64_t(c.height) * c.width,
             c.channels, dx, threads,
             [&](int64_t image, uint16_t* to) {
    for (int row = 0; row < c.out_height(); row++) {
      const T* from = dz + (image * c.out_height() + row) * line;
      uint16_t* here = to + row * c.stride * plane.pitch() * depth;
      if (c.stride == 1 && depth == c.outputs)
        split(from, line, here, part);
      else
        for (int i = 0; i < c.out_width(); i++)
          split(from + i * c.outputs, c.outputs, here + int64_t(i) * c.stride * depth, part);
    }
  });
  return true;
}

template <class T>
bool tiles::weight_gradient(const Convolution& c, const uint8_t* bits, const T* dz, T* dw,
                            int threads) {
  if (!are_permitted()) return false;
  const int groups = (c.outputs + OUTPUTS - 1) / OUTPUTS;
  const int chunks = int(std::min<int64_t>(c.images, (PIECES + groups - 1) / groups));
  std::vector<Buffer<float>> sums(size_t(groups) * chunks);
  const auto outputs = [&](int group) { return std::min(OUTPUTS, c.outputs - group * OUTPUTS); };
  const auto size = [&](int group) {
    return size_t(tiles_of(c.channels)) * tiles_of(outputs(group)) * TAPS * SUMS;
  };
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    {
      const Tiles tiles;
#pragma omp for schedule(dynamic)
      for (int i = 0; i < groups * chunks; i++) {
        const int group = i / chunks;
        const int64_t chunk = i % chunks;
        sums[i] = Buffer<float>(size(group));
        add_images(c, bits, dz, group * OUTPUTS, outputs(group), c.images * chunk / chunks,
                   c.images * (chunk + 1) / chunks, sums[i].data());
      }
    }
#pragma omp for schedule(static)
    for (int group = 0; group < groups; group++) {
      float* total = sums[group * chunks].data();
      for (int chunk = 1; chunk < chunks; chunk++) {
        const float* more = sums[group * chunks + chunk].data();
        for (size_t i = 0; i < size(group); i++) total[i] += more[i];
      }
      store_sums(c, group * OUTPUTS, outputs(group), total, dw);
    }
  }
  return true;
}

#else

template <class T>
bool tiles::convolve(const Convolution&, const T*, const T*, T*, int) {
  return false;
}

template <class T>
bool tiles::input_gradient(const Convolution&, const T*, const T*, T*, int) {
  return false;
}

template <class T>
bool tiles::weight_gradient(const Convolution&, const uint8_t*, const T*, T*, int) {
  return false;
}

#endif

#define INSTANCES(T)                                                                         \
  template bool tiles::convolve<T>(const Convolution&, const T*, const T*, T*, int);         \
  template bool tiles::input_gradient<T>(const Convolution&, const T*, const T*, T*, int);   \
  template bool tiles::weight_gradient<T>(const Convolution&, const uint8_t*, const T*, T*, int);
INSTANCES(float)
INSTANCES(Bfloat16)
