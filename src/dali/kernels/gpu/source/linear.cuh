// Packed linears of one input, which gather_rows or an earlier kernel makes a panel of; FORMAT and PASSES are fixed when this is compiled.
#pragma once

#include "tiles.cuh"

namespace dali::gpu {

DALI_KERNEL gather_rows(DALI_CALL(GatherCall) call) { fill_panel<FORMAT>(call); }

DALI_DEVICE void put_product(const LinearCall& call, const Product& product, int token, int row, float sum) {
    if (token >= call.tokens || row >= product.matrix.rows) return;
    if (product.bias) sum = add(sum, product.bias[row]);
    if (call.divisor != 1.0f) sum = div(rounded(sum, call.dtype), call.divisor);
    write(product.out, call.dtype, int64_t(token) * product.matrix.rows + row, sum);
}

template <int format, int passes>
DALI_DEVICE void linear_strip(const LinearCall& call, const Product& product, int64_t strip, int first) {
    Sums<passes> sums{};
    multiply_strip<format>(product.packed, product.matrix, strip, call.panel,
                           [&](int i) { return first + i < call.tokens ? first + i : -1; }, sums);
    const int lane = lane_of_warp(), row = int(strip) * STRIP_ROWS + first_row_of(lane);
#pragma unroll
    for (int p = 0; p < passes; p++)
        for (int i = 0; i < 2; i++)
            for (int r = 0; r < 4; r++) put_product(call, product, first + p * PASS + 2 * (lane % 4) + i, row + r, sums.of[p][r][i]);
}

// A warp a strip: of product 0, then of 1 ...
template <int format, int passes>
DALI_DEVICE void multiply_products(const LinearCall& call) {
    int64_t strip = warp_of_launch();
    int of = 0;
    for (; of < call.count; of++) {
        const int strips = (call.products[of].matrix.rows + STRIP_ROWS - 1) / STRIP_ROWS;
        if (strip < strips) break;
        strip -= strips;
    }
    if (of == call.count) return;
    const Product& product = call.products[of];
    int first = 0;
    if (!is_quantized(format)) {
        for (; first < call.tokens; first += PASS) {
            float sums[PASS];
            multiply_rows<format>(product.packed, product.matrix, strip, call.panel,
                                  [&](int i) { return first + i < call.tokens ? first + i : -1; }, sums);
            for (int i = 0; i < PASS; i++) put_product(call, product, first + i, int(strip) * STRIP_ROWS + lane_of_warp(), sums[i]);
        }
        return;
    }
    for (; first < call.tokens; first += passes * PASS) linear_strip<format, passes>(call, product, strip, first);
}

DALI_KERNEL linear(DALI_CALL(LinearCall) call) { multiply_products<FORMAT, PASSES>(call); }

}  // namespace dali::gpu
