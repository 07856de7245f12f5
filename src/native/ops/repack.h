// GGUF's blocks into packed tiles, and what either stands for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "layout/format.h"

namespace dali {

// raw [rows][row_bytes] of blocks of `type`, into `packed` [matrix.bytes()] of the format that has the same values
// (store/gguf/pack.py). False for scales that are NaN or infinite. std::invalid_argument for another type or format.
bool repack(const Matrix& matrix, const std::string& type, const uint8_t* raw, size_t row_bytes, uint8_t* packed);

// The values of `count` blocks of `type`. std::invalid_argument for another type.
void dequantize_blocks(const std::string& type, const uint8_t* raw, size_t count, float* out);

// The values of `count` rows of a packed matrix: out [count][unpadded columns].
void rows_of(const Matrix& matrix, const uint8_t* packed, int columns, const int64_t* rows, size_t count, float* out);

}  // namespace dali
