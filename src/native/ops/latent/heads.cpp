#include "ops/latent/heads.h"

#include <algorithm>

#include "kernels/variants.h"
#include "ops/decoded_tiles.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int TOKENS = 64;            // at a time: what their heads ask and find stays small
constexpr size_t ITEM_BYTES = 1 << 14;  // of a head's matrix that a thread takes at once
constexpr int GROUP_HEADS = 4;        // that ask one after another, as many as the kernels do at once

// Rows of each token and head, of floats or others.
struct Outputs {
    void* to;
    int64_t row_stride, head_stride;
    Dtype dtype;
};

// out = each head's matrix, of `columns` unpadded ones, times its row of x, for `tokens` tokens.
void multiply(const Matrix& matrix, const uint8_t* packed, int columns, int heads, const Rows& x, Dtype dtype, int tokens,
              const Outputs& out) {
    const Variant& variant = current_variant();
    const Blocks blocks(tokens, variant.most_tokens);
    const int tiles = std::max(1, int(ITEM_BYTES / matrix.tile_bytes)), runs = (matrix.tiles() + tiles - 1) / tiles;
    const size_t panel_size = panel_bytes(matrix.format, matrix.columns, tokens);
    Workspace workspace;
    char* panels = workspace.take<char>(panel_size * heads);
    const auto panel = [&](int head, int block) {
        return panel_at(panels + head * panel_size, matrix.format, matrix.columns, blocks.begin(block), blocks.size(block));
    };
    Phase filling(heads), products(heads * runs);
    Pool::instance().run([&] {
        filling.run([&](int head, int) {
            Workspace workspace;
            float* row = workspace.take<float>(matrix.columns);
            std::fill(row + columns, row + matrix.columns, 0.0f);
            for (int block = 0; block < blocks.count; block++)
                for (int m = 0; m < blocks.size(block); m++) {
                    const int64_t at = (blocks.begin(block) + m) * x.row_stride + head * x.head_stride;
                    read_row(static_cast<const char*>(x.from) + at * int64_t(item_bytes(dtype)), dtype, 0, columns, row);
                    variant.fill_token(row, matrix, panel(head, block), m);
                }
        });
        float sums[MOST_TOKENS * TILE_ROWS];
        products.run([&](int item, int) {
            const int head = item / runs, first = item % runs * tiles, last = std::min(first + tiles, matrix.tiles());
            Workspace workspace;
            const uint8_t* begin = packed + head * matrix.bytes() + first * matrix.tile_bytes;
            const Tiles own = tiles_for(variant, matrix, begin, last - first, tokens, workspace);
            for (int block = 0; block < blocks.count; block++) {
                const Panel from = panel(head, block);
                for (int tile = first; tile < last; tile++) {
                    const uint8_t* at = own.at(tile - first);
                    const uint8_t* next = tile + 1 < matrix.tiles() ? own.at(tile + 1 - first) : at;
                    variant.tiles[int(own.matrix.format)][from.tokens]({at, next, own.matrix.plane_bytes, matrix.columns}, from, sums);
                    const int row = tile * TILE_ROWS, rows = std::min(TILE_ROWS, matrix.rows - row);
                    for (int m = 0; m < from.tokens; m++)
                        write(sums + m * TILE_ROWS, rows, out.dtype, out.to,
                              size_t((blocks.begin(block) + m) * out.row_stride + head * out.head_stride + row));
                }
            }
        });
    });
}

// How many heads ask together.
int group_of(int heads) {
    int group = std::min(heads, GROUP_HEADS);
    while (heads % group) group--;
    return group;
}

}  // namespace

void attend(const LatentHeads& of, const LatentCall& call, const std::vector<DecodingToken>& tokens) {
    const int heads = of.heads, width = of.rank + call.rotated, all = int(tokens.size());
    const size_t item = item_bytes(call.dtype);
    const auto row_of = [&](const void* from, int64_t row, int64_t row_values) {
        return static_cast<const char*>(from) + row * row_values * int64_t(item);
    };
    for (int begin = 0; begin < all; begin += TOKENS) {
        const int count = std::min(TOKENS, all - begin);
        Workspace workspace;
        float* asked = workspace.take<float>(size_t(count) * heads * width);
        float* found = workspace.take<float>(size_t(count) * heads * of.rank);
        const Rows query{row_of(call.query.from, begin, call.query.row_stride), call.query.row_stride, call.query.head_stride};
        multiply(of.keys, of.packed_keys, of.key_width, heads, query, call.dtype, count, {asked, int64_t(heads) * width, width, Dtype::f32});
        for (int i = 0; i < count; i++)
            for (int head = 0; head < heads; head++) {
                const char* rotated = row_of(query.from, 1, i * query.row_stride + head * query.head_stride + of.key_width);
                read_row(rotated, call.dtype, 0, call.rotated, asked + (size_t(i) * heads + head) * width + of.rank);
            }
        std::vector<DecodingToken> some(tokens.begin() + begin, tokens.begin() + begin + count);
        for (DecodingToken& token : some) token.row -= begin;
        AttentionCall attention{call.dtype, heads, heads / group_of(heads), width, of.rank, call.scale,
                                {asked, int64_t(heads) * width, width}, {row_of(call.kept, begin, width), width, 0}, {}, call.sinks, found};
        attention.latent = true;
        attend(attention, some);
        char* out = static_cast<char*>(call.out) + size_t(begin) * heads * of.value_width * item;
        multiply(of.values, of.packed_values, of.rank, heads, {found, int64_t(heads) * of.rank, of.rank}, Dtype::f32, count,
                 {out, int64_t(heads) * of.value_width, of.value_width, call.dtype});
    }
}

}  // namespace dali
