// A network as a list of steps for images of one size, which native/plan.py makes.
#pragma once

#include <cstdint>

// What a step does; native/plan.py has the same numbers.
enum Kind : int32_t {
  SPREAD, PHASES, BINARY, REAL, POOL, SIGN, SKIP, MEAN, FLATTEN, NORM, LINEAR, AVERAGE
};

// One step. Values lie in an arena, at bytes from its start, or -1 where there is none; an input of
// -1 is the image. Every byte of an arena is OUTSIDE at first, which as a float is a number too, and
// 0 in the places of wide signs.
// Weights and tables are the caller's, and stay. Planes are counted in elements.
struct Step {
  int32_t kind, blocks, steps, positions, relu;
  int32_t channels, height, width, pitch;              // of the input
  int32_t out_height, out_width, out_pitch;            // of the output
  int32_t size, stride, padding;                       // of a window
  int32_t input_is_wide, next_is_wide;                 // signs, see tasks.h
  int32_t joined;                                      // so many of the next steps are done with it
  int64_t input, input_plane, output, output_plane;
  int64_t residual, next, next_plane;
  const void* weights;
  const int64_t* offsets;
  const int16_t* base;
  const uint8_t* edges;
  const float *start, *mean, *slope, *bias, *leak, *shift, *threshold;
};

struct Program {
  const Step* steps;
  int32_t count;
  int32_t out_channels, out_height, out_width, out_pitch;
  int64_t output, output_plane, out_length;            // of the last value, in the arena
  const uint8_t* differences;                          // see BinaryTask
};

struct Images {
  const float* pixels;
  int64_t strides[4];                                  // in elements: image, channel, row, column
  int64_t count;
  uint8_t* const* arenas;                              // one for each thread
  float* results;                                      // (count, out_channels, out_height, out_width)
};
