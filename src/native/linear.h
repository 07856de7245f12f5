// One packed matrix times a step's tokens.
#pragma once

#include "activations.h"
#include "format.h"

namespace dali {

// out [tokens, rows] = x [tokens, columns] times the matrix's transpose, plus `bias` [rows] unless null. `columns`: unpadded.
void linear(const Matrix& matrix, const uint8_t* packed, int columns, const float* bias, const void* x, Dtype dtype, int tokens,
            void* out);

}  // namespace dali
