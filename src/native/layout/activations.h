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

// Rows `stride` values apart.
struct StridedRows {
    const void* at;
    Dtype dtype;
    int64_t stride;

    const void* row(int64_t number, int64_t column = 0) const {
        return static_cast<const char*>(at) + (number * stride + column) * int64_t(item_bytes(dtype));
    }
};

// `count` values of row `row` of [rows, count] as float32.
void read_row(const void* from, Dtype dtype, size_t row, int count, float* to);
// The same of values from number `at` on.
inline void read_at(const void* from, Dtype dtype, int64_t at, int count, float* to) {
    read_row(static_cast<const char*>(from) + at * int64_t(item_bytes(dtype)), dtype, 0, count, to);
}
// Rounds to nearest, ties to even.
void write(const float* from, int count, Dtype dtype, void* to, size_t at);

}  // namespace dali
