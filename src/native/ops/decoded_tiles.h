// Tiles as they are multiplied: of codes, decoded once for all blocks of tokens, unless the tokens are few.
#pragma once

#include "kernels/variant.h"
#include "threads/workspace.h"

namespace dali {

struct Tiles {
    Matrix matrix;
    const uint8_t* first;

    const uint8_t* at(int number) const { return first + number * matrix.tile_bytes; }
};

// `count` of a matrix' tiles from `first` on, for `tokens` tokens.
inline Tiles tiles_for(const Variant& variant, const Matrix& matrix, const uint8_t* first, int count, int tokens, Workspace& workspace) {
    if (!is_grid(matrix.format) || tokens <= variant.few_tokens) return {matrix, first};
    const Matrix decoded(decoded_format(matrix.format), matrix.rows, matrix.columns);
    uint8_t* to = workspace.take<uint8_t>(count * decoded.tile_bytes);
    for (int i = 0; i < count; i++)
        variant.decode[int(matrix.format)](first + i * matrix.tile_bytes, matrix.plane_bytes, matrix.columns, to + i * decoded.tile_bytes);
    return {decoded, to};
}

}  // namespace dali
