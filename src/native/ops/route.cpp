#include "ops/route.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pieces.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int ROWS = 8;               // of an item
constexpr int FEW = 8;                // tokens
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

float value_of(const Values& values, int at) {
    float value;
    read_row(values.at, values.dtype, at, 1, &value);
    return value;
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

// scores [experts], padded to whole vectors, of logits. The exponential is dali's own: the same bits on every machine, and on a GPU.
void score(const Router& router, const float* logits, float* scores) {
    if (router.score == Score::sigmoid) {
        for (int i = 0; i < router.experts; i++) scores[i] = -logits[i];
        exp(scores, router.experts);
        for (int i = 0; i < router.experts; i++) scores[i] = 1.0f / (1.0f + scores[i]);
        return;
    }
    float most = logits[0], total = 0;
    for (int i = 1; i < router.experts; i++) most = std::max(most, logits[i]);
    for (int i = 0; i < router.experts; i++) scores[i] = logits[i] - most;
    exp(scores, router.experts);
    for (int i = 0; i < router.experts; i++) total += scores[i];
    for (int i = 0; i < router.experts; i++) scores[i] /= total;
}

// Of a plain softmax the logits tell the order, and often the chosen ones alone their weights.
bool plain_softmax(const Router& router) {
    return router.score == Score::softmax && !router.correction.at && router.groups == router.kept_groups &&
           router.epsilon == 0 && router.floor == 0;
}

// `powers` [experts], padded: to work in.
void weigh_by_logits(const Router& router, const float* logits, const int* order, float* powers, float* weights) {
    const int among = router.normalise ? router.top_k : router.experts;
    const float most = logits[order[0]];
    for (int i = 0; i < among; i++) powers[i] = logits[router.normalise ? order[i] : i] - most;
    exp(powers, among);
    float total = 0;
    for (int i = 0; i < among; i++) total += powers[i];
    for (int i = 0; i < router.top_k; i++) weights[i] = powers[router.normalise ? i : order[i]] / total;
}

void weigh_by_scores(const Router& router, const float* scores, const int* order, float* weights) {
    float total = 0;
    for (int i = 0; i < router.top_k; i++) total += weights[i] = scores[order[i]];
    if (!router.normalise) return;
    total = std::max(total, router.floor) + router.epsilon;
    for (int i = 0; i < router.top_k; i++) weights[i] /= total;
}

// Where a token's answer goes, and what is worked with meanwhile.
class Answer {
  public:
    Answer(const Router& router, void* logits, void* weights, int64_t* ids)
        : router_(router), logits_(logits), weights_(weights), ids_(ids), scores_(workspace_.take<float>(padded(router.experts))),
          ranks_(workspace_.take<float>(router.experts)), weighed_(workspace_.take<float>(router.top_k)),
          rounded_(workspace_.take<char>(size_t(router.experts) * sizeof(float))), order_(workspace_.take<int>(router.experts)) {}

    // `found` [experts]: the products of the token and the weight.
    void write_token(int token, float* found) {
        const int experts = router_.experts, top_k = router_.top_k;
        add(router_.bias, experts, found);
        write(found, experts, router_.rounded, rounded_, 0);
        read_row(rounded_, router_.rounded, 0, experts, found);
        write(found, experts, router_.logits_dtype, logits_, size_t(token) * experts);
        const bool plain = plain_softmax(router_);
        if (!plain) score(router_, found, scores_);
        if (!plain && router_.scored != Dtype::f32) {
            write(scores_, experts, router_.scored, rounded_, 0);
            read_row(rounded_, router_.scored, 0, experts, scores_);
        }
        std::copy_n(plain || router_.by_logit ? found : scores_, experts, ranks_);
        add(router_.correction, experts, ranks_);
        keep_groups(router_, ranks_);
        highest(ranks_, experts, top_k, order_);
        if (plain) weigh_by_logits(router_, found, order_, scores_, weighed_);
        else weigh_by_scores(router_, scores_, order_, weighed_);
        for (int i = 0; i < top_k; i++) {
            weighed_[i] *= router_.scale;
            if (router_.expert_scales.at) weighed_[i] *= value_of(router_.expert_scales, order_[i]);
            ids_[size_t(token) * top_k + i] = order_[i];
        }
        write(weighed_, top_k, router_.weights_dtype, weights_, size_t(token) * top_k);
    }

  private:
    const Router& router_;
    void *logits_, *weights_;
    int64_t* ids_;
    Workspace workspace_;
    float *scores_, *ranks_, *weighed_;
    void* rounded_;
    int* order_;
};

}  // namespace

void route(const Router& router, const void* x, Dtype dtype, int tokens, void* logits, void* weights, int64_t* ids) {
    const size_t hidden = router.hidden, experts = router.experts;
    if (tokens <= FEW) {  // the threads share each token's experts
        Workspace workspace;
        float *values = workspace.take<float>(hidden), *found = workspace.take<float>(experts);
        Answer answer(router, logits, weights, ids);
        for (int token = 0; token < tokens; token++) {
            read_row(x, dtype, token, router.hidden, values);
            all_products(router, values, found);
            answer.write_token(token, found);
        }
        return;
    }
    Phase phase((tokens + FEW - 1) / FEW);
    Pool::instance().run([&] {
        Workspace workspace;
        float *values = workspace.take<float>(FEW * hidden), *found = workspace.take<float>(FEW * experts);
        Answer answer(router, logits, weights, ids);
        phase.run([&](int item, int) {  // a block of tokens meets each row of the weight together
            const int first = item * FEW, count = std::min(FEW, tokens - first);
            for (int i = 0; i < count; i++) read_row(x, dtype, first + i, router.hidden, values + i * hidden);
            for (int row = 0; row < router.experts; row++)
                for (int i = 0; i < count; i++) products(router.weight, router.hidden, values + i * hidden, row, 1, found + i * experts + row);
            for (int i = 0; i < count; i++) answer.write_token(first + i, found + i * experts);
        });
    });
}

void gate_logits(const Values& weight, int hidden, const void* x, Dtype dtype, int tokens, void* out) {
    in_pieces(tokens, rows_of_piece(hidden), [&](int64_t first, int some) {
        Workspace workspace;
        float* values = workspace.take<float>(hidden);
        for (int64_t token = first; token < first + some; token++) {
            read_row(x, dtype, size_t(token), hidden, values);
            float logit;
            products(weight, hidden, values, 0, 1, &logit);
            write(&logit, 1, dtype, out, size_t(token));
        }
    });
}

}  // namespace dali
