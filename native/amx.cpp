// x86 with matrix tiles of bytes (AMX), besides AVX-512.
//
// A tile of sums has 16 outputs and 16 positions. Its left factor is a tile of weights, 16 outputs and
// 64 channels of a tap, which are kept as bits. Its right factor are wide signs as they lie: 16 planes
// of four channels, and 16 positions of each.
#include "avx512.h"

#include "kernels.h"

#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)

#include <cpuid.h>

#include "amx.h"

namespace {

constexpr int TILE = 1024;              // bytes
constexpr int OUTPUTS = 2 * SIDE;       // that are computed together: two tiles of weights a step
constexpr int POSITIONS = Avx512::bytes;
constexpr int NEAR = 18;                // steps whose weights the nearest cache holds

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned tiles = 1u << 24, of_bytes = 1u << 25;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & tiles) && (d & of_bytes) && are_permitted();
}

// The weights of OUTPUTS outputs at NEAR steps at most, as bytes: two tiles for each step.
class Weights {
 public:
  explicit Weights(const BinaryTask& task) : task_(task) {}

  const int8_t* of(int group, int first, int last) {
    if (group != group_ || first != first_) expand(group, first, last);
    group_ = group, first_ = first;
    return bytes_;
  }

 private:
  void expand(int group, int first, int last) {
    const __m512i minus = _mm512_set1_epi8(-1), plus = _mm512_set1_epi8(1);
    for (int half = 0; half < 2; half++) {
      const ptrdiff_t start = ptrdiff_t(2 * group + half) * task_.steps + first;
      const auto* bits = reinterpret_cast<const uint64_t*>(task_.weights) + start * SIDE;
      for (int step = 0; step < last - first; step++, bits += SIDE)
        for (int o = 0; o < SIDE; o++)
          _mm512_store_si512(bytes_ + (2 * step + half) * TILE + 64 * o,
                             _mm512_mask_mov_epi8(minus, bits[o], plus));
    }
  }

  const BinaryTask& task_;
  alignas(64) int8_t bytes_[2 * NEAR * TILE];
  int group_ = -1, first_ = -1;
};

// sums (OUTPUTS, POSITIONS) of 2 * SIDE positions from p on, over some steps: begun, or gone on with.
__attribute__((target("amx-tile,amx-int8")))
void multiply(const BinaryTask& task, const int8_t* weights, int first, int last, int p,
              int32_t* sums) {
  constexpr int pitch = 4 * POSITIONS;
  int32_t* const lower = sums + SIDE * POSITIONS;
  const uint8_t* signs = task.signs + 4 * ptrdiff_t(p);
  write_all();
  if (first == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, pitch);
    _tile_loadd(1, (sums + SIDE), pitch);
    _tile_loadd(2, lower, pitch);
    _tile_loadd(3, (lower + SIDE), pitch);
  }
  for (int step = first; step < last; step++, weights += 2 * TILE) {
    const uint8_t* here = signs + task.offsets[step];
    _tile_loadd(4, weights, 64);
    _tile_loadd(6, here, task.apart);
    _tile_loadd(7, (here + 64), task.apart);
    _tile_loadd(5, (weights + TILE), 64);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, sums, pitch);
  _tile_stored(1, (sums + SIDE), pitch);
  _tile_stored(2, lower, pitch);
  _tile_stored(3, (lower + SIDE), pitch);
}

// Parts of POSITIONS positions. Weights that are more than the nearest cache holds are used at PARTS
// of them before the next follow.
void wide(const BinaryTask& task, int rank, int size) {
  const Tiles tiles;
  Weights weights(task);
  alignas(64) static thread_local int32_t sums[PARTS][OUTPUTS * POSITIONS];
  const int parts = rounded_up(task.positions, POSITIONS) / POSITIONS;
  const bool fits = task.steps <= NEAR;
  const int together = fits ? 1 : PARTS, steps = fits ? task.steps : NEAR / 2;
  const int turns = rounded_up(parts, together) / together;
  const Range range = part(task.blocks * BLOCK / OUTPUTS * turns, rank, size);
  for (int i = range.first; i < range.last; i++) {
    const int group = i / turns, start = i % turns * together;
    const int end = start + together < parts ? start + together : parts;
    for (int first = 0; first < task.steps; first += steps) {
      const int last = first + steps < task.steps ? first + steps : task.steps;
      const int8_t* bytes = weights.of(group, first, last);
      for (int part = start; part < end; part++)
        for (int p = 0; p < POSITIONS && part * POSITIONS + p < task.positions; p += 2 * SIDE)
          multiply(task, bytes, first, last, part * POSITIONS + p, sums[part - start] + p);
    }
    for (int part = start; part < end; part++)
      for (int block = 0; block < OUTPUTS / BLOCK; block++)
        finish<Avx512>(task, group * OUTPUTS / BLOCK + block, part * POSITIONS, [&](int o, int i) {
          const int32_t* from = sums[part - start] + (block * BLOCK + o) * POSITIONS + i * SIDE;
          return _mm512_cvtepi32_ps(_mm512_load_si512(from));
        });
  }
}

}  // namespace

KERNELS(amx, Avx512, has_amx, wide)

#else

namespace {
bool has_amx() { return false; }
}  // namespace

KERNELS(amx, Avx512, has_amx, nullptr)

#endif
