// The CPU kernels: one worker an image and head, which alone reads and adds to that head's tokens, so that no atomics are needed
// and sums have one order.
//
// The coordinates of 16 (float64: 8) points are computed in one vector; channels are summed in others. A head's tokens are laid
// side by side first, as they share few sets of the cache where they lie, unless there are too few queries for that to pay.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "call.h"
#include "point.h"
#include "vectors.h"

namespace dndetr {
namespace {

// The points of a few successive queries in one head, a row a query: where they lie, and what they read.
template <typename T>
class Rows {
 public:
  explicit Rows(const Call& call)
      : points(call.all_points()),
        size(std::max<int64_t>(1, 4 * LANES<T> / std::max<int64_t>(1, points))),
        call_(call),
        vectors_((size * points + LANES<T> - 1) / LANES<T>),
        whole_(points % LANES<T> == 0),
        levels_(vectors_),
        where_(2 * vectors_ * LANES<T>),
        attention_(vectors_ * LANES<T>),
        token_(4 * (vectors_ * LANES<T> + points)),  // idle lanes write behind the last row
        weight_(token_.size()),
        product_(token_.size()),
        place_(vectors_ * LANES<T>) {
    for (int64_t i = 0; i < vectors_ * LANES<T>; ++i) {  // idle lanes too: they read something
      place_[i] = i / points * 4 * points + i % points;
      const Level& level = call.levels[i / call.points % call.levels.size()];
      OfLevel& of = levels_[i / LANES<T>];
      of.width[i % LANES<T>] = level.columns;
      of.height[i % LANES<T>] = level.rows;
      of.columns[i % LANES<T>] = level.columns;
      of.rows[i % LANES<T>] = level.rows;
      of.first_token[i % LANES<T>] = level.first_token;
    }
  }

  const int64_t points, size;

  // From query `first` on; returns how many queries there are.
  int64_t read(int64_t image, int64_t head, int64_t first, const T* locations, const T* attention) {
    first_row_ = (image * call_.queries + first) * call_.heads + head;
    queries_left_ = call_.queries - first;
    queries_ = std::min(size, queries_left_);
    for (int64_t q = 0; q < queries_; ++q) {
      announce(locations + 2 * later_row(q) * points, 2 * points);
      announce(attention + later_row(q) * points, points);
    }
    for (int64_t q = 0; q < queries_; ++q) {
      copy(locations + 2 * row(q) * points, 2 * points, &where_[2 * q * points]);
      copy(attention + row(q) * points, points, &attention_[q * points]);
    }
    for (int64_t i = 0; i < vectors_; ++i) {
      const Sample<Vector<T>> found = at(i);
      const Vector<T> attention_of = load(&attention_[i * LANES<T>]);
      for (int corner = 0; corner < 4; ++corner) {
        const Vector<T> weight = found.weight[corner] * attention_of;
        const int64_t* place = &place_[i * LANES<T>];
        if (whole_) {
          std::memcpy(&token_[*place + corner * points], &found.token[corner], sizeof(found.token[corner]));
          store(&weight_[*place + corner * points], weight);
        } else {
          for (int64_t lane = 0; lane < LANES<T>; ++lane) {
            token_[place[lane] + corner * points] = found.token[corner][lane];
            weight_[place[lane] + corner * points] = weight[lane];
          }
        }
      }
    }
    return queries_;
  }

  // Of query q: where it lies among all queries and heads.
  int64_t row(int64_t q) const { return first_row_ + q * call_.heads; }

  // The row that will be read after this one, at the next call.
  int64_t later_row(int64_t q) const { return row(std::min(q + size, queries_left_ - 1)); }

  // Of query q: for each corner of each point the token, and its bilinear times attention weight; and room for its product
  // with the output's gradient.
  const Int<T>* token(int64_t q) const { return &token_[4 * q * points]; }
  const T* weight(int64_t q) const { return &weight_[4 * q * points]; }
  T* product(int64_t q) { return &product_[4 * q * points]; }

  // From the products, the gradients of locations and attention weights.
  void write_gradients(T* locations, T* attention) {
    for (int64_t i = 0; i < vectors_; ++i) {
      Vector<T> products[4] = {};
      for (int corner = 0; corner < 4; ++corner) {
        const int64_t* place = &place_[i * LANES<T>];
        if (whole_) {
          products[corner] = load(&product_[*place + corner * points]);
        } else {
          for (int64_t lane = 0; lane < LANES<T>; ++lane) products[corner][lane] = product_[place[lane] + corner * points];
        }
      }
      const PointGradient<Vector<T>> found = gradient(at(i), products, load(&attention_[i * LANES<T>]));
      store(&where_[2 * i * LANES<T>], turns(found.x, found.y));
      store(&where_[(2 * i + 1) * LANES<T>], more_turns(found.x, found.y));
      store(&attention_[i * LANES<T>], found.attention);
    }
    for (int64_t q = 0; q < queries_; ++q) {
      copy(&where_[2 * q * points], 2 * points, locations + 2 * row(q) * points);
      copy(&attention_[q * points], points, attention + row(q) * points);
    }
  }

 private:
  struct OfLevel {
    Vector<T> width, height;
    Int<Vector<T>> columns, rows, first_token;
  };

  DNDETR_INLINE Sample<Vector<T>> at(int64_t i) const {
    const Vector<T> a = load(&where_[2 * i * LANES<T>]), b = load(&where_[(2 * i + 1) * LANES<T>]);
    const OfLevel& of = levels_[i];
    return sample(even(a, b), odd(a, b), of.width, of.height, of.columns, of.rows, of.first_token);
  }

  const Call& call_;
  const int64_t vectors_;
  const bool whole_;  // a vector holds points of one query only
  int64_t first_row_ = 0, queries_ = 0, queries_left_ = 0;
  std::vector<OfLevel> levels_;
  std::vector<T> where_, attention_;
  std::vector<Int<T>> token_;
  std::vector<T> weight_, product_;
  std::vector<int64_t> place_;  // of each point's first corner
};

// Calls `run(C, first, count)` until all channels are done: C vectors of them from channel `first` on, or fewer than a vector.
template <typename T, typename Run>
DNDETR_INLINE void by_channels(int64_t width, const Run& run) {
  using Two = std::integral_constant<int, 2>;
  using One = std::integral_constant<int, 1>;
  int64_t first = 0;
  for (; first + 2 * LANES<T> <= width; first += 2 * LANES<T>) run(Two{}, first, All<T>{});
  if (first + LANES<T> <= width) {
    run(One{}, first, All<T>{});
    first += LANES<T>;
  }
  if (first < width) run(One{}, first, width - first);
}

// Whether each token is read several times, so that it pays to lay a head's tokens side by side.
bool many_queries(const Call& call) { return call.queries * call.all_points() > call.tokens; }

template <typename T>
at::Tensor side_by_side(const Call& call, bool beside) {
  return at::empty({beside ? call.tokens * call.width : 0}, call.locations.options());
}

// A query's result: the weighted sum of `corners` tokens that lie `stride` numbers apart. C vectors of channels.
template <int C, typename T, typename S, typename Count>
DNDETR_INLINE void gather(
    const S* tokens, int64_t stride, int64_t corners, const Int<T>* token, const T* weight, T* out, Count count) {
  Vector<T> sum[4][C] = {};  // independent chains of additions
  for (int64_t i = 0; i < corners; i += 4) {
    for (int chain = 0; chain < 4; ++chain) {
      const S* from = tokens + token[i + chain] * stride;
      for (int c = 0; c < C; ++c) sum[chain][c] += weight[i + chain] * load<T>(from + c * LANES<T>, count);
    }
  }
  for (int c = 0; c < C; ++c) store(out + c * LANES<T>, (sum[0][c] + sum[1][c]) + (sum[2][c] + sum[3][c]), count);
}

template <typename S, typename T>
void forward(const Call& call, S* out) {
  const S* value = call.value.const_data_ptr<S>();
  const T *locations = call.locations.const_data_ptr<T>(), *attention = call.weights.const_data_ptr<T>();
  const int64_t width = call.width, stride = call.heads * width;
  const bool beside = many_queries(call);
  at::parallel_for(0, call.batch * call.heads, 1, [&](int64_t begin, int64_t end) {
    Rows<T> rows(call);
    const at::Tensor room = side_by_side<T>(call, beside);
    T* tokens = room.mutable_data_ptr<T>();
    std::vector<T> found(width);
    for (int64_t worker = begin; worker < end; ++worker) {
      const int64_t image = worker / call.heads, head = worker % call.heads;
      const S* in_place = value + image * call.tokens * stride + head * width;
      for (int64_t i = 0; beside && i < call.tokens; ++i) copy(in_place + i * stride, width, &tokens[i * width]);
      for (int64_t query = 0; query < call.queries; query += rows.size) {
        const int64_t queries = rows.read(image, head, query, locations, attention);
        for (int64_t q = 0; q < queries; ++q) {
          announce<true>(out + rows.later_row(q) * width, width);
          by_channels<T>(width, [&](auto vectors, int64_t first, auto count) {
            constexpr int C = decltype(vectors)::value;
            if (beside) {
              gather<C>(tokens + first, width, 4 * rows.points, rows.token(q), rows.weight(q), &found[first], count);
            } else {
              gather<C>(in_place + first, stride, 4 * rows.points, rows.token(q), rows.weight(q), &found[first], count);
            }
          });
          copy(found.data(), width, out + rows.row(q) * width);
        }
      }
    }
  });
}

template <typename Run, int... I>
DNDETR_INLINE void unrolled(const Run& run, std::integer_sequence<int, I...>) {
  (run(I), ...);
}

// Of up to LANES corners: adds to their tokens' gradients, and to their products of token and gradient `g`.
template <int C, typename T, typename Count, typename Corners>
DNDETR_INLINE void scatter_some(
    const T* tokens, T* grad_tokens, int64_t stride, const Int<T>* token, const T* weight, const Vector<T> (&g)[C], T* product,
    Count count, Corners corners) {
  Vector<T> partial[LANES<T>] = {};
  const auto one = [&](int i) __attribute__((always_inline)) {
    const T* from = tokens + token[i] * stride;
    T* into = grad_tokens + token[i] * stride;
    for (int c = 0; c < C; ++c) {
      partial[i] += load<T>(from + c * LANES<T>, count) * g[c];
      store(into + c * LANES<T>, load<T>(into + c * LANES<T>, count) + weight[i] * g[c], count);
    }
  };
  if constexpr (std::is_same_v<Corners, All<T>>) {  // written out, so that `partial` stays in registers
    unrolled(one, std::make_integer_sequence<int, LANES<T>>{});
  } else {
    for (int i = 0; i < corners; ++i) one(i);
  }
  store(product, load<T>(product, corners) + sums<T>(partial), corners);
}

template <int C, typename T, typename Count>
DNDETR_INLINE void scatter(
    const T* tokens, T* grad_tokens, int64_t stride, int64_t corners, const Int<T>* token, const T* weight, const T* grad,
    T* product, Count count) {
  Vector<T> g[C];
  for (int c = 0; c < C; ++c) g[c] = load<T>(grad + c * LANES<T>, count);
  int64_t i = 0;
  for (; i + LANES<T> <= corners; i += LANES<T>) {
    scatter_some<C>(tokens, grad_tokens, stride, token + i, weight + i, g, product + i, count, All<T>{});
  }
  if (i < corners) scatter_some<C>(tokens, grad_tokens, stride, token + i, weight + i, g, product + i, count, corners - i);
}

// Unless tokens lie `beside` each other, `grad_value` is 0 and added to in place.
template <typename S, typename T>
void backward(const Call& call, bool beside, const S* grad, S* grad_value, T* grad_locations, T* grad_attention) {
  const S* value = call.value.const_data_ptr<S>();
  const T *locations = call.locations.const_data_ptr<T>(), *attention = call.weights.const_data_ptr<T>();
  const int64_t width = call.width, stride = call.heads * width;
  at::parallel_for(0, call.batch * call.heads, 1, [&](int64_t begin, int64_t end) {
    Rows<T> rows(call);
    const at::Tensor room = side_by_side<T>(call, beside), grad_room = side_by_side<T>(call, beside);
    T *tokens = room.mutable_data_ptr<T>(), *grad_tokens = grad_room.mutable_data_ptr<T>();
    std::vector<T> given(width);
    for (int64_t worker = begin; worker < end; ++worker) {
      const int64_t image = worker / call.heads, head = worker % call.heads;
      const int64_t origin = image * call.tokens * stride + head * width;
      for (int64_t i = 0; beside && i < call.tokens; ++i) copy(value + origin + i * stride, width, &tokens[i * width]);
      if (beside) std::fill_n(grad_tokens, call.tokens * width, T(0));
      for (int64_t query = 0; query < call.queries; query += rows.size) {
        const int64_t queries = rows.read(image, head, query, locations, attention);
        for (int64_t q = 0; q < queries; ++q) {
          copy(grad + rows.row(q) * width, width, given.data());
          announce(grad + rows.later_row(q) * width, width);
          announce<true>(grad_locations + 2 * rows.later_row(q) * rows.points, 2 * rows.points);
          announce<true>(grad_attention + rows.later_row(q) * rows.points, rows.points);
          const T* from = tokens;
          T* into = grad_tokens;
          if constexpr (std::is_same_v<S, T>) {
            if (!beside) from = value + origin, into = grad_value + origin;
          }
          std::fill_n(rows.product(q), 4 * rows.points, T(0));
          by_channels<T>(width, [&](auto vectors, int64_t first, auto count) {
            scatter<decltype(vectors)::value>(
                from + first, into + first, beside ? width : stride, 4 * rows.points, rows.token(q), rows.weight(q),
                &given[first], rows.product(q), count);
          });
        }
        rows.write_gradients(grad_locations, grad_attention);
      }
      for (int64_t i = 0; beside && i < call.tokens; ++i) copy(&grad_tokens[i * width], width, grad_value + origin + i * stride);
    }
  });
}

}  // namespace

at::Tensor forward_cpu(
    const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Call call = check(value, spatial_shapes, sampling_locations, attention_weights);
  at::Tensor out = at::empty(call.output_shape(), value.options());
  by_type(value.scalar_type(), [&](auto stored, auto computed) {
    using S = decltype(stored);
    forward<S, decltype(computed)>(call, out.mutable_data_ptr<S>());
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad, const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Call call = check(value, spatial_shapes, sampling_locations, attention_weights);
  const at::Tensor given = check_gradient(call, grad);
  const bool halves = call.value.scalar_type() != call.locations.scalar_type();  // their sums are not rounded on the way
  const bool beside = many_queries(call) || halves;
  at::Tensor grad_value = beside ? at::empty_like(call.value) : at::zeros_like(call.value);
  at::Tensor grad_locations = at::empty_like(call.locations), grad_attention = at::empty_like(call.weights);
  by_type(value.scalar_type(), [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    backward<S, T>(
        call, beside, given.const_data_ptr<S>(), grad_value.mutable_data_ptr<S>(), grad_locations.mutable_data_ptr<T>(),
        grad_attention.mutable_data_ptr<T>());
  });
  return {grad_value, grad_locations.to(sampling_locations.scalar_type()), grad_attention.to(attention_weights.scalar_type())};
}

}  // namespace dndetr
