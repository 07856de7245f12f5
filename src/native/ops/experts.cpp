#include "ops/experts.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "threads/pool.h"
#include "kernels/variants.h"
#include "ops/decoded_tiles.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int MOST_TILES = 8;  // of a matrix in one item: some 10 us of reading in order

// One active expert and its place in the panels.
struct Active {
    const uint8_t* record;
    int64_t first;  // of its pairs, and of its tokens in the panels
    int tokens;
};

// A rectangle of work: every block of an expert's tokens through a few tiles.
class Step {
  public:
    Step(const ExpertLayout& layout, const ExpertsCall& call) : layout_(layout), call_(call), variant_(current_variant()) {
        for (int i = 0; i < call.experts; i++) {
            const int64_t first = call.offsets[i], tokens = call.offsets[i + 1] - first;
            if (tokens) active_.push_back({call.records[i], first, int(tokens)});
        }
        // The longest first, so that none is left to one thread at the end.
        std::stable_sort(active_.begin(), active_.end(), [](const Active& a, const Active& b) { return a.tokens > b.tokens; });
        for (size_t i = 0; i < active_.size(); i++)
            for (int block = 0; block < cut(active_[i]).count; block++) blocks_.push_back({int(i), block});
    }

    void run() {
        if (active_.empty()) return;
        const int64_t tokens = call_.offsets[call_.experts];
        apart_ = layout_.gated && !(layout_.gate.columns == layout_.up.columns && shares_panels(layout_.gate.format, layout_.up.format));
        const size_t up_bytes = panel_bytes(layout_.up.format, layout_.up.columns, tokens);
        const size_t gate_bytes = apart_ ? panel_bytes(layout_.gate.format, layout_.gate.columns, tokens) : 0;
        const size_t down_bytes = panel_bytes(layout_.down.format, layout_.down.columns, tokens);
        Workspace workspace;
        up_panels_ = workspace.take<char>(up_bytes);
        gate_panels_ = apart_ ? workspace.take<char>(gate_bytes) : up_panels_;
        down_panels_ = workspace.take<char>(down_bytes);

        const bool reused = active_.front().tokens > variant_.most_tokens;  // by several blocks: small enough for L2
        const int runs = 4 * Pool::instance().threads(), count = int(active_.size());  // items that keep every thread busy
        inner_groups_ = layout_.down.columns / GROUP;                                  // the last ones may lie in the padding
        groups_ = reused ? 1 : std::clamp(count * inner_groups_ / runs, 1, MOST_TILES / 2);
        down_tiles_ = std::clamp(count * layout_.down.tiles() / runs, 1, MOST_TILES);
        inner_items_ = (inner_groups_ + groups_ - 1) / groups_;
        down_items_ = (layout_.down.tiles() + down_tiles_ - 1) / down_tiles_;
        Phase gathering(int(blocks_.size()));
        Phase inner(int(active_.size()) * inner_items_);
        Phase down(int(active_.size()) * down_items_);
        Pool::instance().run([&] {
            gathering.run([&](int item, int) { gather(blocks_[item].first, blocks_[item].second); });
            inner.run([&](int item, int following) { compute_inner(item, std::min(following, inner.count() - 1)); });
            down.run([&](int item, int following) { compute_down(item, std::min(following, down.count() - 1)); });
        });
    }

  private:
    Blocks cut(const Active& expert) const { return Blocks(expert.tokens, variant_.most_tokens); }

    Panel panel(void* base, const Matrix& matrix, const Active& expert, int block) const {
        const Blocks blocks = cut(expert);
        return panel_at(base, matrix.format, matrix.columns, expert.first + blocks.begin(block), blocks.size(block));
    }

    void gather(int index, int block) const {
        const Active& expert = active_[index];
        const Panel up = panel(up_panels_, layout_.up, expert, block);
        const int64_t* pairs = call_.pairs + expert.first + cut(expert).begin(block);
        const int columns = std::max(layout_.up.columns, layout_.gate.columns);
        Workspace workspace;
        float* row = workspace.take<float>(columns);
        std::fill(row + layout_.hidden, row + columns, 0.0f);
        for (int m = 0; m < up.tokens; m++) {
            read_row(call_.hidden, call_.dtype, size_t(pairs[m] / call_.top_k), layout_.hidden, row);
            variant_.fill_token(row, layout_.up, up, m);
            if (apart_) variant_.fill_token(row, layout_.gate, panel(gate_panels_, layout_.gate, expert, block), m);
        }
    }

    // A run of gate's tiles and of up's, the activation, and the groups of down's input they make.
    void compute_inner(int item, int following) const {
        const Active& expert = active_[item / inner_items_];
        const int first_group = item % inner_items_ * groups_, end_group = std::min(first_group + groups_, inner_groups_);
        const int first = 2 * first_group, tiles = std::max(std::min(2 * end_group, layout_.up.tiles()) - first, 0);  // fewer in the padding
        const uint8_t* gate_tiles = expert.record + layout_.gate_at + first * layout_.gate.tile_bytes;
        const uint8_t* up_tiles = expert.record + layout_.up_at + first * layout_.up.tile_bytes;
        const uint8_t* following_record = active_[following / inner_items_].record;
        const int following_first = std::min(following % inner_items_ * groups_ * 2, layout_.up.tiles() - 1);
        const uint8_t* after = layout_.gated ? following_record + layout_.gate_at + following_first * layout_.gate.tile_bytes
                                             : following_record + layout_.up_at + following_first * layout_.up.tile_bytes;
        Workspace workspace;
        const Tiles gate_own = layout_.gated ? tiles_for(variant_, layout_.gate, gate_tiles, tiles, expert.tokens, workspace) : Tiles{};
        const Tiles up_own = tiles_for(variant_, layout_.up, up_tiles, tiles, expert.tokens, workspace);
        float gates[MOST_TILES][MOST_TOKENS * TILE_ROWS], ups[MOST_TILES][MOST_TOKENS * TILE_ROWS];  // by tile: [tokens][16]
        for (int block = 0; block < cut(expert).count; block++) {
            const Panel up = panel(up_panels_, layout_.up, expert, block);
            if (layout_.gated) {
                const Panel gate = apart_ ? panel(gate_panels_, layout_.gate, expert, block) : up;
                multiply(gate_own, first, tiles, up_tiles, gate, bias(expert, layout_.gate_bias_at), gates);
            }
            multiply(up_own, first, tiles, after, up, bias(expert, layout_.up_bias_at), ups);
            const Panel down = panel(down_panels_, layout_.down, expert, block);
            for (int group = first_group; group < end_group; group++)
                for (int m = 0; m < up.tokens; m++) {
                    float inner[GROUP] = {};
                    const int begin = 2 * (group - first_group);
                    for (int tile = begin; tile < std::min(begin + 2, tiles); tile++)
                        variant_.activate(layout_.gate_kind, layout_.gated ? gates[tile] + m * TILE_ROWS : nullptr,
                                          ups[tile] + m * TILE_ROWS, inner + (tile - begin) * TILE_ROWS, TILE_ROWS);
                    const int rows = std::clamp(layout_.intermediate - group * GROUP, 0, GROUP);
                    std::fill(inner + rows, inner + GROUP, 0.0f);
                    variant_.fill(inner, layout_.down.format, down, group, m);
                }
        }
    }

    void compute_down(int item, int following) const {
        const Active& expert = active_[item / down_items_];
        const Matrix& matrix = layout_.down;
        const int begin = item % down_items_ * down_tiles_, end = std::min(begin + down_tiles_, matrix.tiles());
        const uint8_t* packed = expert.record + layout_.down_at;
        const uint8_t* after = active_[following / down_items_].record + layout_.down_at +
                               size_t(following % down_items_ * down_tiles_) * matrix.tile_bytes;
        const float* biases = bias(expert, layout_.down_bias_at);
        Workspace workspace;
        const Tiles own = tiles_for(variant_, matrix, packed + begin * matrix.tile_bytes, end - begin, expert.tokens, workspace);
        float sums[MOST_TILES][MOST_TOKENS * TILE_ROWS];
        for (int block = 0; block < cut(expert).count; block++) {
            const Panel down = panel(down_panels_, matrix, expert, block);
            const int64_t* pairs = call_.pairs + expert.first + cut(expert).begin(block);
            multiply(own, begin, end - begin, after, down, biases, sums);
            for (int m = 0; m < down.tokens; m++)
                for (int tile = begin; tile < end; tile++)
                    std::copy_n(sums[tile - begin] + m * TILE_ROWS, std::min(TILE_ROWS, matrix.rows - tile * TILE_ROWS),
                                call_.rows + size_t(pairs[m]) * layout_.hidden + tile * TILE_ROWS);
        }
    }

    const float* bias(const Active& expert, size_t at) const {
        return layout_.biased ? reinterpret_cast<const float*>(expert.record + at) : nullptr;
    }

    // `count` tiles, of which the first is row tile `first`; `after` is read next.
    void multiply(const Tiles& tiles, int first, int count, const uint8_t* after, const Panel& panel, const float* bias,
                  float (*sums)[MOST_TOKENS * TILE_ROWS]) const {
        const Matrix& matrix = tiles.matrix;
        const TileKernel kernel = variant_.tiles[int(matrix.format)][panel.tokens];
        for (int i = 0; i < count; i++) {
            kernel({tiles.at(i), i + 1 < count ? tiles.at(i + 1) : after, matrix.plane_bytes, matrix.columns}, panel, sums[i]);
            if (!bias) continue;
            const int row = (first + i) * TILE_ROWS, rows = std::min(TILE_ROWS, matrix.rows - row);
            for (int m = 0; m < panel.tokens; m++)
                for (int r = 0; r < rows; r++) sums[i][m * TILE_ROWS + r] += bias[row + r];
        }
    }

    const ExpertLayout& layout_;
    const ExpertsCall& call_;
    const Variant& variant_;
    std::vector<Active> active_;
    std::vector<std::pair<int, int>> blocks_;  // (active expert, block)
    bool apart_ = false;                       // gate reads panels of its own
    void *up_panels_ = nullptr, *gate_panels_ = nullptr, *down_panels_ = nullptr;
    int inner_groups_ = 0;               // of down's input
    int groups_ = 1, down_tiles_ = 1;    // of an item
    int inner_items_ = 0, down_items_ = 0;  // of an expert
};

}  // namespace

void compute_experts(const ExpertLayout& layout, const ExpertsCall& call) { Step(layout, call).run(); }

void reduce_choices(const float* rows, const float* weights, int tokens, int top_k, int hidden, Dtype dtype, void* out) {
    const Variant& variant = current_variant();
    const auto reduce = [&](int token) {
        Workspace workspace;
        float* sum = workspace.take<float>(hidden);
        variant.weighted_sum(rows + size_t(token) * top_k * hidden, weights + size_t(token) * top_k, top_k, hidden, sum);
        write(sum, hidden, dtype, out, size_t(token) * hidden);
    };
    if (tokens < 8) {  // waking threads costs more
        for (int token = 0; token < tokens; token++) reduce(token);
        return;
    }
    Phase reducing(tokens);
    Pool::instance().run([&] { reducing.run([&](int token, int) { reduce(token); }); });
}

}  // namespace dali
