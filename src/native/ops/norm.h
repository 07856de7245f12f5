// Root-mean-square normalisation.
#pragma once

#include <cstdint>

#include "layout/activations.h"

namespace dali {

// out [rows, width] = weight [width] times x [rows, width] over its root mean square, rounded to `dtype` before and after `weight`.
void rms_norm(const void* x, const void* weight, Dtype dtype, int64_t rows, int width, float epsilon, void* out);

}  // namespace dali
