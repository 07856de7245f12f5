// What each kernel is called with: read by the device code and by the host that launches it (src/native/gpu).
#pragma once

#ifndef __CUDACC_RTC__
#include <cstdint>
#endif

namespace dali::gpu {

constexpr int FEW_EXPERTS = 64, FEW_PAIRS = 256;  // that a call holds itself: decoding needs no table in memory

// A packed matrix. `columns` are whole blocks, `plane` the bytes of a tile's scales.
struct Matrix {
    int64_t at;  // bytes into its record
    int rows, columns, plane;
};

// Activations in rows of `columns`. Quantized: int8 in groups of 32, each with its scale and the sums of its quants, 16 bits for each half.
// Float: values.
struct Panel {
    int8_t* quants;
    float* scales;
    uint32_t* sums;
    float* values;
    int columns;
};

// The records of active experts and their pairs: in memory, or in the call where `records` is null.
struct Work {
    const uint8_t* const* records;  // [active]
    const int* begin;               // [active + 1]: expert i computes pairs[begin[i] .. begin[i + 1])
    const int* pairs;               // each token * top_k + choice
    int active;
    const uint8_t* few_records[FEW_EXPERTS];
    int few_begin[FEW_EXPERTS + 1];
    int few_pairs[FEW_PAIRS];
};

struct GatherCall {
    const void* x;  // [tokens, width] of dtype
    Panel panel;    // of tokens
    int tokens, width, dtype;
};

struct ExpertsCall {
    Work work;
    int top_k, hidden, intermediate;
    Panel outer;  // of tokens, as wide as the wider of gate and up
    Panel inner;  // of pairs, in their order
    float* rows;  // [tokens * top_k, hidden], written at the pairs
    Matrix gate, up, down;
    int64_t gate_bias, up_bias, down_bias;  // bytes into the record
    float alpha, limit;
};

struct JoinCall {
    const float* rows;             // [tokens * top_k, hidden]: the accelerator's
    const float* above;            // likewise, the CPU's, in memory of the host
    uint32_t on_cpu[FEW_PAIRS / 32];  // a bit a pair
    const int* places;             // where there are more pairs: not 0 for those on the CPU; else null
    const void* weights;           // [tokens, top_k]
    void* out;                     // [tokens, hidden]
    int tokens, top_k, hidden, dtype, weights_dtype;
};

// One of the matrices that are multiplied by the same activations.
struct Product {
    void* out;  // [tokens, matrix.rows]
    const uint8_t* packed;
    const float* bias;  // null if there is none
    Matrix matrix;
};

constexpr int PRODUCTS = 3;  // of one launch, whose strips follow one another
struct LinearCall {
    Product products[PRODUCTS];
    Panel panel;  // of tokens, as wide as the matrices
    int count, tokens, dtype;
    float divisor;  // of what comes out, once it is rounded to dtype; 1 for none
};

struct NormCall {
    const void *x, *weight;  // [rows, width], [width]
    void* out;               // [rows, width]
    int rows, width, dtype;
    float epsilon;
};

// A norm's weight, null for none, of as many values as it spans.
struct NormPart {
    const void* weight;
    float epsilon;
};

// What goes on from one part of a layer to the next: sum = residual + scale * before(part), then after(sum), as activations and as a panel.
struct AddNormCall {
    const void *residual, *part;  // [.., width]; part null: the sum is the residual
    const int* from;              // [rows]: which row of residual and part each takes; null: its own
    void* sum;                    // [rows, width], which may be residual where rows are their own; null: nobody wants it
    void* out;                    // [rows, width], likewise
    Panel panel;                  // quants null: no integers wanted; values null: no floats
    NormPart before, after;
    int rows, width, dtype;
    float scale;
};

// Where a decoding token's sequence keeps a layer's keys and values, [kv heads, capacity, width] each.
struct KeptToken {
    void *keys, *values;
    int64_t capacity, place, first;  // tokens; of the new one and of the first that it sees
    int row;                         // of query, key, value and out
};

// Heads of queries, keys and values as attention wants them: normed, rotated, scaled; keys and values in their places.
struct TurnCall {
    void *query, *keys, *values;  // [rows, heads, key width], [rows, kv heads, their width]; query changes in place
    const KeptToken* kept;        // [tokens]
    const void *cos, *sin;        // [rows, given] of rotary_dtype
    NormPart query_norm, key_norm;  // of a head each
    int norms_follow;               // the rotation
    int turning, turned, given, rotary_dtype;  // as src/native/model/attention_module.h has them: a head's first `turned` values, of
                                               // unzipped ones 256 at most
    int tokens, heads, kv_heads, key_width, value_width, dtype;
    float value_scale;
};

struct AttendCall {
    const void *query, *keys, *values;  // [rows, heads, key width], [rows, kv heads, their width], of the new tokens
    void* out;                          // [rows, heads, value width]
    const KeptToken* kept;              // [tokens]
    const float* sinks;                 // a logit more a head, without a value; null for none
    float *scores, *most, *total, *sums;  // of each (token, head, part): [PART], [1], [1], [value width]
    Panel panel;                          // of what comes out, in rows of all heads' values; as AddNormCall's, beside `out` or for it
    int tokens, parts;                  // parts: of the longest sequence, or more
    int heads, kv_heads, key_width, value_width, dtype;
    float scale;
};
constexpr int PART = 256;  // keys that are summed in one go

// A router, as src/native/ops/route.h describes it. A warp an expert of a token for the products, then a warp a token to choose.
struct RouteCall {
    const void *x, *weight, *bias, *correction;  // [tokens, hidden] of dtype, [experts, hidden], [experts] twice, or null
    float *products, *scores, *ranks;            // [tokens, experts] each, to work in
    float* weights;                              // [tokens, top_k], rounded as weights_dtype holds them
    int64_t* ids;                                // [tokens, top_k]
    int tokens, hidden, experts, top_k, score, by_logit, groups, kept_groups, judged, normalise;  // at most 32 groups
    int dtype, weight_dtype, bias_dtype, correction_dtype, rounded, logits_dtype, weights_dtype;
    float epsilon, floor, scale;
};

// out = act(gate) * up, rounded to dtype after each.
struct GateUpCall {
    const void *gate, *up;  // [tokens, width], rows `stride` values apart
    Panel panel;            // as AddNormCall's
    int tokens, width, stride, dtype, activation;
};

// part += shared, times the sigmoid of x times gate where there is one.
struct ShareCall {
    void* part;              // [tokens, hidden]
    const void *shared, *x;  // likewise
    const void* gate;        // [hidden] of gate_dtype, or null
    int tokens, hidden, dtype, gate_dtype;
};

// Of each row the logits that can be chosen: those as high as the `most`-th highest, ties included, and every NaN, which counts as the
// highest (as likeliest() of src/dali/engine/sampling.py has it). Three kernels, one after another: highest_of_pieces, a warp a (row,
// piece); highest_of_rows, a warp a row; collect_highest, a warp a (row, piece).
constexpr int PIECE = 1024;   // logits; a row has (width + PIECE - 1) / PIECE pieces
constexpr int MOST = 64;      // the most that `most` may be
constexpr int HIGHEST = 256;  // logits of a row there is room for
struct HighestCall {
    const void* logits;    // [rows, width] of dtype
    const int* most;       // [rows]; 0 for rows of which nothing is wanted
    uint32_t* ranks;       // [rows, pieces, MOST], to work in, and so the next three
    int *ties, *begin;     // [rows, pieces]
    uint32_t* least;       // [rows]
    int* ids;              // [rows, HIGHEST]: in order
    float* values;         // [rows, HIGHEST]: the logits of the ids
    int* counts;           // [rows]: how many there are, though only HIGHEST of them are in ids and values
    int rows, width, dtype;
};

// What the host must know of a step: copied to its memory, and then `flag`, which it waits for, set to `number`.
constexpr int POSTED = 4;
struct PostCall {
    const void* from[POSTED];  // multiples of 4 bytes; null for none
    void* to[POSTED];
    int words[POSTED];
    uint32_t* flag;
    uint32_t number;       // `flag` becomes this, plus
    const uint32_t* base;  // what is here, unless null: calls that are replayed say something else each time
};

}  // namespace dali::gpu
