#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "layout/kept_rows.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out
constexpr int QUERIES = 32;              // of a block's head: tokens x the heads that share it
constexpr size_t MOST_FLOATS = 1 << 20;  // found by the items of a step
constexpr int64_t PART = 256;      // keys of an item; the same on any number of threads, so that the sums are

const char* at(const Rows& rows, int64_t row, int64_t head, Dtype dtype) {
    return static_cast<const char*>(rows.from) + (row * rows.row_stride + head * rows.head_stride) * int64_t(item_bytes(dtype));
}

// e^x as the kernels of parts have it, not the system's: the same bits on every machine, and on a GPU.
float power(float x) {
    Floats16 values = Floats16{} + x;
    exp(values);
    return values[0];
}

// Neighbouring tokens of one sequence that see their keys from the same one on: they meet each key together.
struct Block {
    int first, count;  // tokens
};

// What a block's queries of one head found in one part of its keys.
struct Item {
    int block, head;
    int64_t part;
    float *most, *total, *out;  // [queries], [queries], [queries][padded value width]; queries: tokens x group
};

class Step {
  public:
    // `tokens`: of `count` blocks from `blocks` on; their keys and values are in place.
    Step(const AttentionCall& call, const std::vector<DecodingToken>& tokens, const Block* blocks, size_t count)
        : call_(call), tokens_(tokens), blocks_(blocks), variant_(current_variant()), group_(call.heads / call.kv_heads),
          value_row_(padded(call.value_width)) {
        size_t floats = 0;
        for (size_t block = 0; block < count; block++)
            for (int head = 0; head < call.kv_heads; head++) {
                firsts_.push_back(int(items_.size()));
                for (int64_t part = 0; part < parts_of(last(blocks[block])); part++) {
                    items_.push_back({int(block), head, part, nullptr, nullptr, nullptr});
                    floats += item_floats(blocks[block]);
                }
            }
        firsts_.push_back(int(items_.size()));
        float* found = workspace_.take<float>(floats);
        std::fill_n(found, floats, 0.0f);
        for (Item& item : items_) {
            const size_t queries = size_t(blocks[item.block].count) * group_;
            item.out = found;
            item.most = item.out + queries * value_row_;
            item.total = item.most + queries;
            found += item_floats(blocks[item.block]);
        }
    }

    // Floats that an item of a block's finds.
    static size_t floats_of(const AttentionCall& call, const Block& block) {
        return size_t(block.count) * (call.heads / call.kv_heads) * (padded(call.value_width) + 2);
    }

    void run() {
        int64_t work = 0;
        for (const Item& item : items_)
            work += (std::min(PART, last(blocks_[item.block]).place + 1 - last(blocks_[item.block]).first)) * blocks_[item.block].count *
                    group_ * (call_.key_width + call_.value_width);
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
    Dtype ends() const { return call_.latent ? Dtype::f32 : call_.dtype; }  // of queries and results

    size_t item_floats(const Block& block) const { return floats_of(call_, block); }
    const DecodingToken& last(const Block& block) const { return tokens_[block.first + block.count - 1]; }
    static int64_t parts_of(const DecodingToken& token) { return (token.place - token.first) / PART + 1; }

    void compute(const Item& item) const {
        const Block& block = blocks_[item.block];
        const DecodingToken& token = last(block);
        const int64_t begin = token.first + item.part * PART, end = std::min(begin + PART, token.place + 1);
        const int64_t at_key = call_.latent ? begin : item.head * token.capacity + begin;
        const int value_kept = call_.latent ? call_.key_width : call_.value_width;  // of which the first are the value
        const char* keys = token.keys + at_key * kept_bytes(call_.key_width, call_.dtype, token.in_q8);
        const char* values = call_.latent ? keys : token.values + at_key * kept_bytes(value_kept, call_.dtype, token.in_q8);
        const Dtype asked = ends();
        const int queries = block.count * group_, query_row = padded(call_.key_width);
        Workspace workspace;
        float* query = workspace.take<float>(size_t(queries) * query_row);
        float* scores = workspace.take<float>(size_t(queries) * padded(end - begin));
        int64_t* seen = workspace.take<int64_t>(queries);
        float* tile = workspace.take<float>(KEPT_TILE * std::max(call_.key_width, call_.value_width) + GROUP);
        std::fill_n(query, size_t(queries) * query_row, 0.0f);
        for (int q = 0; q < queries; q++) {
            const DecodingToken& asking = tokens_[block.first + q / group_];
            read_row(at(call_.query, asking.row, item.head * group_ + q % group_, asked), asked, 0, call_.key_width,
                     query + size_t(q) * query_row);
            seen[q] = std::clamp(asking.place + 1 - begin, int64_t(0), end - begin);
        }
        const auto part = [&](auto* of) {
            using T = std::remove_pointer_t<decltype(of)>;
            const auto row = [&](int width) { return kept_bytes(width, call_.dtype, token.in_q8) / int64_t(sizeof(T)); };
            return AttentionPart<T>{reinterpret_cast<const T*>(keys), reinterpret_cast<const T*>(values), end - begin, queries,
                                    call_.key_width, call_.value_width, row(call_.key_width), row(value_kept), call_.scale, query, scores,
                                    item.out, block.count > 1 ? seen : nullptr, tile};
        };
        if (token.in_q8) {
            auto bytes = part(static_cast<uint8_t*>(nullptr));
            bytes.value_scales = value_kept;
            variant_.attend_q8(bytes, item.most, item.total);
        } else if (call_.dtype == Dtype::f32) variant_.attend_f32(part(static_cast<float*>(nullptr)), item.most, item.total);
        else variant_.attend_bf16(part(static_cast<uint16_t*>(nullptr)), item.most, item.total);
    }

    // The items [begin, ...) are all of one block and head.
    void merge(int begin, int) const {
        const Item& first = items_[begin];
        const Block& block = blocks_[first.block];
        for (int q = 0; q < block.count * group_; q++) {
            const DecodingToken& token = tokens_[block.first + q / group_];
            const int head = first.head * group_ + q % group_, end = begin + int(parts_of(token));
            const float* sink = call_.sinks ? call_.sinks + head : nullptr;
            float most = sink ? *sink : first.most[q];
            for (int i = begin; i < end; i++) most = std::max(most, items_[i].most[q]);
            float total = sink ? power(*sink - most) : 0.0f;
            for (int i = begin; i < end; i++) total += items_[i].total[q] * power(items_[i].most[q] - most);
            float* out = first.out + q * value_row_;
            for (int i = begin; i < end; i++) {
                const float share = power(items_[i].most[q] - most) / total;
                const float* part = items_[i].out + q * value_row_;
                for (int c = 0; c < call_.value_width; c++) out[c] = i == begin ? part[c] * share : out[c] + part[c] * share;
            }
            write(out, call_.value_width, ends(), call_.out, (size_t(token.row) * call_.heads + head) * call_.value_width);
        }
    }

    const AttentionCall& call_;
    const std::vector<DecodingToken>& tokens_;
    const Block* blocks_;
    const Variant& variant_;
    Workspace workspace_;
    const int group_, value_row_;
    std::vector<Item> items_;  // parts of a head follow one another
    std::vector<int> firsts_;  // items of part 0, and where all end
};

// Keeps what a token's head has, `from` [width], where its rows of `to` have the place.
void keep(const char* from, Dtype dtype, int width, bool in_q8, char* to, int64_t place) {
    char* row = to + place * kept_bytes(width, dtype, in_q8);
    if (!in_q8) {
        std::memcpy(row, from, width * item_bytes(dtype));
        return;
    }
    Workspace workspace;
    float* values = workspace.take<float>(width + GROUP);
    read_row(from, dtype, 0, width, values);
    std::fill_n(values + width, GROUP, 0.0f);
    current_variant().keep_q8(values, width, reinterpret_cast<uint8_t*>(row));
}

}  // namespace

void attend(const AttentionCall& call, const std::vector<DecodingToken>& tokens) {
    if (tokens.empty()) return;
    std::vector<Block> blocks;
    const int most = std::max(1, QUERIES / (call.heads / call.kv_heads));
    for (size_t i = 0; i < tokens.size(); i++) {
        const DecodingToken& token = tokens[i];
        for (int head = 0; head < (call.latent ? 1 : call.kv_heads); head++) {
            const int64_t place = head * token.capacity + token.place;
            keep(at(call.keys, token.row, head, call.dtype), call.dtype, call.key_width, token.in_q8, token.keys, place);
            if (call.latent) continue;
            keep(at(call.values, token.row, head, call.dtype), call.dtype, call.value_width, token.in_q8, token.values, place);
        }
        const DecodingToken* before = i ? &tokens[i - 1] : nullptr;
        const bool joins = before && before->keys == token.keys && before->place + 1 == token.place && before->first == token.first;
        if (joins && blocks.back().count < most) blocks.back().count++;
        else blocks.push_back({int(i), 1});
    }
    for (size_t begin = 0, end = 0; begin < blocks.size(); begin = end) {  // as much at a time as stays in the caches
        size_t floats = 0;
        while (end < blocks.size() && (end == begin || floats < MOST_FLOATS)) {
            const DecodingToken& last = tokens[blocks[end].first + blocks[end].count - 1];
            floats += Step::floats_of(call, blocks[end]) * call.kv_heads * ((last.place - last.first) / PART + 1);
            end++;
        }
        Step(call, tokens, blocks.data() + begin, end - begin).run();
    }
}

std::vector<DecodingToken> following(const DecodingToken& first, int count, int64_t window) {
    std::vector<DecodingToken> tokens(count, first);
    for (int i = 0; i < count; i++) {
        tokens[i].row += i;
        tokens[i].place += i;
        if (window) tokens[i].first = std::max(first.first, tokens[i].place + 1 - window);
    }
    return tokens;
}

void attend(const AttentionCall& call, const DecodingToken& first, int count, int64_t window) {
    attend(call, following(first, count, window));
}

}  // namespace dali
