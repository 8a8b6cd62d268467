// Calls everything in native/training, without Python, so that a sanitizer can watch. Every array has
// memory of its own and of its exact size.
//
//   training SEED
//
// The sizes are drawn from the seed. It ends with 1 where one thread and three differ in a bit.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

using Factor = void (*)(const float*, const float*, float*, int);
using Half = uint16_t;  // the bits of a bfloat16

#define DECLARE(T, NAME)                                                                          \
  void deviations_##NAME(const T*, int64_t, int, int, float*, float*, int);                       \
  void forward_##NAME(const T*, const T*, const float*, const float*, const float*, const float*, \
                      int64_t, int, int, T*, T*, int);                                            \
  void reduce_##NAME(const T*, const T*, const T*, const T*, const float*, const float*, Factor,  \
                     const float*, int64_t, int, int, T*, float*, int);                           \
  void apply_##NAME(const T*, const T*, const float*, const float*, const float*, const float*,   \
                    double, int, int64_t, int, int, T*, int);                                     \
  void prelu_forward_##NAME(const T*, const T*, const float*, const float*, const float*,         \
                            const float*, const float*, const float*, const float*, int64_t, int, \
                            T*, T*, int);                                                         \
  void prelu_reduce_##NAME(const T*, const T*, const T*, const T*, const float*, const float*,    \
                           const float*, const float*, const float*, const float*, const float*,  \
                           Factor, const float*, int64_t, int, T*, float*, int);                  \
  void pool_##NAME(const T*, const float*, const float*, const float*, const float*, int64_t,     \
                   int, int, int, int, T*, T*, uint8_t*, T*, int);                                \
  void unpool_##NAME(const T*, const uint8_t*, const T*, const float*, const float*,              \
                     const float*, const float*, double, int, int64_t, int, int, int, int, T*,    \
                     int);                                                                        \
  int convolve_##NAME(const T*, const T*, int64_t, int, int, int, int, int, uint8_t*, T*, int);   \
  void weight_gradient_##NAME(const uint8_t*, const T*, int64_t, int, int, int, int, int, T*,     \
                              int);                                                               \
  int input_gradient_##NAME(const T*, const T*, int64_t, int, int, int, int, int, T*, int);       \
  double signs_##NAME(const float*, int64_t, T*, int);                                            \
  void weights_##NAME(const T*, const float*, float, Factor, const float*, int64_t, float*, int);

extern "C" {
DECLARE(float, float32)
DECLARE(Half, bfloat16)
void factor_reste(const float*, const float*, float*, int);
}

static std::mt19937 engine;

static int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }

static void set(float& to, float x) { to = x; }
static void set(Half& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  to = Half(bits >> 16);
}

template <class T>
static std::vector<T> numbers(size_t count) {
  std::vector<T> found(count);
  for (auto& each : found) set(each, std::normal_distribution<float>()(engine));
  return found;
}

template <class T>
static std::vector<T> signs(size_t count) {
  std::vector<T> found(count);
  for (auto& each : found) set(each, draw(0, 1) ? 1.0f : -1.0f);
  return found;
}

static std::vector<uint8_t> all;  // what was found, of all calls

template <class T>
static void keep(const std::vector<T>& found) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(found.data());
  all.insert(all.end(), bytes, bytes + found.size() * sizeof(T));
}

#define CALLS(T, NAME)                                                                            \
  static void blocks_##NAME(int threads) {                                                        \
    const int channels = draw(1, 700), relu = draw(0, 1);                                         \
    const int64_t rows = draw(1, 60000 / channels);                                               \
    const size_t size = size_t(rows) * channels;                                                  \
    const auto z = numbers<T>(size), dy = numbers<T>(size), dyb = numbers<T>(size);               \
    const auto w = numbers<float>(channels), b = numbers<float>(channels);                        \
    std::vector<float> mean(channels), rstd(channels), sums(2 * size_t(channels));                \
    std::vector<T> y(size), yb(size), g(size), dz(size);                                          \
    const std::vector<float> params{2.0f, 1.5f, 0.1f};                                            \
    deviations_##NAME(z.data(), rows, channels, relu, mean.data(), rstd.data(), threads);         \
    forward_##NAME(z.data(), draw(0, 1) ? dy.data() : nullptr, w.data(), b.data(), mean.data(),   \
                   rstd.data(), rows, channels, relu, y.data(), yb.data(), threads);              \
    reduce_##NAME(draw(0, 1) ? dy.data() : nullptr, dyb.data(), y.data(), z.data(), mean.data(),  \
                  rstd.data(), factor_reste, params.data(), rows, channels, relu, g.data(),       \
                  sums.data(), threads);                                                          \
    apply_##NAME(g.data(), z.data(), w.data(), mean.data(), rstd.data(), sums.data(),             \
                 double(rows), draw(0, 1), rows, channels, relu, dz.data(), threads);             \
    keep(mean), keep(rstd), keep(y), keep(yb), keep(g), keep(sums), keep(dz);                     \
  }                                                                                               \
  static void prelu_##NAME(int threads) {                                                         \
    const int channels = draw(1, 700);                                                            \
    const int64_t rows = draw(1, 60000 / channels);                                               \
    const size_t size = size_t(rows) * channels;                                                  \
    const auto z = numbers<T>(size), dy = numbers<T>(size), dyb = numbers<T>(size);               \
    const auto w = numbers<float>(channels), b = numbers<float>(channels);                        \
    const float* const offset = draw(0, 1) ? b.data() : nullptr;                                  \
    std::vector<float> sums(5 * size_t(channels));                                                \
    std::vector<T> y(size), yb(size), g(size);                                                    \
    const std::vector<float> params{2.0f, 1.5f, 0.1f};                                            \
    prelu_forward_##NAME(z.data(), dy.data(), w.data(), b.data(), w.data(), w.data(), b.data(),   \
                         w.data(), offset, rows, channels, y.data(),                              \
                         offset ? yb.data() : nullptr, threads);                                  \
    prelu_reduce_##NAME(draw(0, 1) ? dy.data() : nullptr, offset ? dyb.data() : nullptr,          \
                        z.data(), dy.data(), w.data(), b.data(), w.data(), w.data(), b.data(),    \
                        w.data(), offset, factor_reste, params.data(), rows, channels, g.data(),  \
                        sums.data(), threads);                                                    \
    keep(y), keep(yb), keep(g), keep(sums);                                                       \
  }                                                                                               \
  static void stem_##NAME(int threads) {                                                          \
    const int count = draw(1, 3), height = draw(1, 9), width = draw(1, 9), c = draw(1, 40);       \
    const size_t size = size_t(count) * height * width * c;                                       \
    const size_t small = size_t(count) * ((height + 1) / 2) * ((width + 1) / 2) * c;              \
    const auto z = numbers<T>(size);                                                              \
    const auto w = numbers<float>(c), b = numbers<float>(c), mean = numbers<float>(c);            \
    const auto rstd = numbers<float>(c), sums = numbers<float>(2 * size_t(c));                    \
    std::vector<T> x(small), xb(small), top(small), dz(size);                                     \
    std::vector<uint8_t> index(small);                                                            \
    pool_##NAME(z.data(), w.data(), b.data(), mean.data(), rstd.data(), count, height, width, c,  \
                1, x.data(), draw(0, 1) ? xb.data() : nullptr, index.data(), top.data(),          \
                threads);                                                                         \
    unpool_##NAME(x.data(), index.data(), z.data(), w.data(), mean.data(), rstd.data(),           \
                  sums.data(), double(count * height * width), 1, count, height, width, c, 1,     \
                  dz.data(), threads);                                                            \
    keep(x), keep(xb), keep(index), keep(top), keep(dz);                                          \
  }                                                                                               \
  static void convolution_##NAME(int threads) {                                                   \
    const int count = draw(1, 3), height = draw(1, 9), width = draw(1, 9), stride = draw(1, 2);   \
    const int channels = 8 * draw(1, 40), outputs = draw(1, 40);                                  \
    const size_t size = size_t(count) * height * width * channels;                                \
    const size_t positions = size_t((height - 1) / stride + 1) * ((width - 1) / stride + 1);      \
    const auto x = signs<T>(size), w = signs<T>(size_t(outputs) * 9 * channels);                  \
    std::vector<uint8_t> bits(size / 8);                                                          \
    std::vector<T> z(count * positions * outputs), dw(w.size());                                  \
    const int binary = convolve_##NAME(x.data(), w.data(), count, height, width, channels,        \
                                       outputs, stride, bits.data(), z.data(), threads);          \
    if (!binary) std::abort();                                                                    \
    weight_gradient_##NAME(bits.data(), z.data(), count, height, width, channels, outputs,        \
                           stride, dw.data(), threads);                                           \
    std::vector<T> dx(size);                                                                      \
    input_gradient_##NAME(z.data(), w.data(), count, height, width, channels, outputs, stride,    \
                          dx.data(), threads);                                                    \
    keep(z), keep(bits), keep(dw), keep(dx);                                                      \
  }                                                                                               \
  static void weights_of_##NAME(int threads) {                                                    \
    const size_t count = size_t(draw(1, 40000));                                                  \
    const auto w = numbers<float>(count);                                                         \
    const std::vector<float> params{2.0f, 1.5f, 0.1f};                                            \
    std::vector<T> found(count);                                                                  \
    std::vector<float> dw(count);                                                                 \
    const double scale = signs_##NAME(w.data(), int64_t(count), found.data(), threads);           \
    weights_##NAME(found.data(), w.data(), 0.1f, factor_reste, params.data(), int64_t(count),     \
                   dw.data(), threads);                                                           \
    keep(found), keep(dw), keep(std::vector<double>{scale});                                      \
  }                                                                                               \
  static void everything_##NAME(int threads) {                                                    \
    blocks_##NAME(threads), prelu_##NAME(threads), stem_##NAME(threads);                          \
    convolution_##NAME(threads), weights_of_##NAME(threads);                                      \
  }
CALLS(float, float32)
CALLS(Half, bfloat16)

static std::vector<uint8_t> everything(unsigned seed, int threads) {
  engine.seed(seed);
  all.clear();
  everything_float32(threads), everything_bfloat16(threads);
  return all;
}

int main(int, char** arguments) {
  const unsigned seed = unsigned(std::atoi(arguments[1]));
  return everything(seed, 1) == everything(seed, 3) ? 0 : 1;
}
