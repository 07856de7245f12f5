#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out
constexpr int64_t PART = 1024;      // keys of an item; the same on any number of threads, so that the sums are

const char* at(const Rows& rows, int64_t row, int64_t head, Dtype dtype) {
    return static_cast<const char*>(rows.from) + (row * rows.row_stride + head * rows.head_stride) * int64_t(item_bytes(dtype));
}

// e^x as the kernels of parts have it, not the system's: the same bits on every machine, and on a GPU.
float power(float x) {
    Floats16 values = Floats16{} + x;
    exp(values);
    return values[0];
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
        : call_(call), tokens_(tokens), variant_(current_variant()), group_(call.heads / call.kv_heads), value_row_(padded(call.value_width)) {
        for (size_t token = 0; token < tokens.size(); token++)
            for (int head = 0; head < call.kv_heads; head++)
                for (int64_t part = 0; part * PART <= tokens[token].place - tokens[token].first; part++)
                    items_.push_back({int(token), head, part, nullptr, nullptr, nullptr});
        const size_t each = size_t(group_) * (value_row_ + 2);
        float* found = workspace_.take<float>(items_.size() * each);
        std::fill_n(found, items_.size() * each, 0.0f);
        for (size_t i = 0; i < items_.size(); i++) {
            items_[i].out = found + i * each;
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
        const int query_row = padded(call_.key_width);
        Workspace workspace;
        float* query = workspace.take<float>(size_t(group_) * query_row);
        float* scores = workspace.take<float>(size_t(group_) * padded(end - begin));
        std::fill_n(query, size_t(group_) * query_row, 0.0f);
        for (int g = 0; g < group_; g++)
            read_row(at(call_.query, token.row, item.head * group_ + g, call_.dtype), call_.dtype, 0, call_.key_width,
                     query + size_t(g) * query_row);
        keys += begin * call_.key_width * bytes;
        values += begin * call_.value_width * bytes;
        const auto part = [&](auto* of) {
            using T = std::remove_pointer_t<decltype(of)>;
            return AttentionPart<T>{reinterpret_cast<const T*>(keys), reinterpret_cast<const T*>(values), end - begin, group_, call_.key_width,
                           call_.value_width, call_.scale, query, scores, item.out};
        };
        if (call_.dtype == Dtype::f32) variant_.attend_f32(part(static_cast<float*>(nullptr)), item.most, item.total);
        else variant_.attend_bf16(part(static_cast<uint16_t*>(nullptr)), item.most, item.total);
    }

    // The items [begin, end) are all of one token and head.
    void merge(int begin, int end) const {
        const Item& first = items_[begin];
        for (int g = 0; g < group_; g++) {
            const float* sink = call_.sinks ? call_.sinks + first.head * group_ + g : nullptr;
            float most = sink ? *sink : first.most[g];
            for (int i = begin; i < end; i++) most = std::max(most, items_[i].most[g]);
            float total = sink ? power(*sink - most) : 0.0f;
            for (int i = begin; i < end; i++) total += items_[i].total[g] * power(items_[i].most[g] - most);
            float* out = first.out + g * value_row_;
            for (int i = begin; i < end; i++) {
                const float share = power(items_[i].most[g] - most) / total;
                const float* part = items_[i].out + g * value_row_;
                for (int c = 0; c < call_.value_width; c++) out[c] = i == begin ? part[c] * share : out[c] + part[c] * share;
            }
            const size_t to = (size_t(tokens_[first.token].row) * call_.heads + size_t(first.head) * group_ + g) * call_.value_width;
            write(out, call_.value_width, call_.dtype, call_.out, to);
        }
    }

    const AttentionCall& call_;
    const std::vector<DecodingToken>& tokens_;
    const Variant& variant_;
    Workspace workspace_;
    const int group_, value_row_;
    std::vector<Item> items_;  // parts of a head follow one another
    std::vector<int> firsts_;  // items of part 0, and where all end
};

}  // namespace

void attend(const AttentionCall& call, const std::vector<DecodingToken>& tokens) { Step(call, tokens).run(); }

}  // namespace dali
