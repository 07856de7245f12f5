// Root-mean-square normalisation.
#pragma once

#include <cstdint>

#include "layout/activations.h"

namespace dali {

// out [rows, width] = weight [width] times x [rows, width] over its root mean square, rounded to `dtype` before and after `weight`.
void rms_norm(const void* x, const void* weight, Dtype dtype, int64_t rows, int width, float epsilon, void* out);

// out [rows, width] = weight [width] times x [rows][width] * silu(gate), of which each `group` values are over their root mean square, in
// float32; out may be x.
void gated_rms_norm(const float* x, const StridedRows& gate, const Values& weight, int64_t rows, int width, int group, float epsilon,
                    float* out);

}  // namespace dali
