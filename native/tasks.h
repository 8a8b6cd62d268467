// What the vector kernels work on: maps, the tasks of one layer, and the table of kernels.
//
// A map of H x W pixels has, for every channel, one plane of rows that are W + 2 apart: behind each
// row stand two positions that are no pixel. A position p is an index into such a plane. Planes end
// on a multiple of WIDEST positions, so that every kernel works on whole vectors.
//
// Reals: a plane of floats for every channel. Signs: a plane of bytes for every four channels,
// whose low bits are 1 where the channels are >= 0. The plane of signs has one more row above and
// one column to the left: pixel p lies at p + (W + 2) + 1. All bytes that are no pixel are OUTSIDE.
//
// Wide signs: the same with four bytes in place of each, 1 or -1 for each of the four channels, or
// 0 where there is no pixel.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr int BLOCK = 4;            // channels that are computed together: their signs are one byte
constexpr int WIDEST = 64;          // bytes of the widest vector
constexpr int ROUND = 3;            // steps whose counts, at most 4 each, fit into four bits
constexpr uint8_t OUTSIDE = 0x80;   // a byte for which every kernel looks up 0

// y = (u - mean) * slope + bias with u = relu(z) or z; one of each for a channel.
struct Norm {
  const float *mean, *slope, *bias;
  bool relu;
};

// x > 0 ? x : leak * x, + shift; one of each for a channel, or null: then it is x.
struct Prelu {
  const float *leak, *shift;
};

// z[o][p] = base[p] - 2 * the bits in which weights and signs differ; y = prelu(norm(z) (+
// residual[o][p])).
struct BinaryTask {
  const uint8_t* signs;         // the input
  const ptrdiff_t* offsets;     // (steps,) from a position to the byte that a step reads
  int steps;                    // a multiple of ROUND
  const uint8_t* weights;       // (blocks, 2, steps) two outputs in a byte, four bits each
  const uint8_t* differences;   // (256, 16) see Differences
  const int16_t* base;          // (positions,) the sum if no bit differed
  int blocks;                   // of outputs
  int positions;                // rows * (W + 2), not rounded up
  Norm norm;
  Prelu prelu;
  const float* residual;        // (outputs, plane), which is added to norm(z), or null
  float* real;                  // (outputs, plane) or null where y is not kept; may be residual
  ptrdiff_t plane;
  const float* threshold;       // (outputs,) the sign of y is + where it is not below
  uint8_t* next;                // the signs of y or null, from the byte of position 0 on
  ptrdiff_t next_plane;
  bool next_is_wide;
  const uint8_t* edges;         // (positions,) OUTSIDE where a position is no pixel, else 0
  // Where the input is wide, the offsets and weights are others, and there are no differences, and
  // no base.
  //   offsets   (steps,) from a position to the first of the 16 planes that a step reads
  //   weights   (blocks / 4, steps, 16) uint64: 64 channels of a tap of each of 16 outputs
  ptrdiff_t apart;              // bytes between two planes of the input
};

// y[o][p] = norm(start + the sum over the steps of weights * input[p + offset]), by fma, in the
// order of steps.
struct RealTask {
  const float* input;
  const ptrdiff_t* offsets;     // (steps,)
  int steps;
  const float* weights;         // (blocks, steps, BLOCK)
  const float* start;           // (outputs,)
  int blocks;
  int positions;
  Norm norm;
  float* real;                  // (outputs, plane)
  ptrdiff_t plane;
};

// The signs of real planes.
struct SignTask {
  const float* real;
  ptrdiff_t plane;
  int blocks;
  int positions;
  const float* threshold;
  uint8_t* next;
  ptrdiff_t next_plane;
  bool next_is_wide;
  const uint8_t* edges;
};

// outputs[o] = bias[o] + sum over i of weights[o][i] * inputs[i]; rows are LANES-fold long.
struct LinearTask {
  const float *inputs, *weights, *bias;
  int length;                   // of a row: a multiple of LANES
  int count;                    // of outputs
  float* outputs;
};
constexpr int LANES = 16;       // partial sums of a row, whatever the width of a vector

// The kernels of one instruction set. Each does part ``rank`` of ``size`` parts of its task.
struct Kernels {
  const char* name;
  bool (*is_supported)();
  void (*binary)(const BinaryTask&, int rank, int size);
  void (*wide)(const BinaryTask&, int rank, int size);  // the same where the input is wide, or null
  void (*real)(const RealTask&, int rank, int size);
  void (*sign)(const SignTask&, int rank, int size);
  void (*linear)(const LinearTask&, int rank, int size);
  void (*maxima)(float* to, const float* from, int count);  // to = max(to, from), one by one
};

// The instruction sets of which this library was built, from the fastest to ``portable``.
const Kernels* const* all_kernels(int* count);
