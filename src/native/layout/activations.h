// Activations as torch holds them: rows of float32, bfloat16 or float16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dali {

enum class Dtype : int { f32, bf16, f16 };

constexpr size_t item_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Values of one of torch's tensors; null if there are none.
struct Values {
    const void* at = nullptr;
    Dtype dtype = Dtype::f32;
};

// `count` values of row `row` of [rows, count] as float32.
void read_row(const void* from, Dtype dtype, size_t row, int count, float* to);
// Rounds to nearest, ties to even.
void write(const float* from, int count, Dtype dtype, void* to, size_t at);

}  // namespace dali
