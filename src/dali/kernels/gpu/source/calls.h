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

// Activations in rows of `columns`. Quantized: int8 in groups of 32, each with its scale and the sum of its quants. Float: values.
struct Panel {
    int8_t* quants;
    float* scales;
    int* sums;
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

struct LinearCall {
    void* out;  // [tokens, matrix.rows]
    const uint8_t* packed;
    const float* bias;  // null if there is none
    Panel panel;        // of tokens, as wide as the matrix
    Matrix matrix;
    int tokens, dtype;
};

struct NormCall {
    const void *x, *weight;  // [rows, width], [width]
    void* out;               // [rows, width]
    int rows, width, dtype;
    float epsilon;
};

// What the host must know of a step: copied to its memory, and then `flag`, which it waits for, set to `number`.
constexpr int POSTED = 4;
struct PostCall {
    const void* from[POSTED];  // multiples of 4 bytes; null for none
    void* to[POSTED];
    int words[POSTED];
    uint32_t* flag;
    uint32_t number;
};

}  // namespace dali::gpu
