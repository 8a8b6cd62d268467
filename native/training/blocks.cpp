// What stands between two convolutions of a training on a processor: the passes of kernels/norm.py
// and kernels/pool.py over maps in channels_last, which are rows of channels.
#include <algorithm>
#include <cmath>
#include <vector>

#include "rows.h"

namespace {

// u = relu(z), or z itself; a NaN stays one.
struct Rectifier {
  float low, cut;  // no value is below or at the ones of no ReLU

  explicit Rectifier(bool relu)
      : low(relu ? 0.0f : -INFINITY), cut(relu ? 0.0f : NAN) {}
  float operator()(float z) const { return z < low ? low : z; }
  float gradient(float z, float g) const { return z <= cut ? 0.0f : g; }
};

template <class T>
void moments(const Shape& shape, const Chunk& chunk, const T* z, Rectifier relu, double* mean,
             double* squares) {
  std::vector<float> sums(shape.width(), 0.0f), deviations(shape.width(), 0.0f);
  float *sum = sums.data(), *square = deviations.data();
  each_piece(shape, chunk, [=](int64_t at, int from, int length) {
    for (int i = 0; i < length; i++) sum[from + i] += relu(load(z + at + i));
  });
  fold(shape, sum, mean);
  for (int c = 0; c < shape.channels; c++) mean[c] /= double(chunk.rows);
  const Wide middle(shape, [&](int c) { return mean[c]; });
  each_piece(shape, chunk, [=, centre = middle.data()](int64_t at, int from, int length) {
    for (int i = 0; i < length; i++) {
      const float d = relu(load(z + at + i)) - centre[from + i];
      square[from + i] += d * d;
    }
  });
  fold(shape, square, squares);
  for (int c = 0; c < shape.channels; c++) {  // they were taken from the middle, a float
    const double off = mean[c] - double(float(mean[c]));
    squares[c] -= double(chunk.rows) * off * off;
  }
}

template <class T>
void deviations(const T* z, int64_t rows, int channels, Rectifier relu, float* mean,
                float* squares, int threads) {
  const Shape shape(rows, channels);
  std::vector<double> means(shape.chunks() * channels), all(shape.chunks() * channels);
  each_chunk(shape, threads, [&](int64_t i, const Chunk& chunk) {
    moments(shape, chunk, z, relu, &means[i * channels], &all[i * channels]);
  });
  std::vector<double> total(channels, 0.0), spread(channels, 0.0);
  double seen = 0;
  for (int64_t i = 0; i < shape.chunks(); i++) {  // Chan, Golub and LeVeque 1979
    const double more = double(Chunk(shape, i).rows), both = seen + more;
    for (int c = 0; c < channels; c++) {
      const double apart = means[i * channels + c] - total[c];
      total[c] += apart * more / both;
      spread[c] += all[i * channels + c] + apart * apart * seen * more / both;
    }
    seen = both;
  }
  std::copy(total.begin(), total.end(), mean);
  std::copy(spread.begin(), spread.end(), squares);
}

struct Norm {  // of every channel
  const float *weight, *bias, *mean, *rstd;
};

template <class T>
void forward(const T* z, const T* residual, const Norm& norm, int64_t rows, int channels,
             Rectifier relu, T* y, T* yb, int threads) {
  const Shape shape(rows, channels);
  const Wide means(shape, [&](int c) { return norm.mean[c]; });
  const Wide slopes(shape, [&](int c) { return norm.weight[c] * norm.rstd[c]; });
  const Wide biases(shape, [&](int c) { return norm.bias[c]; });
  const float *mean = means.data(), *slope = slopes.data(), *bias = biases.data();
  const auto row = [=](int64_t at, int from, int length) {
    float sum[MOST];
    for (int i = 0; i < length; i++)
      sum[i] = bias[from + i] + (relu(load(z + at + i)) - mean[from + i]) * slope[from + i];
    if (residual)
      for (int i = 0; i < length; i++) sum[i] += load(residual + at + i);
    for (int i = 0; i < length; i++) store(y + at + i, sum[i]);
    if (yb)
      for (int i = 0; i < length; i++) store(yb + at + i, sign(as_stored(y, sum[i])));
  };
  each_chunk(shape, threads,
             [&](int64_t, const Chunk& chunk) { each_piece(shape, chunk, row); });
}

// g = dy + dyb h(y), and its sums, and those of g (u - mean) rstd. Without dyb g is dy.
template <class T>
void reduce(Factor h, const float* params, const T* dy, const T* dyb, const T* y, const T* z,
            const float* mean, const float* rstd, int64_t rows, int channels, Rectifier relu, T* g,
            float* sums, int threads) {
  const Shape shape(rows, channels);
  const Wide middle(shape, [&](int c) { return mean[c]; });
  std::vector<double> plain(shape.chunks() * channels), scaled(shape.chunks() * channels);
  each_chunk(shape, threads, [&](int64_t number, const Chunk& chunk) {
    std::vector<float> sum_g(shape.width(), 0.0f), sum_gx(shape.width(), 0.0f);
    each_piece(shape, chunk,
                  [=, one = sum_g.data(), two = sum_gx.data(), centre = middle.data()](
                      int64_t at, int from, int length) {
      float value[MOST], factor[MOST];
      for (int i = 0; i < length; i++) value[i] = dy ? load(dy + at + i) : 0.0f;
      if (dyb) {
        float x[MOST];
        for (int i = 0; i < length; i++) x[i] = load(y + at + i);
        h(params, x, factor, length);
        for (int i = 0; i < length; i++) {
          const float sum = value[i] + load(dyb + at + i) * factor[i];
          value[i] = x[i] == x[i] ? sum : x[i];
        }
        for (int i = 0; i < length; i++) {
          value[i] = as_stored(g, value[i]);
          store(g + at + i, value[i]);
        }
      }
      for (int i = 0; i < length; i++) {
        one[from + i] += value[i];
        two[from + i] += value[i] * (relu(load(z + at + i)) - centre[from + i]);
      }
    });
    fold(shape, sum_g.data(), &plain[number * channels]);
    fold(shape, sum_gx.data(), &scaled[number * channels]);
  });
  std::vector<double> total(channels);
  add_up(shape, plain, total.data());
  std::copy(total.begin(), total.end(), sums);
  add_up(shape, scaled, total.data());
  for (int c = 0; c < channels; c++) sums[channels + c] = float(total[c] * rstd[c]);
}

// The coefficients of dz = a g - b - c (u - mean), of every channel.
struct Gradient {
  Wide mean, a, b, c;
  bool training;

  Gradient(const Shape& shape, const Norm& norm, const float* sums, double count, bool training)
      : mean(shape, [&](int i) { return norm.mean[i]; }),
        a(shape, [&](int i) { return norm.weight[i] * norm.rstd[i]; }),
        b(shape,
          [&](int i) {
            return training ? double(norm.weight[i]) * norm.rstd[i] * sums[i] / count : 0.0;
          }),
        c(shape, [&](int i) {
          const double slope = double(norm.weight[i]) * norm.rstd[i];
          return training ? slope * norm.rstd[i] * sums[shape.channels + i] / count : 0.0;
        }),
        training(training) {}

  template <class T, class G>
  void operator()(const G* g, const T* z, Rectifier relu, T* dz, int from, int length) const {
    const float *centre = &mean[from], *one = &a[from], *two = &b[from], *three = &c[from];
    for (int i = 0; i < length; i++) {
      const float value = load(z + i);
      const float whole = three[i] * (relu(value) - centre[i]) + two[i];
      // In evaluation nothing is taken away, not even 0 times what is not finite.
      const float d = one[i] * load(g + i) - (training ? whole : 0.0f);
      store(dz + i, relu.gradient(value, d));
    }
  }
};

template <class T>
void apply(const T* g, const T* z, const Norm& norm, const float* sums, double count,
           bool training, int64_t rows, int channels, Rectifier relu, T* dz, int threads) {
  const Shape shape(rows, channels);
  const Gradient gradient(shape, norm, sums, count, training);
  each_chunk(shape, threads, [&](int64_t, const Chunk& chunk) {
    each_piece(shape, chunk, [&](int64_t at, int from, int length) {
      gradient(g + at, z + at, relu, dz + at, from, length);
    });
  });
}

struct Images {
  int64_t count;
  int height, width, channels;
  int pooled_height() const { return (height + 1) / 2; }
  int pooled_width() const { return (width + 1) / 2; }
};

// row(image, line) for each of ``lines`` lines of each image.
template <class Row>
inline void each_line(int64_t images, int lines, int threads, const Row& row) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < images * lines; i++) row(i / lines, int(i % lines));
}

constexpr int LANES = 16;

// body(first, count) for pieces of the channels, all but the last of LANES, which the compiler sees.
template <class Body>
inline void each_lanes(int channels, const Body& body) {
  int first = 0;
  for (; first + LANES <= channels; first += LANES) body(first, LANES);
  if (first < channels) body(first, channels - first);
}

// At most LANES channels of one position of a max-pooling's output: the maxima of y = norm(relu(z))
// over the window, z there, and their places in it.
struct Maxima {
  float y[LANES], z[LANES], place[LANES];
};

template <class T>
inline void find_maxima(const Images& images, const T* z, const float* mean, const float* slope,
                        const float* bias, Rectifier relu, int line, int column, int first,
                        int count, Maxima& found) {
  bool is_first = true;
  for (int k = 0; k < 9; k++) {
    const int h = 2 * line - 1 + k / 3, w = 2 * column - 1 + k % 3;
    if (h < 0 || h >= images.height || w < 0 || w >= images.width) continue;
    const T* at = z + (int64_t(h) * images.width + w) * images.channels + first;
    const float place = float(k);
    for (int i = 0; i < count; i++) {
      const int c = first + i;
      const float value = load(at + i);
      const float y = as_stored(at, bias[c] + (relu(value) - mean[c]) * slope[c]);
      const bool wins = is_first | (y > found.y[i]) | (y != y);
      found.y[i] = wins ? y : found.y[i];
      found.z[i] = wins ? value : found.z[i];
      found.place[i] = wins ? place : found.place[i];
    }
    is_first = false;
  }
}

template <class T>
void pool(const T* z, const Norm& norm, const Images& images, Rectifier relu, T* x, T* xb,
          uint8_t* index, T* top, int threads) {
  const int channels = images.channels, width = images.pooled_width();
  std::vector<float> slope(channels);
  for (int c = 0; c < channels; c++) slope[c] = norm.weight[c] * norm.rstd[c];
  const int64_t area = int64_t(images.height) * images.width * channels;
  each_line(images.count, images.pooled_height(), threads, [&](int64_t image, int line) {
    Maxima found;
    const auto piece = [&](int64_t to, int column, int first, int count) {
      find_maxima(images, z + image * area, norm.mean, slope.data(), norm.bias, relu, line, column,
                  first, count, found);
      for (int i = 0; i < count; i++) {
        store(x + to + i, found.y[i]);
        if (xb) store(xb + to + i, sign(found.y[i]));
        store(top + to + i, found.z[i]);
        index[to + i] = uint8_t(int(found.place[i]));
      }
    };
    for (int column = 0; column < width; column++) {
      const int64_t at = ((image * images.pooled_height() + line) * width + column) * channels;
      each_lanes(channels, [&](int first, int count) { piece(at + first, column, first, count); });
    }
  });
}

// dz of a stem: the gradient g of the maxima goes to their places, then as in ``apply``.
template <class T>
void unpool(const T* g, const uint8_t* index, const T* z, const Norm& norm, const float* sums,
            double count, bool training, const Images& images, Rectifier relu, T* dz,
            int threads) {
  const int channels = images.channels, width = images.pooled_width();
  Shape shape(1, channels);
  shape.repeats = 1;
  const Gradient gradient(shape, norm, sums, count, training);
  const int height = images.pooled_height();
  each_line(images.count, images.height, threads, [&](int64_t image, int h) {
    const auto piece = [&](int64_t at, int w, int first, int count) {
      float total[LANES] = {};
      for (int line = h / 2; line <= std::min((h + 1) / 2, height - 1); line++)
        for (int column = w / 2; column <= std::min((w + 1) / 2, width - 1); column++) {
          const int place = (h - 2 * line + 1) * 3 + w - 2 * column + 1;
          const int64_t from = ((image * height + line) * width + column) * channels + first;
          for (int i = 0; i < count; i++)
            total[i] += index[from + i] == place ? load(g + from + i) : 0.0f;
        }
      gradient(total, z + at, relu, dz + at, first, count);
    };
    for (int w = 0; w < images.width; w++) {
      const int64_t at = ((image * images.height + h) * images.width + w) * channels;
      each_lanes(channels, [&](int first, int count) { piece(at + first, w, first, count); });
    }
  });
}

template <class T>
double signs_of(const float* w, int64_t count, T* signs, int threads) {
  const Shape shape(count, 1);
  std::vector<double> each(shape.chunks());
  each_chunk(shape, threads, [&](int64_t number, const Chunk& chunk) {
    std::vector<float> sums(shape.width(), 0.0f);
    float* const sum = sums.data();
    each_piece(shape, chunk, [&](int64_t at, int from, int length) {
      for (int i = 0; i < length; i++) {
        store(signs + at + i, sign(w[at + i]));
        sum[from + i] += elementary::absolute(w[at + i]);
      }
    });
    fold(shape, sum, &each[number]);
  });
  double total;
  add_up(shape, each, &total);
  return total / double(count);
}

// dx = dy h(x) + slope sgn(x), elementwise.
template <class T>
void differentiate(Factor h, const float* params, const T* dy, const float* x, float slope,
                   int64_t count, float* dx, int threads) {
  const Shape shape(count, 1);
  const auto row = [=](int64_t at, int, int length) {
    const float positive = slope;  // read here, or the loop would not become vectors
    float factor[MOST];
    h(params, x + at, factor, length);
    for (int i = 0; i < length; i++) {
      const float value = x[at + i];
      const float side = value > 0 ? positive : value < 0 ? -positive : 0.0f;
      const float sum = load(dy + at + i) * factor[i] + side;
      dx[at + i] = value == value ? sum : value;
    }
  };
  each_chunk(shape, threads,
             [&](int64_t, const Chunk& chunk) { each_piece(shape, chunk, row); });
}

}  // namespace

#define EXPORTS(T, NAME)                                                                          \
  void deviations_##NAME(const T* z, int64_t rows, int channels, int relu, float* mean,           \
                         float* squares, int threads) {                                           \
    deviations(z, rows, channels, Rectifier(relu), mean, squares, threads);                       \
  }                                                                                               \
  void forward_##NAME(const T* z, const T* residual, const float* weight, const float* bias,      \
                      const float* mean, const float* rstd, int64_t rows, int channels, int relu, \
                      T* y, T* yb, int threads) {                                                 \
    const Norm norm{weight, bias, mean, rstd};                                                    \
    forward(z, residual, norm, rows, channels, Rectifier(relu), y, yb, threads);                  \
  }                                                                                               \
  void reduce_##NAME(const T* dy, const T* dyb, const T* y, const T* z, const float* mean,        \
                     const float* rstd, Factor h, const float* params, int64_t rows,              \
                     int channels, int relu, T* g, float* sums, int threads) {                    \
    reduce(h, params, dy, dyb, y, z, mean, rstd, rows, channels, Rectifier(relu), g, sums,        \
           threads);                                                                              \
  }                                                                                               \
  void apply_##NAME(const T* g, const T* z, const float* weight, const float* mean,               \
                    const float* rstd, const float* sums, double count, int training,             \
                    int64_t rows, int channels, int relu, T* dz, int threads) {                   \
    const Norm norm{weight, nullptr, mean, rstd};                                                 \
    apply(g, z, norm, sums, count, training, rows, channels, Rectifier(relu), dz, threads);       \
  }                                                                                               \
  void pool_##NAME(const T* z, const float* weight, const float* bias, const float* mean,         \
                   const float* rstd, int64_t count, int height, int width, int channels,         \
                   int relu, T* x, T* xb, uint8_t* index, T* top, int threads) {                  \
    const Images images{count, height, width, channels};                                          \
    pool(z, Norm{weight, bias, mean, rstd}, images, Rectifier(relu), x, xb, index, top, threads); \
  }                                                                                               \
  void unpool_##NAME(const T* g, const uint8_t* index, const T* z, const float* weight,           \
                     const float* mean, const float* rstd, const float* sums, double positions,   \
                     int training, int64_t count, int height, int width, int channels, int relu,  \
                     T* dz, int threads) {                                                        \
    const Images images{count, height, width, channels};                                          \
    unpool(g, index, z, Norm{weight, nullptr, mean, rstd}, sums, positions, training, images,     \
           Rectifier(relu), dz, threads);                                                         \
  }                                                                                               \
  double signs_##NAME(const float* w, int64_t count, T* signs, int threads) {                     \
    return signs_of(w, count, signs, threads);                                                    \
  }                                                                                               \
  void weights_##NAME(const T* dsigns, const float* w, float slope, Factor h,                     \
                      const float* params, int64_t count, float* dw, int threads) {               \
    differentiate(h, params, dsigns, w, slope, count, dw, threads);                               \
  }

#pragma GCC visibility push(default)
extern "C" {
EXPORTS(float, float32)
EXPORTS(Bfloat16, bfloat16)
}
#pragma GCC visibility pop
