// Rows of activations as packed matrices take them.
#pragma once

#include "arithmetic.cuh"
#include "calls.h"
#include "formats.cuh"

namespace dali::gpu {

// The sums of a group's halves, of 16 columns each, in 16 bits each, the first half's lowest; and of what all lanes summed, each its own
// quants, those of the second half times 65536.
DALI_DEVICE int sum_of_half(uint32_t sums, int half) { return half ? int(sums) >> 16 : int(sums << 16) >> 16; }
DALI_DEVICE uint32_t sums_of_halves(int sum) { return uint32_t(sum) + ((uint32_t(sum) & 0x8000u) << 1); }

// Writes one group of a row: lane l has value l of it. The panel is of a quantized format.
DALI_DEVICE void quantize_group(const Panel& panel, int64_t row, int group, float value) {
    const uint32_t most = largest_of_lanes(bits_of(value) & 0x7FFFFFFFu);
    int quant = 0;
    float scale = from_bits(0x7FC00000u);  // infinity or NaN: no integers stand for it; 0 * NaN carries it on
    if (most < 0x7F800000u) {
        const float largest = from_bits(most), factor = div(127.0f, largest);
        scale = to_half_precision(div(largest, 127.0f));
        quant = __float2int_rn(mul(value, bits_of(factor) == 0x7F800000u ? 0.0f : factor));  // zeros, or denormals
    }
    const int lane = lane_of_warp(), sum = sum_of_lanes(lane < GROUP / 2 ? quant : quant * 65536);
    panel.quants[row * panel.columns + group * GROUP + lane] = int8_t(quant);
    if (lane == 0) {
        panel.scales[row * (panel.columns / GROUP) + group] = scale;
        panel.sums[row * (panel.columns / GROUP) + group] = sums_of_halves(sum);
    }
}

// Writes one group in all the ways that are wanted.
DALI_DEVICE void put_group(const Panel& panel, int64_t row, int group, float value) {
    if (panel.quants) quantize_group(panel, row, group, value);
    if (panel.values) panel.values[row * panel.columns + group * GROUP + lane_of_warp()] = value;
}

DALI_DEVICE bool is_wanted(const Panel& panel) { return panel.quants || panel.values; }

}  // namespace dali::gpu
