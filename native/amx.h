// Matrix tiles of x86 (AMX), for the engine and for training/: their permission and their shape.
//
// The first macros for them, of g++ 11, take addresses as they stand: sums are given in brackets.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#define WITH_TILES __attribute__((target("amx-tile")))

namespace {

constexpr int SIDE = 16;  // rows of a tile, and numbers of a row of sums

// Whether the system lets this process use tiles, which it has to ask for; all its threads may then.
inline bool are_permitted() {
  static const bool yes = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return yes;
}

// What was written lies in memory: compilers do not know what instructions for tiles read.
inline void write_all() { asm volatile("" ::: "memory"); }

// Eight full tiles for the calling thread, as long as this lives.
struct Tiles {
  WITH_TILES Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
    } config;
    write_all();
    _tile_loadconfig(&config);
  }
  WITH_TILES ~Tiles() { _tile_release(); }
};

}  // namespace
