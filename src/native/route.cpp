#include "route.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "floats.h"
#include "pool.h"

namespace dali {

namespace {

constexpr int ROWS = 8;               // of an item
constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out

template <class T>
DALI_INLINE void products(const T* weight, const float* x, int experts, int hidden, float* out) {
    for (int expert = 0; expert < experts; expert++) out[expert] = dot(weight + size_t(expert) * hidden, x, hidden);
}
DALI_CLONES void products_f32(const float* weight, const float* x, int experts, int hidden, float* out) {
    products(weight, x, experts, hidden, out);
}
DALI_CLONES void products_bf16(const uint16_t* weight, const float* x, int experts, int hidden, float* out) {
    products(weight, x, experts, hidden, out);
}

void all_products(const RouteCall& call, const float* x, float* out) {
    const auto some = [&](int first, int count) {
        const size_t at = size_t(first) * call.hidden;
        if (call.dtype == Dtype::f32) products_f32(static_cast<const float*>(call.weight) + at, x, count, call.hidden, out + first);
        else products_bf16(static_cast<const uint16_t*>(call.weight) + at, x, count, call.hidden, out + first);
    };
    if (int64_t(call.experts) * call.hidden < ALONE) return some(0, call.experts);
    Phase phase((call.experts + ROWS - 1) / ROWS);
    Pool::instance().run([&] {
        phase.run([&](int item, int) { some(item * ROWS, std::min(ROWS, call.experts - item * ROWS)); });
    });
}

}  // namespace

void route(const RouteCall& call) {
    std::vector<float> x(call.hidden), logits(call.experts), weights(call.top_k);
    std::vector<int> order(call.experts);
    for (int token = 0; token < call.tokens; token++) {
        read_row(call.x, call.dtype, token, call.hidden, x.data());
        all_products(call, x.data(), logits.data());
        write(logits.data(), call.experts, call.dtype, call.logits, size_t(token) * call.experts);
        read_row(call.logits, call.dtype, token, call.experts, logits.data());

        // NaN ranks first, as in torch; an order needs every pair to compare.
        const auto likelier = [&](int a, int b) {
            const bool nan_a = std::isnan(logits[a]), nan_b = std::isnan(logits[b]);
            if (nan_a || nan_b) return nan_a != nan_b ? nan_a : a < b;
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        };
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + call.top_k, order.end(), likelier);
        const float most = logits[order[0]];
        float total = 0;
        for (int i = 0; i < (call.normalise ? call.top_k : call.experts); i++)
            total += std::exp(logits[call.normalise ? order[i] : i] - most);
        for (int i = 0; i < call.top_k; i++) {
            weights[i] = std::exp(logits[order[i]] - most) / total;
            call.ids[size_t(token) * call.top_k + i] = order[i];
        }
        write(weights.data(), call.top_k, call.weights_dtype, call.weights, size_t(token) * call.top_k);
    }
}

}  // namespace dali
