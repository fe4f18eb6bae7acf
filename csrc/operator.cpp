// The operator dndetr::ms_deform_attn and its gradient: their names, for every device, and their binding to the CPU kernels.

#include <torch/library.h>

#include "call.h"

TORCH_LIBRARY(dndetr, m) {
  m.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad, Tensor value, Tensor spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(dndetr, CPU, m) {
  m.impl("ms_deform_attn", &dndetr::forward_cpu);
  m.impl("ms_deform_attn_backward", &dndetr::backward_cpu);
}
