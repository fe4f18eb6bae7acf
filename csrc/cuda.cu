// The CUDA kernels: the lanes of a group share a query and head, vectorised over its channels. Gradients of the values are
// added with atomics, in fp32 where halves are stored; those of locations and weights are summed up within the group.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "call.h"
#include "lane.h"

namespace dndetr {
namespace {

constexpr int THREADS = 256;

// Which row and lane a thread has, in groups of `lanes`, a power of two.
struct Place {
  int64_t row;
  int lane;

  __device__ explicit Place(int lanes)
      : row((static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) / lanes), lane(threadIdx.x % lanes) {}
};

template <int V, typename S, typename T>
__global__ void __launch_bounds__(THREADS) forward_kernel(const __grid_constant__ Arguments<S, T> of, int lanes, S* out) {
  const Place at(lanes);
  if (at.row < of.rows) forward_lane<V>(of, at.row, at.lane, lanes, out);
}

template <int V, typename S, typename T>
__global__ void __launch_bounds__(THREADS) backward_kernel(
    const __grid_constant__ Arguments<S, T> of, const S* grad, int lanes, T* grad_value, T* grad_locations, T* grad_weights) {
  const Place at(lanes);
  if (at.row >= of.rows) return;  // a whole group at a time, and only groups sum up
  const unsigned first = threadIdx.x % 32 / lanes * lanes;
  const unsigned group = (lanes == 32 ? ~0u : (1u << lanes) - 1) << first;
  const auto sum = [&](T x) {
    for (int apart = lanes / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(group, x, apart);
    return x;
  };
  backward_lane<V>(
      of, grad, at.row, at.lane, lanes, [&](int64_t place, T x) { atomicAdd(grad_value + place, x); },
      [&](int64_t index, PointGradient<T> share) {
        const T x = sum(share.x), y = sum(share.y), attention = sum(share.attention);
        if (at.lane == 0) {
          grad_locations[2 * index] = x;
          grad_locations[2 * index + 1] = y;
          grad_weights[index] = attention;
        }
      });
}

template <typename S, typename T>
Arguments<S, T> arguments(const Call& call) {
  TORCH_CHECK(call.levels.size() <= MAX_LEVELS, "at most ", MAX_LEVELS, " levels are supported, got ", call.levels.size());
  Arguments<S, T> of{
      call.value.const_data_ptr<S>(), call.locations.const_data_ptr<T>(), call.weights.const_data_ptr<T>(), {}, call.tokens,
      call.heads, call.width, call.queries, call.points, call.batch * call.queries * call.heads};
  of.levels.count = static_cast<int32_t>(call.levels.size());
  for (size_t i = 0; i < call.levels.size(); ++i) {
    of.levels.rows[i] = static_cast<int32_t>(call.levels[i].rows);
    of.levels.columns[i] = static_cast<int32_t>(call.levels[i].columns);
    of.levels.first_token[i] = static_cast<int32_t>(call.levels[i].first_token);
  }
  return of;
}

// Calls `run(V, lanes, blocks)`: 16 bytes at once where the width and every address allow it, and as many lanes as that needs.
template <typename S, typename Run>
void launch(const Call& call, std::initializer_list<const void*> addresses, const Run& run) {
  constexpr int WIDE = 16 / sizeof(S);
  bool wide = call.width % WIDE == 0;
  for (const void* address : addresses) wide = wide && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  const int64_t packs = wide ? call.width / WIDE : call.width;
  int lanes = 1;
  while (lanes < packs && lanes < 32) lanes *= 2;
  const int64_t blocks = (call.batch * call.queries * call.heads * lanes + THREADS - 1) / THREADS;
  if (blocks == 0 || call.width == 0) return;
  TORCH_CHECK(blocks <= INT32_MAX, "too many queries for one launch: ", blocks, " blocks");
  if (wide) {
    run(std::integral_constant<int, WIDE>{}, lanes, static_cast<unsigned>(blocks));
  } else {
    run(std::integral_constant<int, 1>{}, lanes, static_cast<unsigned>(blocks));
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor forward_cuda(
    const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Call call = check(value, spatial_shapes, sampling_locations, attention_weights);
  at::Tensor out = at::empty(call.output_shape(), value.options());
  by_type(value.scalar_type(), [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    launch<S>(call, {call.value.const_data_ptr(), out.const_data_ptr()}, [&](auto vector, int lanes, unsigned blocks) {
      forward_kernel<decltype(vector)::value, S, T><<<blocks, THREADS, 0, c10::cuda::getCurrentCUDAStream()>>>(
          arguments<S, T>(call), lanes, out.mutable_data_ptr<S>());
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cuda(
    const at::Tensor& grad, const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Call call = check(value, spatial_shapes, sampling_locations, attention_weights);
  const at::Tensor given = check_gradient(call, grad);
  at::Tensor grad_value = at::zeros(call.value.sizes(), call.locations.options());
  at::Tensor grad_locations = at::zeros_like(call.locations), grad_weights = at::zeros_like(call.weights);
  by_type(value.scalar_type(), [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    launch<S>(call, {call.value.const_data_ptr(), given.const_data_ptr()}, [&](auto vector, int lanes, unsigned blocks) {
      backward_kernel<decltype(vector)::value, S, T><<<blocks, THREADS, 0, c10::cuda::getCurrentCUDAStream()>>>(
          arguments<S, T>(call), given.const_data_ptr<S>(), lanes, grad_value.mutable_data_ptr<T>(),
          grad_locations.mutable_data_ptr<T>(), grad_weights.mutable_data_ptr<T>());
    });
  });
  return {grad_value.to(value.scalar_type()), grad_locations.to(sampling_locations.scalar_type()),
          grad_weights.to(attention_weights.scalar_type())};
}

}  // namespace
}  // namespace dndetr

TORCH_LIBRARY_IMPL(dndetr, CUDA, m) {
  m.impl("ms_deform_attn", &dndetr::forward_cuda);
  m.impl("ms_deform_attn_backward", &dndetr::backward_cuda);
}
