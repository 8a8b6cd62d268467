#include "steps.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tasks.h"

namespace {

constexpr uint32_t INFINITE = 0x7f800000;  // the exponent of infinity and NaN

struct Range {
  int first, last;
};

Range part(int count, int rank, int size) {
  return {int(int64_t(count) * rank / size), int(int64_t(count) * (rank + 1) / size)};
}

// The columns of a row of the output that lie in the input: stride * column + shift in [0, width).
Range inside(int columns, int width, int stride, int shift) {
  const int first = shift < 0 ? (-shift + stride - 1) / stride : 0;
  const int last = width > shift ? (width - shift + stride - 1) / stride : 0;
  return {first < columns ? first : columns, last < columns ? (last > first ? last : first) : columns};
}

// Steps that are known beforehand are taken several at a time.
template <class T>
void gather(T* __restrict to, const T* __restrict from, int count, int64_t step) {
  if (step == 1) {
    std::memcpy(to, from, sizeof(T) * size_t(count));
  } else if (step == 2) {
    for (int i = 0; i < count; i++) to[i] = from[2 * i];
  } else {
    for (int i = 0; i < count; i++) to[i] = from[i * step];
  }
}

// Without comparing numbers, which a compiler may take for finite ones, and as many at a time as
// there are in a vector.
bool are_finite(const float* x, int count) {
  uint32_t largest = 0;
  for (int i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    largest = std::max(largest, bits & INFINITE);
  }
  return largest < INFINITE;
}

class Runner {
 public:
  Runner(const Step& step, const Place& place) : s(step), at(place) {}

  // Every tap of a real convolution as a plane: phase (a, b) of stride x stride ones has, at row r
  // and column c, the input's pixel (stride r + a - padding, stride c + b - padding), or 0.
  bool spread() const {
    const int phases = s.size < s.stride ? s.size : s.stride;
    const Range range = part(s.channels, at.rank, at.size);
    bool finite = true;
    for (int channel = range.first; channel < range.last; channel++)
      for (int phase = 0; phase < phases * phases; phase++) {
        const int a = phase / phases - s.padding, b = phase % phases - s.padding;
        float* to = at.floats(s.output) + (int64_t(channel) * phases * phases + phase) * s.output_plane;
        for (int row = 0; row < s.out_height; row++, to += s.out_pitch)
          finite &= spread_row(channel, s.stride * row + a, b, to);
        // Vectors read behind the last row, where whatever lies may make denormals, which are slow.
        std::memset(to, 0, sizeof(float) * size_t(s.output_plane - s.out_height * s.out_pitch));
      }
    return finite;
  }

  // The same for signs, whose planes hold the border already.
  void phases() const {
    if (s.input_is_wide) return phases_of<uint32_t>(0);
    phases_of<uint8_t>(OUTSIDE);
  }

  void binary() const {
    BinaryTask task{at.bytes(s.input), s.offsets, s.steps, static_cast<const uint8_t*>(s.weights),
                    at.differences, s.base, s.blocks, s.positions, norm(), {s.leak, s.shift},
                    at.floats(s.residual), at.floats(s.output), s.output_plane, s.threshold,
                    at.bytes(s.next), s.next_plane, s.next_is_wide != 0, s.edges,
                    ptrdiff_t(4) * s.input_plane};
    (s.input_is_wide ? at.kernels.wide : at.kernels.binary)(task, at.rank, at.size);
  }

  void real() const {
    if (s.joined) return real_and_joined();
    at.kernels.real(real_task(), at.rank, at.size);
  }

  void sign() const { at.kernels.sign(sign_task(), at.rank, at.size); }

  void pool() const {
    const Range range = part(s.channels, at.rank, at.size);
    pool_planes(range, at.floats(s.input) + range.first * s.input_plane);
  }

  // Means of windows beside each other, over what lies in the map of each.
  void average() const {
    const Range range = part(s.channels, at.rank, at.size);
    for (int channel = range.first; channel < range.last; channel++)
      for (int row = 0; row < s.out_height; row++)
        for (int column = 0; column < s.out_width; column++)
          at.floats(s.output)[channel * s.output_plane + row * s.out_pitch + column] =
              mean_of(channel, s.size * row, s.size * column);
  }

  // Every second pixel, between ``padding`` channels of zeros before and behind.
  void skip() const {
    const int all = s.channels + 2 * s.padding;
    const Range range = part(all, at.rank, at.size);
    for (int channel = range.first; channel < range.last; channel++) {
      float* to = at.floats(s.output) + channel * s.output_plane;
      const int source = channel - s.padding;
      if (source < 0 || source >= s.channels) {
        std::memset(to, 0, sizeof(float) * s.out_height * s.out_pitch);
        continue;
      }
      const float* from = at.floats(s.input) + source * s.input_plane;
      for (int row = 0; row < s.out_height; row++)
        for (int column = 0; column < s.out_width; column++)
          to[row * s.out_pitch + column] = from[2 * row * s.pitch + 2 * column];
    }
  }

  // In double, so that the order of pixels does not show.
  void mean() const {
    const Range range = part(s.channels, at.rank, at.size);
    for (int channel = range.first; channel < range.last; channel++) {
      const float* from = at.floats(s.input) + channel * s.input_plane;
      double sum = 0;
      for (int row = 0; row < s.height; row++)
        for (int column = 0; column < s.width; column++) sum += from[row * s.pitch + column];
      at.floats(s.output)[channel] = float(sum / (double(s.height) * s.width));
    }
    end_with_zeros(s.channels);
  }

  void flatten() const {
    const Range range = part(s.channels, at.rank, at.size);
    for (int channel = range.first; channel < range.last; channel++)
      for (int row = 0; row < s.height; row++) {
        const float* from = at.floats(s.input) + channel * s.input_plane + row * s.pitch;
        float* to = at.floats(s.output) + (channel * s.height + row) * s.width;
        std::memcpy(to, from, sizeof(float) * s.width);
      }
    end_with_zeros(s.channels * s.height * s.width);
  }

  void norm_vector() const {
    const Range range = part(s.channels, at.rank, at.size);
    for (int i = range.first; i < range.last; i++) {
      const float x = at.floats(s.input)[i], u = s.relu && !(x > 0) ? 0 : x;
      at.floats(s.output)[i] = std::fma(u - s.mean[i], s.slope[i], s.bias[i]);
    }
    end_with_zeros(s.channels);
  }

  void linear() const {
    LinearTask task{at.floats(s.input), static_cast<const float*>(s.weights), s.bias, s.steps,
                    s.channels, at.floats(s.output)};
    at.kernels.linear(task, at.rank, at.size);
  }

 private:
  Norm norm() const { return {s.mean, s.slope, s.bias, s.relu != 0}; }

  RealTask real_task() const {
    return {at.floats(s.input), s.offsets, s.steps, static_cast<const float*>(s.weights),
            s.start, s.blocks, s.positions, norm(), at.floats(s.output), s.output_plane};
  }

  SignTask sign_task() const {
    return {at.floats(s.input), s.input_plane, s.blocks, s.positions, s.threshold,
            at.bytes(s.next), s.next_plane, s.next_is_wide != 0, s.edges};
  }

  // A convolution, and the pooling and signs that follow it, block by block of its outputs: all in
  // the place of the first block of this rank, which a cache holds.
  void real_and_joined() const {
    const Range range = part(s.blocks, at.rank, at.size);
    const RealTask whole = real_task();
    float* const planes = whole.real + range.first * BLOCK * s.output_plane;
    for (int block = range.first; block < range.last; block++) {
      const int first = block * BLOCK;
      RealTask task = whole;
      task.weights += ptrdiff_t(block) * s.steps * BLOCK;
      task.start += first;
      task.norm = {s.mean + first, s.slope + first, s.bias + first, s.relu != 0};
      task.blocks = 1;
      task.real = planes;
      at.kernels.real(task, 0, 1);
      Runner((&s)[1], at).pool_planes({first, first + BLOCK}, planes);
      if (s.joined > 1) Runner((&s)[2], at).sign_block(block);
    }
  }

  void sign_block(int block) const {
    SignTask task = sign_task();
    task.real += block * BLOCK * task.plane;
    task.threshold += block * BLOCK;
    task.next += block * task.next_plane * (task.next_is_wide ? 4 : 1);
    task.blocks = 1;
    at.kernels.sign(task, 0, 1);
  }

  // ``from``: the plane of the first channel of the range.
  void pool_planes(const Range& channels, const float* from) const {
    std::vector<float> line(size_t(s.width + 2 * s.padding));
    for (int channel = channels.first; channel < channels.last; channel++, from += s.input_plane)
      for (int row = 0; row < s.out_height; row++) pool_row(from, channel, row, line.data());
  }

  // The inputs of ``linear`` are read in groups of LANES.
  void end_with_zeros(int length) const {
    if (at.rank == 0)
      for (int i = length; i % LANES; i++) at.floats(s.output)[i] = 0;
  }

  bool spread_row(int channel, int row, int shift, float* to) const {
    std::memset(to, 0, sizeof(float) * s.out_pitch);
    if (row < 0 || row >= s.height) return true;
    const float* from;
    int64_t step = 1;
    if (s.input < 0) {
      from = at.image + channel * at.strides[1] + row * at.strides[2];
      step = at.strides[3];
    } else {
      from = at.floats(s.input) + channel * s.input_plane + row * s.pitch;
    }
    const Range columns = inside(s.out_pitch, s.width, s.stride, shift);
    if (columns.first == columns.last) return true;
    const float* first = from + (s.stride * columns.first + shift) * step;
    gather(to + columns.first, first, columns.last - columns.first, s.stride * step);
    return are_finite(to + columns.first, columns.last - columns.first);
  }

  template <class Sign>
  void phases_of(Sign outside) const {
    const Range range = part(s.blocks, at.rank, at.size);
    Sign* const first = reinterpret_cast<Sign*>(at.bytes(s.output));
    const Sign* const source = reinterpret_cast<const Sign*>(at.bytes(s.input));
    for (int block = range.first; block < range.last; block++)
      for (int phase = 0; phase < s.stride * s.stride; phase++) {
        Sign* to = first + (int64_t(block) * s.stride * s.stride + phase) * s.output_plane;
        const Sign* from = source + block * s.input_plane;
        for (int row = 0; row < s.out_height; row++, to += s.out_pitch)
          phase_row(from, s.stride * row + phase / s.stride, phase % s.stride, outside, to);
      }
  }

  template <class Sign>
  void phase_row(const Sign* from, int row, int shift, Sign outside, Sign* to) const {
    std::fill_n(to, s.out_pitch, outside);
    if (row >= s.height + 2) return;
    const Range columns = inside(s.out_pitch, s.width + 2, s.stride, shift);
    from += row * s.pitch + shift + s.stride * columns.first;
    gather(to + columns.first, from, columns.last - columns.first, s.stride);
  }

  float mean_of(int channel, int top, int left) const {
    const float* from = at.floats(s.input) + channel * s.input_plane;
    const int bottom = std::min(top + s.size, s.height), right = std::min(left + s.size, s.width);
    float sum = 0;
    for (int row = top; row < bottom; row++)
      for (int column = left; column < right; column++) sum += from[row * s.pitch + column];
    return sum / float((bottom - top) * (right - left));
  }

  // The maxima of the rows of a window, which lie side by side, then those of its columns at every
  // place, of which every ``stride``-th is wanted.
  void pool_row(const float* from, int channel, int row, float* line) const {
    float* to = at.floats(s.output) + channel * s.output_plane + row * s.out_pitch;
    const int top = s.stride * row - s.padding;
    const int width = s.width + 2 * s.padding;
    std::fill_n(line, width, -INFINITY);
    for (int y = top < 0 ? 0 : top; y < top + s.size && y < s.height; y++)
      at.kernels.maxima(line + s.padding, from + y * s.pitch, s.width);
    for (int x = 1; x < s.size; x++) at.kernels.maxima(line, line + 1, width - x);
    gather(to, line, s.out_width, s.stride);
  }

  const Step& s;
  const Place& at;
};

}  // namespace

bool run_step(const Step& step, const Place& place) {
  const Runner runner(step, place);
  switch (step.kind) {
    case SPREAD: return runner.spread();
    case PHASES: runner.phases(); break;
    case BINARY: runner.binary(); break;
    case REAL: runner.real(); break;
    case POOL: runner.pool(); break;
    case SIGN: runner.sign(); break;
    case SKIP: runner.skip(); break;
    case MEAN: runner.mean(); break;
    case FLATTEN: runner.flatten(); break;
    case NORM: runner.norm_vector(); break;
    case LINEAR: runner.linear(); break;
    case AVERAGE: runner.average(); break;
  }
  return true;
}
