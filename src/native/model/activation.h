// Activations over rows of values.
#pragma once

#include <cstdint>

#include "kernels/variant.h"

namespace dali {

// out [values] = activation of x [values], in float32, rounded to `dtype`; a value's result does not depend on its place.
void activate(Activation kind, const void* x, Dtype dtype, int64_t values, void* out);

// out [values] = 1 / (1 + e^-x), in float32 as torch computes it over glibc, value by value, rounded to `dtype`.
void sigmoid(const void* x, Dtype dtype, int values, void* out);

}  // namespace dali
