// What the steps of a program do.
#pragma once

#include "program.h"
#include "tasks.h"

// Where a step works: on which image, in which arena, as which part of how many.
struct Place {
  uint8_t* arena;
  const float* image;
  const int64_t* strides;
  const uint8_t* differences;
  const Kernels& kernels;
  int rank, size;

  uint8_t* bytes(int64_t offset) const { return offset < 0 ? nullptr : arena + offset; }
  float* floats(int64_t offset) const { return reinterpret_cast<float*>(bytes(offset)); }
};

// Does this rank's part of a step. False if a pixel of the image is not finite.
bool run_step(const Step& step, const Place& place);
