// A call of the operator, checked once for every device.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

namespace dndetr {

struct Level {
  int64_t rows, columns, first_token;
};

// The tensors are contiguous; locations and weights are in the type that is computed in, float or double.
struct Call {
  at::Tensor value, locations, weights;
  std::vector<Level> levels;
  int64_t batch, tokens, heads, width, queries, points;  // points of a level

  int64_t all_points() const { return static_cast<int64_t>(levels.size()) * points; }
  std::vector<int64_t> output_shape() const { return {batch, queries, heads * width}; }
};

inline Call check(
    const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& locations, const at::Tensor& weights) {
  TORCH_CHECK(value.dim() == 4, "value must be (B, S, H, D), got ", value.sizes());
  TORCH_CHECK(
      spatial_shapes.dim() == 2 && spatial_shapes.size(0) > 0 && spatial_shapes.size(1) == 2,
      "spatial_shapes must be (L, 2) with L > 0, got ", spatial_shapes.sizes());
  const int64_t batch = value.size(0), heads = value.size(2), count = spatial_shapes.size(0);
  TORCH_CHECK(
      locations.dim() == 6 && locations.size(0) == batch && locations.size(2) == heads && locations.size(3) == count &&
          locations.size(5) == 2,
      "sampling_locations must be (B, Q, H, L, P, 2) with B ", batch, ", H ", heads, " and L ", count, ", got ",
      locations.sizes());
  TORCH_CHECK(
      weights.sizes() == locations.sizes().slice(0, 5), "attention_weights must be (B, Q, H, L, P) like the locations ",
      locations.sizes(), ", got ", weights.sizes());
  TORCH_CHECK(
      locations.device() == value.device() && weights.device() == value.device(),
      "value, sampling_locations and attention_weights must be on one device, got ", value.device(), ", ",
      locations.device(), " and ", weights.device());

  const at::Tensor shapes = spatial_shapes.to(at::kCPU, at::kLong).contiguous();
  const int64_t* side = shapes.const_data_ptr<int64_t>();
  std::vector<Level> levels;
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i, side += 2) {
    TORCH_CHECK(side[0] > 0 && side[1] > 0, "level ", i, " is ", side[0], " x ", side[1], ", it must have pixels");
    levels.push_back({side[0], side[1], tokens});
    tokens += side[0] * side[1];
  }
  TORCH_CHECK(tokens == value.size(1), "the levels have ", tokens, " pixels, but value has ", value.size(1), " tokens");
  TORCH_CHECK(tokens <= INT32_MAX, "more than ", INT32_MAX, " tokens an image are not supported, got ", tokens);

  const at::ScalarType type = value.scalar_type();
  TORCH_CHECK(
      type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
      "value must be float32, float64, bfloat16 or float16, got ", type);
  const at::ScalarType computed = type == at::kDouble ? at::kDouble : at::kFloat;
  return {value.contiguous(), locations.to(computed).contiguous(), weights.to(computed).contiguous(), levels, batch, tokens,
          heads, value.size(3), locations.size(1), locations.size(4)};
}

// The gradient of the result, contiguous and in the type that is stored.
inline at::Tensor check_gradient(const Call& call, const at::Tensor& grad) {
  TORCH_CHECK(
      grad.sizes() == at::IntArrayRef(call.output_shape()), "the gradient must be ", call.output_shape(), ", got ",
      grad.sizes());
  return grad.to(call.value.scalar_type()).contiguous();
}

at::Tensor forward_cpu(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&);
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&);

// Calls `run(S{}, T{})`: the type that is stored and the type that is computed in.
template <typename Run>
void by_type(at::ScalarType type, const Run& run) {
  switch (type) {
    case at::kDouble: return run(double{}, double{});
    case at::kBFloat16: return run(c10::BFloat16{}, float{});
    case at::kHalf: return run(c10::Half{}, float{});
    default: return run(float{}, float{});  // `check` let no other type through
  }
}

}  // namespace dndetr
