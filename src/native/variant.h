// What one instruction set brings: tile kernels, the quantizer of activations, the expert's gate.
#pragma once

#include "format.h"
#include "panel.h"

namespace dali {

enum class Activation : int { silu, gelu, gelu_tanh, relu, relu2, clamped_swiglu };

struct Gate {
    Activation kind = Activation::silu;
    float alpha = 0, limit = 0;  // of clamped_swiglu
};

// Where a tile lies, and what is read after it: the last lines of one prefetch the first of the next.
struct TileRun {
    const uint8_t* tile;
    const uint8_t* next;
    size_t plane_bytes;
    int columns;
};

// out [tokens][16]: the tile's 16 rows times each token of the panel.
using TileKernel = void (*)(const TileRun& run, const Panel& panel, float* out);

struct Variant {
    const char* name;
    int most_tokens;  // of a block: as many as its registers hold the sums of, beside the weights
    TileKernel tiles[FORMATS][MOST_TOKENS + 1];  // by format and tokens
    // One token's group of 32 columns into a panel.
    void (*fill)(const float* values, Format format, const Panel& panel, int group, int token);
    // values [count] of gate and up -> `out`; gate is null for experts without one. count is a multiple of 16.
    void (*activate)(const Gate& gate_kind, const float* gate, const float* up, float* out, int count);
    // out = sum of weights[i] * rows[i * columns], in order.
    void (*weighted_sum)(const float* rows, const float* weights, int count, int columns, float* out);
};

const Variant* portable_variant();
const Variant* avx2_variant();      // null where not compiled in
const Variant* avx_vnni_variant();
const Variant* avx512_variant();

}  // namespace dali
