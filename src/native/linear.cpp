#include "linear.h"

#include <algorithm>
#include <vector>

#include "fill.h"
#include "pool.h"
#include "variants.h"
#include "workspace.h"

namespace dali {

namespace {
constexpr int TILES = 4;  // of an item
}

void linear(const Matrix& matrix, const uint8_t* packed, int columns, const float* bias, const void* x, Dtype dtype, int tokens,
            void* out) {
    if (tokens == 0) return;
    const Variant& variant = current_variant();
    const Blocks blocks(tokens, variant.most_tokens);
    Workspace& workspace = Workspace::mine();
    workspace.reserve(panel_bytes(matrix.format, matrix.columns, tokens) + LINE);
    void* panels = workspace.take(panel_bytes(matrix.format, matrix.columns, tokens));

    Phase filling(blocks.count);
    Phase tiles((matrix.tiles() + TILES - 1) / TILES);
    Pool::instance().run([&] {
        std::vector<float> row(matrix.columns, 0.0f);
        filling.run([&](int block, int) {
            const Panel panel = panel_at(panels, matrix.format, matrix.columns, blocks.begin(block), blocks.size(block));
            for (int m = 0; m < panel.tokens; m++) {
                read_row(x, dtype, blocks.begin(block) + m, columns, row.data());
                fill_token(variant, row.data(), matrix, panel, m);
            }
        });
        float sums[MOST_TOKENS * TILE_ROWS];
        tiles.run([&](int item, int following) {
            const int last = std::min((item + 1) * TILES, matrix.tiles());
            const uint8_t* after = packed + std::min(following * TILES, matrix.tiles() - 1) * matrix.tile_bytes;
            for (int block = 0; block < blocks.count; block++) {
                const Panel panel = panel_at(panels, matrix.format, matrix.columns, blocks.begin(block), blocks.size(block));
                const TileKernel kernel = variant.tiles[int(matrix.format)][panel.tokens];
                for (int tile = item * TILES; tile < last; tile++) {
                    const uint8_t* at = packed + tile * matrix.tile_bytes;
                    const uint8_t* next = tile + 1 < last ? at + matrix.tile_bytes : after;
                    kernel({at, next, matrix.plane_bytes, matrix.columns}, panel, sums);
                    const int first = tile * TILE_ROWS, count = std::min(TILE_ROWS, matrix.rows - first);
                    for (int m = 0; m < panel.tokens; m++) {
                        float* sum = sums + m * TILE_ROWS;
                        if (bias)
                            for (int r = 0; r < count; r++) sum[r] += bias[first + r];
                        write(sum, count, dtype, out, size_t(blocks.begin(block) + m) * matrix.rows + first);
                    }
                }
            }
        });
    });
}

}  // namespace dali
