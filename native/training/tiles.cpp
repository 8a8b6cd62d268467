// Gradients by matrix tiles of bfloat16 (AMX), whose sums are floats.
//
// One factor of every product is +1 or -1, which is exact in bfloat16, and the other one, of dz, is
// the sum of three bfloat16 where it is a float: so every product is exact, and of floats the sums
// are as near as those of fused multiply-adds. Work is cut into pieces that do not depend on the
// number of threads, whose sums are added in their order: every number of threads gives the same
// bits.
#include "tiles.h"

#ifdef __AMX_BF16__

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace {

constexpr int SIDE = 16;          // rows of a tile, and floats of a row of sums
constexpr int DEPTH = 32;         // bfloat16 of a row of a factor: products that a sum takes at once
constexpr int SUMS = SIDE * SIDE;
constexpr int JOBS = 6;           // tiles of sums that are worked on together
constexpr int OUTPUTS = 64;       // of a piece of the gradient of weights
constexpr int PIECES = 32;        // so many are enough for all threads
constexpr int POSITIONS = 1024;   // images are joined until they have about as many

template <class T>
constexpr int PARTS = sizeof(T) == sizeof(float) ? 3 : 1;  // bfloat16 of a value of dz

int tiles_of(int count) { return (count + SIDE - 1) / SIDE; }

// Whether the system lets this process use tiles, which it has to ask for.
bool are_permitted() {
  static const bool yes = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return yes;
}

// Eight full tiles for the calling thread, as long as this lives.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    std::fill(config.bytes, config.bytes + 8, uint16_t(64));
    std::fill(config.rows, config.rows + 8, uint8_t(SIDE));
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// Zeros that begin with a line of the cache.
template <class T>
class Buffer {
  struct alignas(64) Line {
    T values[64 / sizeof(T)] = {};
  };
  std::vector<Line> lines;

 public:
  explicit Buffer(size_t count = 0) : lines((count * sizeof(T) + 63) / 64) {}
  T* data() { return lines.empty() ? nullptr : lines.data()->values; }
};

// Where the factors of one step of a sum lie, from those of its first on.
struct Step {
  int64_t rows, columns;
};

// The sums of up to JOBS tiles, (SIDE, SIDE) each, += rows[job] x columns over the steps. Rows are
// ``pitch`` apart.
void multiply(const uint16_t* const* rows, int64_t pitch, const uint16_t* columns,
              const std::vector<Step>& steps, int count, float* sums) {
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define LOAD(n) \
  if (n < count) _tile_loadd(n, sums + n * SUMS, 64);
#define ADD(n)                                                    \
  if (n < count) {                                                \
    _tile_loadd(6, rows[n] + step.rows, pitch * sizeof(uint16_t)); \
    _tile_dpbf16ps(n, 6, 7);                                      \
  }
#define STORE(n) \
  if (n < count) _tile_stored(n, sums + n * SUMS, 64);
  EACH(LOAD)
  for (const Step& step : steps) {
    _tile_loadd(7, columns + step.columns, 64);
    EACH(ADD)
  }
  EACH(STORE)
#undef STORE
#undef ADD
#undef LOAD
#undef EACH
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

// The bfloat16 whose sum is a value of dz, ``apart`` from each other.
inline void split(const Bfloat16* from, int count, uint16_t* to, int64_t) {
  for (int i = 0; i < count; i++) to[i] = from[i].bits;
}

inline void split(const float* from, int count, uint16_t* to, int64_t apart) {
  for (int i = 0; i < count; i++) {
    float rest = from[i];
    for (int part = 0; part < PARTS<float>; part++) {
      Bfloat16 stored;
      store(&stored, rest);
      to[part * apart + i] = stored.bits;
      rest -= load(&stored);
    }
  }
}

// The weights as the columns of tiles: for every SIDE channels, of each row of taps the outputs of
// its three taps, in the order in which an input's neighbours lie, rounded up to DEPTH with zeros.
struct Columns {
  const int steps;  // of a row of taps
  Buffer<uint16_t> values;

  template <class T>
  Columns(const Convolution& c, const T* w)
      : steps((3 * c.outputs + DEPTH - 1) / DEPTH),
        values(size_t(tiles_of(c.channels)) * 3 * steps * SIDE * DEPTH) {
    for (int o = 0; o < c.outputs; o++)
      for (int tap = 0; tap < TAPS; tap++) {
        const int at = tap % 3 * c.outputs + o, row = tap / 3 * steps + at / DEPTH;
        const T* from = w + (int64_t(o) * TAPS + TAPS - 1 - tap) * c.channels;
        for (int k = 0; k < c.channels; k++) {
          Bfloat16 stored;
          store(&stored, load(from + k));
          uint16_t* to = of(k / SIDE) + row * SIDE * DEPTH + at % DEPTH / 2 * DEPTH;
          to[k % SIDE * 2 + at % 2] = stored.bits;
        }
      }
  }
  uint16_t* of(int tile) { return values.data() + size_t(tile) * 3 * steps * SIDE * DEPTH; }
};

// dx of one image, from its dz in a plane.
template <class T>
void add_neighbours(const Convolution& c, const Plane& plane, const uint16_t* dz, Columns& columns,
                    const std::vector<Step>& steps, T* dx) {
  const int64_t first = plane.at(0, 0), count = c.height * plane.pitch() - 1;
  const int all = int((count + SIDE - 1) / SIDE);
  alignas(64) float sums[JOBS * SUMS];
  for (int tile = 0; tile < all; tile += JOBS)
    for (int k = 0; k < c.channels; k += SIDE) {
      const int jobs = std::min(JOBS, all - tile);
      const uint16_t* rows[JOBS];
      for (int job = 0; job < jobs; job++) rows[job] = dz + (first + (tile + job) * SIDE) * c.outputs;
      std::fill(sums, sums + jobs * SUMS, 0.0f);
      multiply(rows, c.outputs, columns.of(k / SIDE), steps, jobs, sums);
      const int wide = std::min(SIDE, c.channels - k);
      const int64_t end = std::min<int64_t>(count, (tile + jobs) * SIDE);
      for (int64_t i = tile * SIDE, row = i / plane.pitch(), column = i % plane.pitch(); i < end;
           i++) {
        if (column == c.width) {
          row++, column = 0;
          continue;
        }
        const float* from = sums + (i - tile * SIDE) * SIDE;
        T* to = dx + (row * c.width + column++) * c.channels + k;
        if (wide == SIDE)
          for (int j = 0; j < SIDE; j++) store(to + j, from[j]);
        else
          for (int j = 0; j < wide; j++) store(to + j, from[j]);
      }
    }
}

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
  const int64_t margin;
  Buffer<uint16_t> line, values;

 public:
  const int64_t pitch;  // of an output

  Rows(const Convolution& c, const Plane& plane, int first, int outputs)
      : c(c),
        first(first),
        outputs(outputs),
        wide(tiles_of(outputs) * SIDE),
        columns((c.out_width() + 7) / 8 * 8),
        margin(plane.pitch() + DEPTH),
        line(size_t(PARTS<T>) * columns * wide),
        pitch(((plane.size() + 2 * margin) / DEPTH + 2) / 2 * 2 * DEPTH + DEPTH) {
    values = Buffer<uint16_t>(size_t(PARTS<T>) * part());
  }
  int64_t part() const { return pitch * wide; }
  const uint16_t* of(int tile, int64_t tap) {
    return values.data() + int64_t(tile) * SIDE * pitch + margin - tap;
  }

  // ``number``: the image's place in the plane.
  void fill(const Plane& plane, const T* dz, int64_t image, int number) {
    const int width = c.out_width(), apart = columns * wide;
    for (int row = 0; row < c.out_height(); row++) {
      const T* from = dz + (image * c.out_height() + row) * width * c.outputs + first;
      for (int i = 0; i < width; i++)
        split(from + int64_t(i) * c.outputs, outputs, line.data() + i * wide, apart);
      const int64_t at = margin + plane.at(number, row * c.stride);
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

// The signs of some images as the columns of tiles: pairs of positions for every SIDE channels.
class Signs {
  const Convolution& c;
  const int64_t pairs;
  Buffer<uint8_t> bits, inside;
  Buffer<uint16_t> values;

 public:
  Signs(const Convolution& c, const Plane& plane)
      : c(c),
        pairs((plane.size() + DEPTH - 1) / DEPTH * DEPTH / 2),
        bits(size_t(2 * pairs) * c.bytes() + 8),
        inside(size_t(2 * pairs)),
        values(size_t(tiles_of(c.channels)) * pairs * DEPTH) {}
  const uint16_t* of(int tile) { return values.data() + int64_t(tile) * pairs * DEPTH; }

  void fill(const Plane& plane, const uint8_t* from) {
    std::fill_n(inside.data(), 2 * pairs, uint8_t(0));
    const int64_t bytes = int64_t(c.width) * c.bytes();
    for (int image = 0; image < plane.images; image++)
      for (int row = 0; row < c.height; row++, from += bytes) {
        const int64_t at = plane.at(image, row);
        std::copy_n(from, bytes, bits.data() + at * c.bytes());
        std::fill_n(inside.data() + at, c.width, uint8_t(1));
      }
    constexpr uint32_t EVEN = 0x55555555, ODD = 0xaaaaaaaa;
    const __m512i plus = _mm512_set1_epi16(0x3f80), minus = _mm512_set1_epi16(int16_t(0xbf80));
    for (int64_t i = 0; i < pairs; i++) {
      const uint32_t known = (inside.data()[2 * i] ? EVEN : 0) | (inside.data()[2 * i + 1] ? ODD : 0);
      const uint8_t* one = bits.data() + 2 * i * c.bytes();
      for (int tile = 0; tile < tiles_of(c.channels); tile++) {
        uint16_t even, odd;
        __builtin_memcpy(&even, one + 2 * tile, 2);
        __builtin_memcpy(&odd, one + c.bytes() + 2 * tile, 2);
        const uint32_t both = _pdep_u32(even, EVEN) | _pdep_u32(odd, ODD);
        const __m512i signs = _mm512_mask_blend_epi16(both, minus, plus);
        _mm512_store_si512(values.data() + (tile * pairs + i) * DEPTH,
                           _mm512_maskz_mov_epi16(known, signs));
      }
    }
  }
};

// sums (channels / SIDE, outputs / SIDE, TAPS) tiles += those over the positions of images.
template <class T>
void add_images(const Convolution& c, const uint8_t* bits, const T* dz, int first, int outputs,
                int64_t image, int64_t end, float* sums) {
  Plane plane{1, c.height, c.width};
  plane.images = int(std::max<int64_t>(1, std::min(end - image, POSITIONS / plane.size())));
  Rows<T> rows(c, plane, first, outputs);
  Signs signs(c, plane);
  const int all = tiles_of(outputs) * TAPS;
  for (; image < end; image += plane.images) {
    plane.images = int(std::min<int64_t>(plane.images, end - image));
    for (int i = 0; i < plane.images; i++) rows.fill(plane, dz, image + i, i);
    signs.fill(plane, bits + image * c.height * c.width * c.bytes());
    std::vector<Step> steps;
    for (int64_t at = 0; at < plane.size(); at += DEPTH)
      for (int part = 0; part < PARTS<T>; part++)
        steps.push_back({part * rows.part() + at, at * SIDE});
    for (int tile = 0; tile < tiles_of(c.channels); tile++)
      for (int job = 0; job < all; job += JOBS) {
        const int count = std::min(JOBS, all - job);
        const uint16_t* from[JOBS];
        for (int i = 0; i < count; i++)
          from[i] = rows.of((job + i) / TAPS, plane.tap((job + i) % TAPS));
        multiply(from, rows.pitch, signs.of(tile), steps, count,
                 sums + (int64_t(tile) * all + job) * SUMS);
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

}  // namespace

template <class T>
bool tiles::input_gradient(const Convolution& c, const T* dz, const T* w, T* dx, int threads) {
  if (!are_permitted()) return false;
  const Plane plane{1, c.height, c.width};
  const int64_t size = plane.size() + JOBS * SIDE + DEPTH, part = size * c.outputs;
  Columns columns(c, w);
  std::vector<Step> steps;
  for (int row = 0; row < 3; row++)
    for (int step = 0; step < columns.steps; step++)
      for (int i = 0; i < PARTS<T>; i++)
        steps.push_back({i * part + plane.tap(3 * row) * c.outputs + step * DEPTH,
                         int64_t(row * columns.steps + step) * SIDE * DEPTH});
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Tiles tiles;
    Buffer<uint16_t> padded(size_t(PARTS<T>) * part);
#pragma omp for schedule(static)
    for (int64_t image = 0; image < c.images; image++) {
      const T* from = dz + image * c.out_height() * c.out_width() * c.outputs;
      for (int row = 0; row < c.out_height(); row++) {
        uint16_t* to = padded.data() + plane.at(0, row * c.stride) * c.outputs;
        for (int i = 0; i < c.out_width(); i++, from += c.outputs)
          split(from, c.outputs, to + int64_t(i) * c.stride * c.outputs, part);
      }
      add_neighbours(c, plane, padded.data(), columns, steps,
                     dx + image * c.height * c.width * c.channels);
    }
  }
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
bool tiles::input_gradient(const Convolution&, const T*, const T*, T*, int) {
  return false;
}

template <class T>
bool tiles::weight_gradient(const Convolution&, const uint8_t*, const T*, T*, int) {
  return false;
}

#endif

#define INSTANCES(T)                                                                         \
  template bool tiles::input_gradient<T>(const Convolution&, const T*, const T*, T*, int);   \
  template bool tiles::weight_gradient<T>(const Convolution&, const uint8_t*, const T*, T*, int);
INSTANCES(float)
INSTANCES(Bfloat16)
