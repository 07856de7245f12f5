#include "ops/route.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/variants.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int ROWS = 8;               // of an item
constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out

void all_products(const RouteCall& call, const float* x, float* out) {
    const Variant& variant = current_variant();
    const auto some = [&](int first, int count) {
        const size_t at = size_t(first) * call.hidden;
        if (call.dtype == Dtype::f32)
            variant.products_f32(static_cast<const float*>(call.weight) + at, x, count, call.hidden, out + first);
        else variant.products_bf16(static_cast<const uint16_t*>(call.weight) + at, x, count, call.hidden, out + first);
    };
    if (int64_t(call.experts) * call.hidden < ALONE) return some(0, call.experts);
    Phase phase((call.experts + ROWS - 1) / ROWS);
    Pool::instance().run([&] {
        phase.run([&](int item, int) { some(item * ROWS, std::min(ROWS, call.experts - item * ROWS)); });
    });
}

}  // namespace

void route(const RouteCall& call) {
    Workspace workspace;
    float* x = workspace.take<float>(call.hidden);
    float* logits = workspace.take<float>(call.experts);
    float* weights = workspace.take<float>(call.top_k);
    int* order = workspace.take<int>(call.experts);
    for (int token = 0; token < call.tokens; token++) {
        read_row(call.x, call.dtype, token, call.hidden, x);
        all_products(call, x, logits);
        write(logits, call.experts, call.dtype, call.logits, size_t(token) * call.experts);
        read_row(call.logits, call.dtype, token, call.experts, logits);

        // NaN ranks first, as in torch; an order needs every pair to compare.
        const auto likelier = [&](int a, int b) {
            const bool nan_a = std::isnan(logits[a]), nan_b = std::isnan(logits[b]);
            if (nan_a || nan_b) return nan_a != nan_b ? nan_a : a < b;
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        };
        std::iota(order, order + call.experts, 0);
        std::partial_sort(order, order + call.top_k, order + call.experts, likelier);
        const float most = logits[order[0]];
        float total = 0;
        for (int i = 0; i < (call.normalise ? call.top_k : call.experts); i++)
            total += std::exp(logits[call.normalise ? order[i] : i] - most);
        for (int i = 0; i < call.top_k; i++) {
            weights[i] = std::exp(logits[order[i]] - most) / total;
            call.ids[size_t(token) * call.top_k + i] = order[i];
        }
        write(weights, call.top_k, call.weights_dtype, call.weights, size_t(token) * call.top_k);
    }
}

}  // namespace dali
