// Root-mean-square normalisation.
#pragma once

#include <cstdint>

#include "layout/activations.h"

namespace dali {

// out [rows, width] = weight [width] times x [rows, width] over its root mean square, rounded to `dtype` before and after `weight`;
// after it alone where the weights are wider than that.
void rms_norm(const void* x, const void* weight, Dtype weight_dtype, Dtype dtype, int64_t rows, int width, float epsilon, void* out);

}  // namespace dali
