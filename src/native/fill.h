// A token's activations into a panel.
#pragma once

#include "variant.h"

namespace dali {

// values [matrix.columns], padded with zeros.
inline void fill_token(const Variant& variant, const float* values, const Matrix& matrix, const Panel& panel, int token) {
    for (int group = 0; group < matrix.columns / GROUP; group++)
        variant.fill(values + group * GROUP, matrix.format, panel, group, token);
}

}  // namespace dali
