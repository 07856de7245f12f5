#include "model/embeddings.h"

#include <cstring>
#include <stdexcept>

#include "model/parts.h"
#include "ops/repack.h"
#include "threads/workspace.h"

namespace dali {

namespace {

Dtype dtype_of(Format format) { return format == Format::f32 ? Dtype::f32 : format == Format::bf16 ? Dtype::bf16 : Dtype::f16; }

// One row of a tile of floats, whose lines hold 4 bytes of each row.
void float_row(const Embeddings& of, int64_t id, int hidden, float* out) {
    Workspace workspace;
    const int words = of.matrix.columns * bits(of.matrix.format) / 32;
    char* row = workspace.take<char>(4 * words);
    const uint8_t* tile = of.packed + id / TILE_ROWS * of.matrix.tile_bytes + id % TILE_ROWS * 4;
    for (int i = 0; i < words; i++) std::memcpy(row + 4 * i, tile + size_t(i) * LINE, 4);
    read_row(row, dtype_of(of.matrix.format), 0, hidden, out);
}

}  // namespace

void look_up(const Embeddings& embeddings, const std::vector<int64_t>& ids, int hidden, Dtype dtype, void* x) {
    Workspace workspace;
    float* values = embeddings.packed ? workspace.take<float>(hidden) : nullptr;
    const size_t row_bytes = hidden * item_bytes(dtype);
    for (size_t row = 0; row < ids.size(); row++) {
        const int64_t id = ids[row];
        if (id < 0 || id >= embeddings.vocabulary) throw std::out_of_range("a token beyond the vocabulary");
        if (embeddings.table) {
            std::memcpy(static_cast<char*>(x) + row * row_bytes, static_cast<const char*>(embeddings.table) + id * row_bytes, row_bytes);
            continue;
        }
        if (is_quantized(embeddings.matrix.format))
            rows_of(embeddings.matrix, embeddings.packed, hidden, &id, 1, values);
        else
            float_row(embeddings, id, hidden, values);
        write(values, hidden, dtype, x, row * hidden);
    }
    if (embeddings.scale != 1) scale(x, embeddings.scale, dtype, int(ids.size()) * hidden);
}

}  // namespace dali
