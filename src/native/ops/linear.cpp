#include "ops/linear.h"

#include <algorithm>

#include "threads/pool.h"
#include "kernels/variants.h"
#include "ops/decoded_tiles.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int TILES = 2;  // of an item: some 4 us of reading, so that no thread waits long for the last one

int items(const Matrix& matrix) { return (matrix.tiles() + TILES - 1) / TILES; }

// Panels filled for one matrix serve another of the same width whose format shares them.
struct Panels {
    Matrix matrix;
    void* memory;
};

}  // namespace

void linear(const std::vector<Product>& products, int columns, const void* x, Dtype dtype, int tokens) {
    if (tokens == 0) return;
    const Variant& variant = current_variant();
    const Blocks blocks(tokens, variant.most_tokens);

    std::vector<Panels> panels;     // one for each kind of panel among the products
    std::vector<int> panels_of;     // [products]
    std::vector<int> first_item;    // [products]
    int count = 0;
    for (const Product& product : products) {
        const auto same = [&](const Panels& one) {
            return one.matrix.columns == product.matrix.columns && shares_panels(one.matrix.format, product.matrix.format);
        };
        const auto found = std::find_if(panels.begin(), panels.end(), same);
        panels_of.push_back(int(found - panels.begin()));
        if (found == panels.end()) panels.push_back({product.matrix, nullptr});
        first_item.push_back(count);
        count += items(product.matrix);
    }
    Workspace workspace;
    for (Panels& one : panels) one.memory = workspace.take<char>(panel_bytes(one.matrix.format, one.matrix.columns, tokens));

    const auto panel = [&](const Panels& of, int block) {
        return panel_at(of.memory, of.matrix.format, of.matrix.columns, blocks.begin(block), blocks.size(block));
    };
    const auto product_of = [&](int item) { return int(std::upper_bound(first_item.begin(), first_item.end(), item) - first_item.begin()) - 1; };

    Phase filling(blocks.count);
    Phase tiles(count);
    Pool::instance().run([&] {
        filling.run([&](int block, int) {
            for (const Panels& one : panels) {
                Workspace workspace;
                float* row = workspace.take<float>(one.matrix.columns);
                std::fill(row + columns, row + one.matrix.columns, 0.0f);
                const Panel to = panel(one, block);
                for (int m = 0; m < to.tokens; m++) {
                    read_row(x, dtype, blocks.begin(block) + m, columns, row);
                    variant.fill_token(row, one.matrix, to, m);
                }
            }
        });
        float sums[MOST_TOKENS * TILE_ROWS];
        tiles.run([&](int item, int following) {
            const int index = product_of(item), later = product_of(std::min(following, count - 1));
            const Product& product = products[index];
            const Matrix& matrix = product.matrix;
            Workspace workspace;
            const int first = (item - first_item[index]) * TILES, last = std::min(first + TILES, matrix.tiles());
            const int following_tile = (std::min(following, count - 1) - first_item[later]) * TILES;
            const uint8_t* after = products[later].packed + following_tile * products[later].matrix.tile_bytes;
            const uint8_t* begin = product.packed + first * matrix.tile_bytes;
            const Tiles own = tiles_for(variant, matrix, begin, last - first, tokens, workspace);
            for (int block = 0; block < blocks.count; block++) {
                const Panel from = panel(panels[panels_of[index]], block);
                const TileKernel kernel = variant.tiles[int(own.matrix.format)][from.tokens];
                for (int tile = first; tile < last; tile++) {
                    const uint8_t* next = tile + 1 < last ? own.at(tile + 1 - first) : after;
                    kernel({own.at(tile - first), next, own.matrix.plane_bytes, matrix.columns}, from, sums);
                    const int row = tile * TILE_ROWS, rows = std::min(TILE_ROWS, matrix.rows - row);
                    for (int m = 0; m < from.tokens; m++) {
                        float* sum = sums + m * TILE_ROWS;
                        if (product.bias)
                            for (int r = 0; r < rows; r++) sum[r] += product.bias[row + r];
                        write(sum, rows, dtype, product.out, size_t(blocks.begin(block) + m) * matrix.rows + row);
                    }
                }
            }
        });
    });
}

}  // namespace dali
