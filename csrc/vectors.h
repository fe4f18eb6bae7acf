// Vectors of numbers for the CPU kernels, in the vector extensions of GCC and Clang: 64 bytes, whatever the processor has.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "point.h"

#if defined(__clang__) || __GNUC__ >= 12
#define DNDETR_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DNDETR_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Int<std::decay_t<decltype(a)>>){__VA_ARGS__})
#endif

namespace dndetr {

using Floats = float __attribute__((vector_size(64)));
using Doubles = double __attribute__((vector_size(64)));

template <>
struct Number<Floats> {
  using Int = int32_t __attribute__((vector_size(64)));
  static DNDETR_INLINE Int truncate(Floats x) { return __builtin_convertvector(x, Int); }
  static DNDETR_INLINE Floats real(Int i) { return __builtin_convertvector(i, Floats); }
};

template <>
struct Number<Doubles> {
  using Int = int64_t __attribute__((vector_size(64)));
  static DNDETR_INLINE Int truncate(Doubles x) { return __builtin_convertvector(x, Int); }
  static DNDETR_INLINE Doubles real(Int i) { return __builtin_convertvector(i, Doubles); }
};

// T is what is computed in, float or double; S is what is stored, T or half of it.
template <typename T>
using Vector = std::conditional_t<std::is_same_v<T, float>, Floats, Doubles>;
template <typename T>
constexpr int64_t LANES = 64 / sizeof(T);
template <typename T>
using All = std::integral_constant<int64_t, LANES<T>>;  // a count of channels known to the compiler

// The first `count` of LANES numbers; the others are 0.
template <typename T, typename S, typename Count>
DNDETR_INLINE Vector<T> load(const S* from, Count count) {
  Vector<T> found{};
  if constexpr (std::is_same_v<Count, All<T>> && std::is_same_v<S, T>) {
    std::memcpy(&found, from, sizeof(found));
  } else {
    for (int64_t i = 0; i < count; ++i) found[i] = static_cast<T>(from[i]);
  }
  return found;
}

template <typename T, typename Count>
DNDETR_INLINE void store(T* to, Vector<T> x, Count count) {
  if constexpr (std::is_same_v<Count, All<T>>) {
    std::memcpy(to, &x, sizeof(x));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = x[i];
  }
}

template <typename T>
DNDETR_INLINE Vector<T> load(const T* from) {
  return load<T>(from, All<T>{});
}
template <typename T>
DNDETR_INLINE void store(T* to, Vector<T> x) {
  store(to, x, All<T>{});
}

template <typename From, typename To>
DNDETR_INLINE void copy(const From* from, int64_t count, To* to) {
  int64_t i = 0;
  if constexpr (std::is_same_v<From, To>) {
    for (; i + LANES<To> <= count; i += LANES<To>) store(to + i, load(from + i));
  }
  for (; i < count; ++i) to[i] = static_cast<To>(from[i]);
}

// Tells the processor that `count` numbers will be needed: steps from row to row are too wide for it to guess.
template <bool WRITE = false, typename T>
DNDETR_INLINE void announce(const T* at, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(at + i, WRITE);
}

// The even and the odd numbers of two vectors; and two vectors in turns, the first and the second half of it.
DNDETR_INLINE Floats even(Floats a, Floats b) {
  return DNDETR_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
DNDETR_INLINE Floats odd(Floats a, Floats b) {
  return DNDETR_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
DNDETR_INLINE Doubles even(Doubles a, Doubles b) { return DNDETR_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
DNDETR_INLINE Doubles odd(Doubles a, Doubles b) { return DNDETR_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }

DNDETR_INLINE Floats turns(Floats a, Floats b) {
  return DNDETR_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
DNDETR_INLINE Floats more_turns(Floats a, Floats b) {
  return DNDETR_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
DNDETR_INLINE Doubles turns(Doubles a, Doubles b) { return DNDETR_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
DNDETR_INLINE Doubles more_turns(Doubles a, Doubles b) { return DNDETR_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

// Of N vectors of N numbers each, the vector of their N sums.
template <typename T, int N = LANES<T>>
DNDETR_INLINE Vector<T> sums(const Vector<T>* x) {
  if constexpr (N == 1) {
    return *x;
  } else {
    Vector<T> half[N / 2];
    for (int i = 0; i < N / 2; ++i) half[i] = even(x[2 * i], x[2 * i + 1]) + odd(x[2 * i], x[2 * i + 1]);
    return sums<T, N / 2>(half);
  }
}

}  // namespace dndetr
