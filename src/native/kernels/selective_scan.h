// A selective state space's tokens, one after another.
#pragma once

#include "kernels/variant.h"
#include "lanes/floats.h"

namespace dali {

template <class V>
struct SelectiveScanKernels {
    // `rows` rows of the state from `first` on, `vectors` vectors of them from column c on: they stay in registers for all tokens.
    template <int rows, int vectors>
    static DALI_INLINE void scan_tile(const ScanPart& part, int first, int c) {
        Floats16 state[rows][vectors];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) load(part.before + int64_t(first + i) * part.width + c + v * LANES, state[i][v]);
        for (int token = 0; token < part.tokens; token++) {
            const float decay = part.decay[token];
            const float *in = part.in + token * part.in_stride + first, *out = part.out + token * part.out_stride + first;
            const float* input = part.input + int64_t(token) * part.width + c;
            float* found = part.found + int64_t(token) * part.width + c;
            Floats16 x[vectors], sum[vectors];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                load(input + v * LANES, x[v]);
                load(found + v * LANES, sum[v]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++) {
                    state[i][v] = state[i][v] * decay + x[v] * in[i];
                    sum[v] += state[i][v] * out[i];
                }
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) store(sum[v], found + v * LANES);
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) store(state[i][v], part.after + int64_t(first + i) * part.width + c + v * LANES);
    }

    template <int vectors>
    static DALI_INLINE void scan_columns(const ScanPart& part, int c) {
        int first = 0;
        for (; first + 4 <= part.state; first += 4) scan_tile<4, vectors>(part, first, c);
        for (; first < part.state; first++) scan_tile<1, vectors>(part, first, c);
    }

    static void scan(const ScanPart& part) {
        int c = 0;
        for (; c + 4 * LANES <= part.width; c += 4 * LANES) scan_columns<4>(part, c);
        for (; c < part.width; c += LANES) scan_columns<1>(part, c);
    }

    static void softplus(float* x, int width) {
        for (int i = 0; i < width; i += LANES) {
            Floats16 values;
            load(x + i, values);
            dali::softplus(values);
            store(values, x + i);
        }
    }

    static void put_into(Variant& variant) {
        variant.scan = scan;
        variant.softplus = softplus;
    }
};

}  // namespace dali
