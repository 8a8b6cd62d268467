// Maps as rows of channels, and the chunks in which the passes over them are shared by threads.
//
// Rows are cut into chunks that do not depend on the number of threads, and the sums of the chunks
// are added in their order: every number of threads gives the same bits. A chunk's sums are floats,
// of at most some hundred values each; those of all chunks are doubles.
#pragma once

#include <algorithm>
#include <vector>

#include "values.h"

// An estimator's h of ``count`` values.
using Factor = void (*)(const float* params, const float* x, float* h, int count);

namespace {

constexpr int64_t CHUNK = 16384;  // values of a chunk, which stay in the nearest caches
constexpr int WIDE = 256;         // few channels are repeated to a row of so many
constexpr int MOST = 1024;        // so many are worked on at once

// Rows seen as chunks of wide rows.
struct Shape {
  int64_t rows;
  int channels, repeats;

  Shape(int64_t rows, int channels)
      : rows(rows), channels(channels), repeats(std::max(1, WIDE / channels)) {}
  int width() const { return channels * repeats; }
  int64_t chunk_rows() const { return std::max<int64_t>(1, CHUNK / width()) * repeats; }
  int64_t chunks() const { return (rows + chunk_rows() - 1) / chunk_rows(); }
};

// The values of chunk i: from ``first`` on, ``count`` of them, ``rows`` rows.
struct Chunk {
  int64_t first, count, rows;

  Chunk(const Shape& shape, int64_t i) {
    const int64_t begin = i * shape.chunk_rows();
    rows = std::min(shape.chunk_rows(), shape.rows - begin);
    first = begin * shape.channels;
    count = rows * shape.channels;
  }
};

// A vector of channels as wide as a wide row.
struct Wide : std::vector<float> {
  template <class Value>
  Wide(const Shape& shape, const Value& value) : std::vector<float>(shape.width()) {
    for (int i = 0; i < shape.width(); i++) (*this)[i] = float(value(i % shape.channels));
  }
};

// body(first value, its place in a wide row, length) for each piece of the wide rows of a chunk.
template <class Body>
inline void each_piece(const Shape& shape, const Chunk& chunk, const Body& body) {
  const int width = shape.width();
  for (int64_t at = 0; at < chunk.count; at += width) {
    const int length = int(std::min<int64_t>(width, chunk.count - at));
    for (int from = 0; from < length; from += MOST)
      body(chunk.first + at + from, from, std::min(MOST, length - from));
  }
}

inline void fold(const Shape& shape, const float* wide, double* channels) {
  std::fill(channels, channels + shape.channels, 0.0);
  for (int i = 0; i < shape.width(); i++) channels[i % shape.channels] += wide[i];
}

template <class Body>
inline void each_chunk(const Shape& shape, int threads, const Body& body) {
  const int64_t chunks = shape.chunks();
#pragma omp parallel for schedule(static) num_threads(threads) if (chunks > 1 && threads > 1)
  for (int64_t i = 0; i < chunks; i++) body(i, Chunk(shape, i));
}

// The sum over chunks of ``each`` (chunks, channels), in their order.
inline void add_up(const Shape& shape, const std::vector<double>& each, double* sums) {
  std::fill(sums, sums + shape.channels, 0.0);
  for (int64_t i = 0; i < shape.chunks(); i++)
    for (int c = 0; c < shape.channels; c++) sums[c] += each[i * shape.channels + c];
}

}  // namespace
