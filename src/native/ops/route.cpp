#include "ops/route.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/variants.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int ROWS = 8;               // of an item
constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out

// out [count] = x times the rows of weight [rows, hidden] from `first` on.
void products(const Values& weight, int hidden, const float* x, int first, int count, float* out) {
    const Variant& variant = current_variant();
    const size_t at = size_t(first) * hidden;
    if (weight.dtype == Dtype::f32) variant.products_f32(static_cast<const float*>(weight.at) + at, x, count, hidden, out);
    else variant.products_bf16(static_cast<const uint16_t*>(weight.at) + at, x, count, hidden, out);
}

void all_products(const Router& router, const float* x, float* out) {
    const auto some = [&](int first, int count) { products(router.weight, router.hidden, x, first, count, out + first); };
    if (int64_t(router.experts) * router.hidden < ALONE) return some(0, router.experts);
    Phase phase((router.experts + ROWS - 1) / ROWS);
    Pool::instance().run([&] {
        phase.run([&](int item, int) { some(item * ROWS, std::min(ROWS, router.experts - item * ROWS)); });
    });
}

void add(const Values& values, int count, float* to) {
    if (!values.at) return;
    Workspace workspace;
    float* added = workspace.take<float>(count);
    read_row(values.at, values.dtype, 0, count, added);
    for (int i = 0; i < count; i++) to[i] += added[i];
}

// The first `count` of [0, of), sorted, the highest value first. NaN ranks first, as in torch; an order needs every pair to compare.
void highest(const float* values, int of, int count, int* order) {
    const auto higher = [&](int a, int b) {
        const bool nan_a = std::isnan(values[a]), nan_b = std::isnan(values[b]);
        if (nan_a || nan_b) return nan_a != nan_b ? nan_a : a < b;
        return values[a] != values[b] ? values[a] > values[b] : a < b;
    };
    std::iota(order, order + of, 0);
    std::partial_sort(order, order + count, order + of, higher);
}

// Leaves the best groups of `ranks` [experts] in the running.
void keep_groups(const Router& router, float* ranks) {
    if (router.groups == router.kept_groups) return;
    const int size = router.experts / router.groups, judged = std::min(size, router.judged);
    Workspace workspace;
    float* worth = workspace.take<float>(router.groups);
    int* order = workspace.take<int>(std::max(router.groups, size));
    for (int group = 0; group < router.groups; group++) {
        const float* of = ranks + group * size;
        highest(of, size, judged, order);
        worth[group] = of[order[0]];
        for (int i = 1; i < judged; i++) worth[group] += of[order[i]];
    }
    highest(worth, router.groups, router.groups, order);
    for (int i = router.kept_groups; i < router.groups; i++)
        std::fill_n(ranks + order[i] * size, size, -std::numeric_limits<float>::infinity());
}

// scores [experts] of logits.
void score(const Router& router, const float* logits, float* scores) {
    if (router.score == Score::sigmoid) {
        for (int i = 0; i < router.experts; i++) scores[i] = 1.0f / (1.0f + std::exp(-logits[i]));
        return;
    }
    float most = logits[0], total = 0;
    for (int i = 1; i < router.experts; i++) most = std::max(most, logits[i]);
    for (int i = 0; i < router.experts; i++) total += scores[i] = std::exp(logits[i] - most);
    for (int i = 0; i < router.experts; i++) scores[i] /= total;
}

// Of a plain softmax the logits tell the order, and often the chosen ones alone their weights.
bool plain_softmax(const Router& router) {
    return router.score == Score::softmax && !router.correction.at && router.groups == router.kept_groups &&
           router.epsilon == 0 && router.floor == 0;
}

void weigh_by_logits(const Router& router, const float* logits, const int* order, float* weights) {
    const float most = logits[order[0]];
    float total = 0;
    for (int i = 0; i < (router.normalise ? router.top_k : router.experts); i++)
        total += std::exp(logits[router.normalise ? order[i] : i] - most);
    for (int i = 0; i < router.top_k; i++) weights[i] = std::exp(logits[order[i]] - most) / total;
}

void weigh_by_scores(const Router& router, const float* scores, const int* order, float* weights) {
    float total = 0;
    for (int i = 0; i < router.top_k; i++) total += weights[i] = scores[order[i]];
    if (!router.normalise) return;
    total = std::max(total, router.floor) + router.epsilon;
    for (int i = 0; i < router.top_k; i++) weights[i] /= total;
}

}  // namespace

void route(const Router& router, const void* x, Dtype dtype, int tokens, void* logits, void* weights, int64_t* ids) {
    const int experts = router.experts, top_k = router.top_k;
    Workspace workspace;
    float* values = workspace.take<float>(router.hidden);
    float *found = workspace.take<float>(experts), *scores = workspace.take<float>(experts), *ranks = workspace.take<float>(experts);
    float* weighed = workspace.take<float>(top_k);
    void* rounded = workspace.take<char>(size_t(experts) * item_bytes(router.rounded));
    int* order = workspace.take<int>(experts);
    for (int token = 0; token < tokens; token++) {
        read_row(x, dtype, token, router.hidden, values);
        all_products(router, values, found);
        add(router.bias, experts, found);
        write(found, experts, router.rounded, rounded, 0);
        read_row(rounded, router.rounded, 0, experts, found);
        write(found, experts, router.logits_dtype, logits, size_t(token) * experts);
        const bool plain = plain_softmax(router);
        if (!plain) score(router, found, scores);
        std::copy_n(plain || router.by_logit ? found : scores, experts, ranks);
        add(router.correction, experts, ranks);
        keep_groups(router, ranks);
        highest(ranks, experts, top_k, order);
        if (plain) weigh_by_logits(router, found, order, weighed);
        else weigh_by_scores(router, scores, order, weighed);
        for (int i = 0; i < top_k; i++) {
            weighed[i] *= router.scale;
            ids[size_t(token) * top_k + i] = order[i];
        }
        write(weighed, top_k, router.weights_dtype, weights, size_t(token) * top_k);
    }
}

void gate_logits(const Values& weight, int hidden, const void* x, Dtype dtype, int tokens, void* out) {
    Workspace workspace;
    float* values = workspace.take<float>(hidden);
    for (int token = 0; token < tokens; token++) {
        read_row(x, dtype, token, hidden, values);
        float logit;
        products(weight, hidden, values, 0, 1, &logit);
        write(&logit, 1, dtype, out, token);
    }
}

}  // namespace dali
