// Multi-scale deformable attention: what one sampling point reads, and how what it reads changes with its location.
//
// Written once for a point (CUDA) and for a vector of points (CPU): T is a number or a vector of numbers.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DNDETR_INLINE __host__ __device__ __forceinline__
#else
#define DNDETR_INLINE inline __attribute__((always_inline))
#endif

namespace dndetr {

// The integers as wide as T, and the conversions between them.
template <typename T>
struct Number;

template <>
struct Number<float> {
  using Int = int32_t;
  static DNDETR_INLINE Int truncate(float x) { return static_cast<Int>(x); }
  static DNDETR_INLINE float real(Int i) { return static_cast<float>(i); }
};

template <>
struct Number<double> {
  using Int = int64_t;
  static DNDETR_INLINE Int truncate(double x) { return static_cast<Int>(x); }
  static DNDETR_INLINE double real(Int i) { return static_cast<double>(i); }
};

template <typename T>
using Int = typename Number<T>::Int;

// Linear interpolation along one side of a level: the two pixels around a location, their weights, and the derivatives of the
// weights. Pixel centres lie at half numbers; a pixel outside of the level has weight 0 and stands for one inside.
template <typename T>
struct Side {
  Int<T> pixel[2];
  T weight[2], slope[2];
};

// `location` in [0, 1] of a side of `size` pixels, which is `count` as an integer. No branches. What is not finite stays so in
// the weights, while the pixels are valid whatever the location; a pixel of the border that is not finite itself makes
// 0 x inf of points beyond it.
template <typename T>
DNDETR_INLINE Side<T> side(T location, T size, Int<T> count) {
  const T zero{}, one = zero + 1, below = zero - 2, above = size + 1;
  const Int<T> first{}, last = count - 1;
  const T at = location * size - one / 2;
  T bounded = at > below ? at : below;  // comparisons with NaN are false: it becomes -2
  bounded = bounded < above ? bounded : above;
  Int<T> low = Number<T>::truncate(bounded);
  low = Number<T>::real(low) > bounded ? low - 1 : low;  // towards minus infinity
  const Int<T> high = low + 1;
  const T low_inside = (low >= first) & (low <= last) ? one : zero;
  const T high_inside = (high >= first) & (high <= last) ? one : zero;
  const T beyond = at - Number<T>::real(low);
  Side<T> found;
  found.pixel[0] = low < first ? first : (low > last ? last : low);
  found.pixel[1] = high < first ? first : (high > last ? last : high);
  found.weight[0] = (1 - beyond) * low_inside;
  found.weight[1] = beyond * high_inside;
  found.slope[0] = -size * low_inside;
  found.slope[1] = size * high_inside;
  return found;
}

// The four tokens around a location with their bilinear weights, and the weights' derivatives by x and by y.
template <typename T>
struct Sample {
  Int<T> token[4];
  T weight[4], by_x[4], by_y[4];
};

template <typename T>
DNDETR_INLINE Sample<T> sample(T x, T y, T width, T height, Int<T> columns, Int<T> rows, Int<T> first_token) {
  const Side<T> across = side(x, width, columns), down = side(y, height, rows);
  Sample<T> found;
  for (int corner = 0; corner < 4; ++corner) {
    const int i = corner / 2, j = corner % 2;
    found.token[corner] = first_token + down.pixel[i] * columns + across.pixel[j];
    found.weight[corner] = down.weight[i] * across.weight[j];
    found.by_x[corner] = down.weight[i] * across.slope[j];
    found.by_y[corner] = down.slope[i] * across.weight[j];
  }
  return found;
}

// The gradients of a point's location and attention weight, from the products of the output's gradient with the four tokens.
template <typename T>
struct PointGradient {
  T x, y, attention;
};

template <typename T>
DNDETR_INLINE PointGradient<T> gradient(const Sample<T>& at, const T (&product)[4], T attention) {
  PointGradient<T> found{};
  for (int corner = 0; corner < 4; ++corner) {
    found.x += at.by_x[corner] * product[corner];
    found.y += at.by_y[corner] * product[corner];
    found.attention += at.weight[corner] * product[corner];
  }
  found.x *= attention;
  found.y *= attention;
  return found;
}

}  // namespace dndetr
