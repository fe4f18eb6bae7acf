// The bodies of the CUDA kernels, run on the CPU lane after lane. See test_native_lanes.py.

#include <cstdint>
#include <cstring>

#include "lane.h"

namespace {

using namespace dndetr;

// A bfloat16 of our own, so that nothing of PyTorch is needed.
struct Half {
  uint16_t bits;

  Half() = default;
  explicit Half(float x) {
    uint32_t whole;
    std::memcpy(&whole, &x, 4);
    bits = static_cast<uint16_t>((whole + 0x7fff + (whole >> 16 & 1)) >> 16);  // to the nearest, ties to even
  }
  explicit operator float() const {
    const uint32_t whole = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &whole, 4);
    return x;
  }
};

struct Sizes {
  int64_t batch, tokens, heads, width, queries, levels, points, lanes;
};

template <typename S, typename T>
Arguments<S, T> arguments(const Sizes& n, const int32_t* shapes, const S* value, const T* locations, const T* weights) {
  Arguments<S, T> of{value,   locations,  weights,  {}, n.tokens, n.heads, n.width, n.queries,
                     n.points, n.batch * n.queries * n.heads};
  of.levels.count = static_cast<int32_t>(n.levels);
  for (int32_t i = 0, first = 0; i < of.levels.count; first += shapes[2 * i] * shapes[2 * i + 1], ++i) {
    of.levels.rows[i] = shapes[2 * i];
    of.levels.columns[i] = shapes[2 * i + 1];
    of.levels.first_token[i] = first;
  }
  return of;
}

template <int V, typename S, typename T>
void forward(const Sizes& n, const int32_t* shapes, const S* value, const T* locations, const T* weights, S* out) {
  const Arguments<S, T> of = arguments(n, shapes, value, locations, weights);
  for (int64_t row = 0; row < of.rows; ++row) {
    for (int lane = 0; lane < n.lanes; ++lane) forward_lane<V>(of, row, lane, static_cast<int>(n.lanes), out);
  }
}

// The gradients must be 0 at first. Returns how often a lane spoke of another point than the other lanes of its row did at that
// time, which on a GPU would sum up shares of different points, or wrote to what is not its row's.
template <int V, typename S, typename T>
int64_t backward(
    const Sizes& n, const int32_t* shapes, const S* value, const T* locations, const T* weights, const S* grad, T* grad_value,
    T* grad_locations, T* grad_weights) {
  const Arguments<S, T> of = arguments(n, shapes, value, locations, weights);
  const int64_t points = n.levels * n.points;
  int64_t wrong = 0;
  for (int64_t row = 0; row < of.rows; ++row) {
    const int64_t image = row / n.heads / n.queries, head = row % n.heads;
    for (int lane = 0; lane < n.lanes; ++lane) {
      int64_t calls = 0;
      backward_lane<V>(
          of, grad, row, lane, static_cast<int>(n.lanes),
          [&](int64_t place, T x) {
            const int64_t token = place / n.width / n.heads;
            if (place < 0 || token / n.tokens != image || place / n.width % n.heads != head) {
              ++wrong;
            } else {
              grad_value[place] += x;
            }
          },
          [&](int64_t index, PointGradient<T> share) {
            if (index != row * points + calls++) {
              ++wrong;
              return;
            }
            grad_locations[2 * index] += share.x;
            grad_locations[2 * index + 1] += share.y;
            grad_weights[index] += share.attention;
          });
      wrong += calls != points;
    }
  }
  return wrong;
}

// The least and the greatest token of any corner around `count` locations in a level of which `tokens[0]` is the first.
template <typename T>
void tokens(int64_t count, const T* locations, int64_t rows, int64_t columns, int64_t* tokens) {
  const int64_t first = tokens[0];
  tokens[0] = INT64_MAX;
  tokens[1] = INT64_MIN;
  for (int64_t i = 0; i < count; ++i) {
    const Sample<T> at = sample<T>(
        locations[2 * i], locations[2 * i + 1], static_cast<T>(columns), static_cast<T>(rows), static_cast<Int<T>>(columns),
        static_cast<Int<T>>(rows), static_cast<Int<T>>(first));
    for (const int64_t token : at.token) {
      if (token < tokens[0]) tokens[0] = token;
      if (token > tokens[1]) tokens[1] = token;
    }
  }
}

}  // namespace

#define DNDETR_LANES(NAME, V, S, T)                                                                                             \
  extern "C" void forward_##NAME(                                                                                               \
      const Sizes& n, const int32_t* shapes, const S* value, const T* locations, const T* weights, S* out) {                    \
    forward<V>(n, shapes, value, locations, weights, out);                                                                      \
  }                                                                                                                             \
  extern "C" int64_t backward_##NAME(                                                                                           \
      const Sizes& n, const int32_t* shapes, const S* value, const T* locations, const T* weights, const S* grad,               \
      T* grad_value, T* grad_locations, T* grad_weights) {                                                                      \
    return backward<V>(n, shapes, value, locations, weights, grad, grad_value, grad_locations, grad_weights);                   \
  }

DNDETR_LANES(float_4, 4, float, float)
DNDETR_LANES(float_1, 1, float, float)
DNDETR_LANES(double_2, 2, double, double)
DNDETR_LANES(double_1, 1, double, double)
DNDETR_LANES(half_8, 8, Half, float)
DNDETR_LANES(half_1, 1, Half, float)

extern "C" void tokens_float(int64_t count, const float* locations, int64_t rows, int64_t columns, int64_t* found) {
  tokens(count, locations, rows, columns, found);
}
extern "C" void tokens_double(int64_t count, const double* locations, int64_t rows, int64_t columns, int64_t* found) {
  tokens(count, locations, rows, columns, found);
}
