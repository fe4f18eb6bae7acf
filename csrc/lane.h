// The CUDA kernels' body: what one thread does. Kept apart from the kernels, so that a machine without a GPU can run it, thread
// after thread, and check it.
//
// The lanes of a group share a row, a query in one head: each has some of its channels, V at a time, and every G-th of them.

#pragma once

#include "point.h"

namespace dndetr {

constexpr int MAX_LEVELS = 256;  // as kernel arguments, at most 4 KB, so that no device memory is read for them

struct Levels {
  int32_t count, rows[MAX_LEVELS], columns[MAX_LEVELS], first_token[MAX_LEVELS];
};

template <typename S, typename T>
struct Arguments {
  const S* value;
  const T *locations, *weights;
  Levels levels;
  int64_t tokens, heads, width, queries, points, rows;  // points of a level; rows: batch x queries x heads
};

// V numbers that are loaded at once.
template <typename S, int V>
struct alignas(sizeof(S) * V) Pack {
  S at[V];
};

template <int V, typename S>
DNDETR_INLINE Pack<S, V> load_pack(const S* from) {
  return *reinterpret_cast<const Pack<S, V>*>(from);
}

// Calls `run(sample, attention, index)` for every point of a row.
template <typename S, typename T, typename Run>
DNDETR_INLINE void for_points(const Arguments<S, T>& of, int64_t row, const Run& run) {
  int64_t index = row * of.levels.count * of.points;
  for (int level = 0; level < of.levels.count; ++level) {
    const int32_t columns = of.levels.columns[level], rows = of.levels.rows[level], first = of.levels.first_token[level];
    for (int64_t point = 0; point < of.points; ++point, ++index) {
      const T *x = of.locations + 2 * index, *y = x + 1;
      const Sample<T> found = sample<T>(*x, *y, static_cast<T>(columns), static_cast<T>(rows), columns, rows, first);
      run(found, of.weights[index], index);
    }
  }
}

// Where a row's image and head begin in the values.
template <typename S, typename T>
DNDETR_INLINE int64_t origin(const Arguments<S, T>& of, int64_t row) {
  return (row / of.heads / of.queries * of.tokens * of.heads + row % of.heads) * of.width;
}

// Forward: `out` (rows, width).
template <int V, typename S, typename T>
DNDETR_INLINE void forward_lane(const Arguments<S, T>& of, int64_t row, int lane, int lanes, S* out) {
  const S* value = of.value + origin(of, row);
  const int64_t stride = of.heads * of.width;
  for (int64_t channel = lane * V; channel < of.width; channel += lanes * V) {
    T sum[V] = {};
    for_points(of, row, [&](const Sample<T>& at, T attention, int64_t) {
      for (int corner = 0; corner < 4; ++corner) {
        const Pack<S, V> token = load_pack<V>(value + at.token[corner] * stride + channel);
        const T weight = at.weight[corner] * attention;
        for (int v = 0; v < V; ++v) sum[v] += weight * static_cast<T>(token.at[v]);
      }
    });
    Pack<S, V> result;
    for (int v = 0; v < V; ++v) result.at[v] = static_cast<S>(sum[v]);
    *reinterpret_cast<Pack<S, V>*>(out + row * of.width + channel) = result;
  }
}

// Backward: `add(place, gradient)` adds to the gradient of the values; `point(index, gradient)` gets this lane's share of a
// point's gradients, which the group must sum up, and is called by all lanes of a group at once.
template <int V, typename S, typename T, typename Add, typename Point>
DNDETR_INLINE void backward_lane(
    const Arguments<S, T>& of, const S* grad, int64_t row, int lane, int lanes, const Add& add, const Point& point) {
  const int64_t start = origin(of, row), stride = of.heads * of.width;
  for_points(of, row, [&](const Sample<T>& at, T attention, int64_t index) {
    T product[4] = {};
    for (int64_t channel = lane * V; channel < of.width; channel += lanes * V) {
      const Pack<S, V> given = load_pack<V>(grad + row * of.width + channel);
      for (int corner = 0; corner < 4; ++corner) {
        const int64_t place = start + at.token[corner] * stride + channel;
        const Pack<S, V> token = load_pack<V>(of.value + place);
        const T weight = at.weight[corner] * attention;
        for (int v = 0; v < V; ++v) {
          const T g = static_cast<T>(given.at[v]);
          product[corner] += static_cast<T>(token.at[v]) * g;
          if (weight != T(0)) add(place + v, weight * g);  // not for corners outside of the level
        }
      }
    }
    point(index, gradient(at, product, attention));
  });
}

}  // namespace dndetr
