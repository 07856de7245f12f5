// The packed formats, as src/native/layout/format.h has them.
#pragma once

#include "warp.cuh"

namespace dali::gpu {

constexpr int TILE_ROWS = 16, LINE = 64, GROUP = 32;

enum Format {
    F32, F16, BF16, W8, W4, MXFP4, Q4K, Q4_1, Q5_0, Q5_1, Q5K, Q6K, Q3K, Q2K, IQ4_NL, IQ4_XS, NVFP4, TQ2_0,
    IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_S, IQ1_M
};

struct FormatTraits {
    int bits;         // of a weight, without its scales
    int block;        // columns that share scales
    int scale_bytes;  // a block's, of each row
    int zero;         // what unsigned quants stand above their value by
    bool halves;      // 16 columns share a scale, not 32
    bool minimum;     // a float is taken off, times the sum of the activations
};

constexpr FormatTraits TRAITS[] = {
    {32, GROUP, 0, 0, false, false},   // f32
    {16, GROUP, 0, 0, false, false},   // f16
    {16, GROUP, 0, 0, false, false},   // bf16
    {8, GROUP, 2, 128, false, false},  // w8
    {4, GROUP, 2, 8, false, false},    // w4
    {4, GROUP, 1, 12, false, false},   // mxfp4
    {4, 256, 16, 0, false, true},      // q4k
    {4, GROUP, 4, 0, false, true},     // q4_1
    {5, GROUP, 2, 16, false, false},   // q5_0
    {5, GROUP, 4, 0, false, true},     // q5_1
    {5, 256, 16, 0, false, true},      // q5k
    {6, 256, 18, 32, true, false},     // q6k
    {3, 256, 14, 4, true, false},      // q3k
    {2, 256, 20, 0, true, true},       // q2k
    {4, GROUP, 2, 128, false, false},  // iq4_nl
    {4, 256, 8, 128, false, false},    // iq4_xs
    {4, 64, 4, 12, true, false},       // nvfp4
    {2, 256, 2, 1, false, false},      // tq2_0
    {3, 256, 14, 64, false, false},    // iq3_s
    {3, 256, 2, 64, false, false},     // iq3_xxs
    {2, 256, 18, 64, true, false},     // iq2_s
    {2, 256, 10, 64, true, false},     // iq2_xs
    {2, 256, 2, 64, false, false},     // iq2_xxs
    {1, 256, 18, 16, false, false},    // iq1_s
    {1, 256, 24, 16, true, false},     // iq1_m
};

DALI_DEVICE constexpr bool is_quantized(int format) { return format >= W8; }
DALI_DEVICE constexpr bool is_coded(int format) { return format >= IQ3_S; }
DALI_DEVICE constexpr int group_bytes(int format) { return TRAITS[format].bits * LINE; }  // of 32 columns, without scales
DALI_DEVICE constexpr int scales_of_group(int format) { return TRAITS[format].halves ? 2 : 1; }

}  // namespace dali::gpu
