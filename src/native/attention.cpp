#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "floats.h"
#include "format.h"
#include "pool.h"

namespace dali {

namespace {

constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out
constexpr int64_t PART = 1024;      // keys of an item; the same on any number of threads, so that the sums are
constexpr int64_t TILE = 32;        // keys that stay in the caches while all queries of a group meet them

constexpr int padded(int64_t count) { return int(round_up(size_t(count), LANES)); }

// A head of keys and values and the queries that share it, as far as one part of its keys goes.
template <class T>
struct Part {
    const T *keys, *values;
    int64_t count;
    int group, key_width, value_width;
    float scale;
    const float* query;  // [group][padded key width]
    float* scores;       // [group][count rounded up to LANES]
    float* out;          // [group][padded value width]

    int row() const { return padded(count); }
};

// Rows that are read a tile later; the processor's own prefetchers do not follow rows read side by side.
template <class T>
DALI_INLINE void prefetch(const T* rows, int count) {
    for (int i = 0; i < count; i += LINE / int(sizeof(T))) __builtin_prefetch(rows + i, 0, 2);
}

// The first `count` columns, fewer than LANES; `whole`: LANES of them.
template <bool whole, class T>
DALI_INLINE void load_columns(const T* row, int count, Floats16& to) {
    if constexpr (whole) load_row(row, to);
    else load_row(row, count, to);
}

template <int queries, bool whole, class T>
DALI_INLINE void multiply(const T* const* row, const float* query, int query_row, int c, int width, Floats16* products) {
    constexpr int keys = LANES / queries;
    Floats16 key[keys];
#pragma GCC unroll 16
    for (int k = 0; k < keys; k++) load_columns<whole>(row[k] + c, width - c, key[k]);
#pragma GCC unroll 16
    for (int q = 0; q < queries; q++) {
        Floats16 asked;
        load(query + q * query_row + c, asked);
#pragma GCC unroll 16
        for (int k = 0; k < keys; k++) products[q * keys + k] += key[k] * asked;
    }
}

// Scores of `queries` queries from `first` on with keys [begin, end): 16 products at a time.
template <int queries, class T>
DALI_INLINE void score(const Part<T>& part, int first, int64_t begin, int64_t end) {
    constexpr int keys = LANES / queries;
    const int width = part.key_width, query_row = padded(width);
    const float* query = part.query + first * query_row;
    const int score_row = part.row();
    for (int64_t j = begin; j < end; j += keys) {
        const T* row[keys];
        for (int k = 0; k < keys; k++) row[k] = part.keys + std::min(j + k, end - 1) * width;
        if (first == 0 && j + TILE < part.count)
            for (int k = 0; k < keys; k++) prefetch(row[k] + TILE * width, width);
        Floats16 products[LANES] = {};
        int c = 0;
        for (; c + LANES <= width; c += LANES) multiply<queries, true>(row, query, query_row, c, width, products);
        if (c < width) multiply<queries, false>(row, query, query_row, c, width, products);
        Floats16 scores;
        sums(products, scores);
        float each[LANES];
        store(scores * part.scale, each);
        float* to = part.scores + first * score_row + j;
        if (j + keys <= end) {
            for (int q = 0; q < queries; q++) std::copy_n(each + q * keys, keys, to + q * score_row);
        } else {
            for (int q = 0; q < queries; q++) std::copy_n(each + q * keys, end - j, to + q * score_row);
        }
    }
}

// Adds values [begin, end), weighted by the scores, to `vectors` vectors of the queries' outputs from column c on.
template <int queries, int vectors, bool whole, class T>
DALI_INLINE void add(const Part<T>& part, int first, int64_t begin, int64_t end, int c) {
    const int width = part.value_width, out_row = padded(width);
    const int row = part.row();
    const float* scores = part.scores + first * row;
    float* out = part.out + first * out_row + c;
    Floats16 sum[queries][vectors];
#pragma GCC unroll 8
    for (int q = 0; q < queries; q++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) load(out + q * out_row + v * LANES, sum[q][v]);
    for (int64_t j = begin; j < end; j++) {
        if (first == 0 && c == 0 && j + TILE < part.count) prefetch(part.values + (j + TILE) * width, width);
        Floats16 value[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) load_columns<whole>(part.values + j * width + c + v * LANES, width - c, value[v]);
#pragma GCC unroll 8
        for (int q = 0; q < queries; q++) {
            const float weight = scores[q * row + j];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[q][v] += value[v] * weight;
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < queries; q++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) store(sum[q][v], out + q * out_row + v * LANES);
}

template <int queries, class T>
DALI_INLINE void add(const Part<T>& part, int first, int64_t begin, int64_t end) {
    int c = 0;
    constexpr int most = queries == 4 ? 4 : 8;  // vectors: as many sums as there are registers for
    for (; c + most * LANES <= part.value_width; c += most * LANES) add<queries, most, true>(part, first, begin, end, c);
    for (; c + 4 * LANES <= part.value_width; c += 4 * LANES) add<queries, 4, true>(part, first, begin, end, c);
    for (; c + LANES <= part.value_width; c += LANES) add<queries, 1, true>(part, first, begin, end, c);
    if (c < part.value_width) add<queries, 1, false>(part, first, begin, end, c);
}

// Scores to weights e^(score - most); returns their sum.
DALI_INLINE float weigh(float* scores, int64_t count, float& most) {
    const int row = padded(count);
    std::fill(scores + count, scores + row, -std::numeric_limits<float>::infinity());
    Floats16 largest = Floats16{} - std::numeric_limits<float>::infinity(), total{}, s;
    for (int64_t j = 0; j < row; j += LANES) {
        load(scores + j, s);
        largest = s > largest ? s : largest;
    }
    float each[LANES];
    store(largest, each);
    most = *std::max_element(each, each + LANES);
    const float from = most == -std::numeric_limits<float>::infinity() ? 0.0f : most;  // then none weighs anything
    for (int64_t j = 0; j < row; j += LANES) {
        load(scores + j, s);
        s -= from;
        exp(s);
        store(s, scores + j);
        total += s;
    }
    return sum(total);
}

// Fills part.out with the sums of values weighted by e^(score - most), most and total [group].
template <class T>
DALI_INLINE void attend_part(const Part<T>& part, float* most, float* total) {
    const int first_rows = int(std::min(TILE, part.count));
    prefetch(part.keys, first_rows * part.key_width);
    prefetch(part.values, first_rows * part.value_width);
    for (int64_t begin = 0; begin < part.count; begin += TILE) {
        const int64_t end = std::min(begin + TILE, part.count);
        int first = 0;
        for (; first + 4 <= part.group; first += 4) score<4>(part, first, begin, end);
        for (; first + 2 <= part.group; first += 2) score<2>(part, first, begin, end);
        for (; first < part.group; first++) score<1>(part, first, begin, end);
    }
    for (int g = 0; g < part.group; g++) total[g] = weigh(part.scores + g * part.row(), part.count, most[g]);
    for (int64_t begin = 0; begin < part.count; begin += TILE) {
        const int64_t end = std::min(begin + TILE, part.count);
        int first = 0;
        for (; first + 4 <= part.group; first += 4) add<4>(part, first, begin, end);
        for (; first + 2 <= part.group; first += 2) add<2>(part, first, begin, end);
        for (; first < part.group; first++) add<1>(part, first, begin, end);
    }
}

DALI_CLONES void attend_f32(const Part<float>& part, float* most, float* total) { attend_part(part, most, total); }
DALI_CLONES void attend_bf16(const Part<uint16_t>& part, float* most, float* total) { attend_part(part, most, total); }

const char* at(const Rows& rows, int64_t row, int64_t head, Dtype dtype) {
    return static_cast<const char*>(rows.from) + (row * rows.row_stride + head * rows.head_stride) * int64_t(item_bytes(dtype));
}

// What a token's queries of one head found in one part of its keys.
struct Item {
    int token, head;
    int64_t part;
    float *most, *total, *out;  // [group], [group], [group][padded value width]
};

class Step {
  public:
    Step(const AttentionCall& call, const std::vector<DecodingToken>& tokens)
        : call_(call), tokens_(tokens), group_(call.heads / call.kv_heads), value_row_(padded(call.value_width)) {
        static thread_local std::vector<float> found;  // of all items
        for (size_t token = 0; token < tokens.size(); token++)
            for (int head = 0; head < call.kv_heads; head++)
                for (int64_t part = 0; part * PART <= tokens[token].place - tokens[token].first; part++)
                    items_.push_back({int(token), head, part, nullptr, nullptr, nullptr});
        const size_t each = size_t(group_) * (value_row_ + 2);
        found.assign(items_.size() * each, 0.0f);
        for (size_t i = 0; i < items_.size(); i++) {
            items_[i].out = found.data() + i * each;
            items_[i].most = items_[i].out + group_ * value_row_;
            items_[i].total = items_[i].most + group_;
            if (items_[i].part == 0) firsts_.push_back(int(i));
        }
        firsts_.push_back(int(items_.size()));
    }

    void run() {
        int64_t work = 0;
        for (const DecodingToken& token : tokens_)
            work += (token.place + 1 - token.first) * call_.heads * (call_.key_width + call_.value_width);
        if (work < ALONE) {
            for (const Item& item : items_) compute(item);
            for (int i = 0; i < heads(); i++) merge(firsts_[i], firsts_[i + 1]);
            return;
        }
        const bool parted = int(items_.size()) > heads();
        Phase parts(int(items_.size())), merges(parted ? heads() : 0);
        Pool::instance().run([&] {
            parts.run([&](int i, int) {
                compute(items_[i]);
                if (!parted) merge(i, i + 1);
            });
            merges.run([&](int i, int) { merge(firsts_[i], firsts_[i + 1]); });
        });
    }

  private:
    int heads() const { return int(firsts_.size()) - 1; }

    void compute(const Item& item) const {
        const DecodingToken& token = tokens_[item.token];
        const size_t bytes = item_bytes(call_.dtype);
        char* keys = token.keys + item.head * token.capacity * call_.key_width * bytes;
        char* values = token.values + item.head * token.capacity * call_.value_width * bytes;
        const int64_t begin = token.first + item.part * PART, end = std::min(begin + PART, token.place + 1);
        if (end == token.place + 1) {  // the new token's own
            std::memcpy(keys + token.place * call_.key_width * bytes, at(call_.keys, token.row, item.head, call_.dtype),
                        call_.key_width * bytes);
            std::memcpy(values + token.place * call_.value_width * bytes, at(call_.values, token.row, item.head, call_.dtype),
                        call_.value_width * bytes);
        }
        static thread_local std::vector<float> query, scores;
        const int query_row = padded(call_.key_width);
        query.assign(size_t(group_) * query_row, 0.0f);
        scores.resize(size_t(group_) * padded(end - begin));
        for (int g = 0; g < group_; g++)
            read_row(at(call_.query, token.row, item.head * group_ + g, call_.dtype), call_.dtype, 0, call_.key_width,
                     query.data() + size_t(g) * query_row);
        keys += begin * call_.key_width * bytes;
        values += begin * call_.value_width * bytes;
        const auto part = [&](auto* of) {
            using T = std::remove_pointer_t<decltype(of)>;
            return Part<T>{reinterpret_cast<const T*>(keys), reinterpret_cast<const T*>(values), end - begin, group_, call_.key_width,
                           call_.value_width, call_.scale, query.data(), scores.data(), item.out};
        };
        if (call_.dtype == Dtype::f32) attend_f32(part(static_cast<float*>(nullptr)), item.most, item.total);
        else attend_bf16(part(static_cast<uint16_t*>(nullptr)), item.most, item.total);
    }

    // The items [begin, end) are all of one token and head.
    void merge(int begin, int end) const {
        const Item& first = items_[begin];
        for (int g = 0; g < group_; g++) {
            const float* sink = call_.sinks ? call_.sinks + first.head * group_ + g : nullptr;
            float most = sink ? *sink : first.most[g];
            for (int i = begin; i < end; i++) most = std::max(most, items_[i].most[g]);
            float total = sink ? std::exp(*sink - most) : 0.0f;
            for (int i = begin; i < end; i++) total += items_[i].total[g] * std::exp(items_[i].most[g] - most);
            float* out = first.out + g * value_row_;
            for (int i = begin; i < end; i++) {
                const float share = std::exp(items_[i].most[g] - most) / total;
                const float* part = items_[i].out + g * value_row_;
                for (int c = 0; c < call_.value_width; c++) out[c] = i == begin ? part[c] * share : out[c] + part[c] * share;
            }
            const size_t to = (size_t(tokens_[first.token].row) * call_.heads + size_t(first.head) * group_ + g) * call_.value_width;
            write(out, call_.value_width, call_.dtype, call_.out, to);
        }
    }

    const AttentionCall& call_;
    const std::vector<DecodingToken>& tokens_;
    const int group_, value_row_;
    std::vector<Item> items_;  // parts of a head follow one another
    std::vector<int> firsts_;  // items of part 0, and where all end
};

}  // namespace

void attend(const AttentionCall& call, const std::vector<DecodingToken>& tokens) { Step(call, tokens).run(); }

}  // namespace dali
