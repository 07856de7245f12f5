// What recurrent layers do with one sequence's tokens, one after another.
#pragma once

#include "kernels/variant.h"
#include "lanes/floats.h"

namespace dali {

template <class V>
struct RecurrenceKernels {
    static constexpr int VECTORS = DELTA_COLUMNS / LANES;

    static void convolve(const float* const* rows, const float* taps, int count, int64_t tap_stride, const float* bias, int width, float* out) {
        for (int c = 0; c < width; c += LANES) {
            Floats16 total{}, x, w;
            if (bias) load(bias + c, total);
            for (int tap = 0; tap < count; tap++) {
                load(rows[tap] + c, x);
                load(taps + tap * tap_stride + c, w);
                total += x * w;
            }
            store(total, out + c);
        }
    }

    // A token: reads the state `from`, writes it `to`, which may be the same.
    template <bool by_channel>
    static DALI_INLINE void step(const DeltaPart& part, int64_t token, const float* from, float* to) {
        const int width = part.key_width;
        const int64_t row = part.state_stride;
        const float *key = part.key + token * part.key_stride, *query = part.query + token * part.key_stride;
        const float* decay = part.decay + token * part.decay_stride;
        Floats16 found[VECTORS] = {}, out[VECTORS] = {}, delta[VECTORS], state;
        for (int i = 0; i < width; i++) {
            const float weight = decay[by_channel ? i : 0] * key[i];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                load(from + i * row + v * LANES, state);
                found[v] += state * weight;
            }
        }
        const float rate = part.beta[token * part.beta_stride];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            load(part.value + token * part.value_stride + v * LANES, delta[v]);
            delta[v] = (delta[v] - found[v]) * rate;
        }
        for (int i = 0; i < width; i++) {
            const float kept = decay[by_channel ? i : 0], along = key[i], asked = query[i];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                load(from + i * row + v * LANES, state);
                state = state * kept + delta[v] * along;
                store(state, to + i * row + v * LANES);
                out[v] += state * asked;
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) store(out[v], part.out + token * part.out_stride + v * LANES);
    }

    static void delta_rule(const DeltaPart& part) {
        for (int64_t token = 0; token < part.tokens; token++) {
            const float* from = token ? part.after : part.before;
            if (part.by_channel) step<true>(part, token, from, part.after);
            else step<false>(part, token, from, part.after);
        }
    }

    static void put_into(Variant& variant) {
        variant.convolve = convolve;
        variant.delta_rule = delta_rule;
    }
};

}  // namespace dali
