// What one instruction set brings: every kernel, compiled for it.
#pragma once

#include "layout/activations.h"
#include "layout/format.h"
#include "layout/panel.h"

namespace dali {

enum class Activation : int { silu, gelu, gelu_tanh, relu, relu2, clamped_swiglu, clamped_silu };

struct Gate {
    Activation kind = Activation::silu;
    float alpha = 0, limit = 0;  // of clamped ones; alpha: of clamped_swiglu
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

// A head of keys and values and the queries that share it, as far as one part of its keys goes. Rows of queries, scores and outputs
// are padded to whole vectors (lanes/floats.h). T: of what is kept; bytes where that is in 8 bits (layout/kept_rows.h).
template <class T>
struct AttentionPart {
    const T *keys, *values;
    int64_t count;
    int group, key_width, value_width;
    int64_t key_row, value_row;  // from one key's or value's to the next one's
    float scale;
    const float* query;  // [group][padded key width]
    float* scores;       // [group][padded count]
    float* out;          // [group][padded value width]
    const int64_t* seen = nullptr;  // [group]: keys from the first on that a query sees; null: all
    float* tile = nullptr;  // but for float's: room for KEPT_TILE rows of floats, and for a group
    int value_scales = 0;   // of what is in 8 bits: where a value's scales begin in its row
};

constexpr int KEPT_TILE = 32;  // keys that stay in the caches while all queries of a group meet them

// Columns of a linear attention's state that are computed together: its values, which do not meet.
constexpr int DELTA_COLUMNS = 32;

// DELTA_COLUMNS columns of one head's state, and the tokens that change it (see recurrent/recurrence.h). Strides are in floats, from token
// to token, and of the state from row to row.
struct DeltaPart {
    int64_t tokens;
    int key_width;
    const float *query, *key;  // [tokens][key width]
    int64_t key_stride;
    const float *value, *beta, *decay;  // [tokens][columns], [tokens], [tokens] or by_channel [tokens][key width]
    int64_t value_stride, beta_stride, decay_stride;
    bool by_channel;
    const float* before;  // [key width][columns]
    float* after;         // may be `before`
    int64_t state_stride;
    float* out;  // [tokens][columns]
    int64_t out_stride;
};

// Tokens of one head of a selective state space. `width`: of the head, padded to whole vectors.
struct ScanPart {
    int tokens, width, state;
    const float* decay;  // [tokens]
    const float* input;  // [tokens][width]
    const float* in;     // the vectors B, [tokens] of [state], in_stride values apart
    int64_t in_stride;
    const float* out;  // C
    int64_t out_stride;
    const float* before;  // [state][width]
    float* after;         // may be `before`
    float* found;         // [tokens][width], which the head's outputs are added to
};

struct Variant {
    const char* name;
    int most_tokens;  // of a block: as many as its registers hold the sums of, beside the weights
    int few_tokens;   // that codes are decoded for in registers
    TileKernel tiles[FORMATS][MOST_TOKENS + 1];  // by format and tokens
    // What a tile of a quantized format stands for, by format: out [columns][16 rows].
    void (*values[FORMATS])(const uint8_t* tile, size_t plane_bytes, int columns, float* out);
    // A tile of codes into one of decoded_format, for more than few_tokens; `tiles` serves the others.
    void (*decode[FORMATS])(const uint8_t* tile, size_t plane_bytes, int columns, uint8_t* to);
    // One token's group of 32 columns into a panel.
    void (*fill)(const float* values, Format format, const Panel& panel, int group, int token);
    // values [count] of gate and up -> `out`; gate is null for experts without one. count is a multiple of 16.
    void (*activate)(const Gate& gate_kind, const float* gate, const float* up, float* out, int count);

    // The kernels below round alike in every variant: the same bits from all.

    // out = sum of weights[i] * rows[i * columns], in order.
    void (*weighted_sum)(const float* rows, const float* weights, int count, int columns, float* out);
    // Fills part.out, zeros so far, with the sums of values weighted by e^(score - most); most and total [group].
    void (*attend_f32)(const AttentionPart<float>& part, float* most, float* total);
    void (*attend_bf16)(const AttentionPart<uint16_t>& part, float* most, float* total);
    // Attends to what the bytes stand for, with the bits of attend_f32.
    void (*attend_q8)(const AttentionPart<uint8_t>& part, float* most, float* total);
    // values [whole groups], zeros behind the first `width`, to a row in 8 bits, of `width`.
    void (*keep_q8)(const float* values, int width, uint8_t* row);
    float (*sum_of_squares)(const float* x, int width);
    void (*scale)(float* x, float by, int width);
    void (*multiply)(float* x, const float* by, int width);
    // In place, whole vectors of values.
    void (*exponentials)(float* x, int width);
    void (*sigmoids)(float* x, int width);
    void (*silu)(float* x, int width);
    // out [rows] = matrix [rows, width] times x [width].
    void (*products_f32)(const float* matrix, const float* x, int rows, int width, float* out);
    void (*products_bf16)(const uint16_t* matrix, const float* x, int rows, int width, float* out);
    // out [width] = bias + sum of rows[tap][..] * taps[tap * tap_stride + ..], in order; whole vectors; bias may be null.
    void (*convolve)(const float* const* rows, const float* taps, int count, int64_t tap_stride, const float* bias, int width, float* out);
    void (*delta_rule)(const DeltaPart& part);
    // Each token: state = state * decay + input (x) in, and found += state times out, in the order of the state's rows.
    void (*scan)(const ScanPart& part);
    void (*softplus)(float* x, int width);  // whole vectors
    // Reads all bytes, whole 256s; returns what no compiler can know without reading them.
    int (*read)(const char* from, size_t bytes);

    // A token's values [matrix.columns], padded with zeros, into a panel.
    void fill_token(const float* values, const Matrix& matrix, const Panel& panel, int token) const {
        for (int group = 0; group < matrix.columns / GROUP; group++) fill(values + group * GROUP, matrix.format, panel, group, token);
    }
};

const Variant* portable_variant();
const Variant* avx2_variant();      // null where not compiled in
const Variant* avx_vnni_variant();
const Variant* avx512_variant();
const Variant* avx512_vbmi_variant();

}  // namespace dali
