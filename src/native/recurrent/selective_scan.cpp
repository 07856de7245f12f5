#include "recurrent/selective_scan.h"

#include <algorithm>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pool.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int TOKENS = 32;          // that a part of the state stays in registers for
constexpr int64_t ALONE = 1 << 15;  // multiplications that take less than handing them out

float at(const Values& values, int index) {
    float value;
    read_row(values.at, values.dtype, index, 1, &value);
    return value;
}

void round_to(Dtype dtype, float* values, int count) {
    if (dtype == Dtype::f32) return;
    uint16_t rounded[TOKENS];
    write(values, count, dtype, rounded, 0);
    read_row(rounded, dtype, 0, count, values);
}

// Rows as floats: where they are, or in a workspace, filled row by row.
class FloatRows {
  public:
    FloatRows(const StridedRows& rows, int width, int64_t count, Workspace& workspace)
        : rows_(rows), width_(width), copy_(rows.dtype == Dtype::f32 ? nullptr : workspace.take<float>(size_t(count) * width)) {}

    void fill(int64_t row) {
        if (copy_) read_row(rows_.row(row), rows_.dtype, 0, width_, copy_ + row * width_);
    }
    const float* row(int64_t number) const { return copy_ ? copy_ + number * width_ : static_cast<const float*>(rows_.row(number)); }
    int64_t stride() const { return copy_ ? width_ : rows_.stride; }

  private:
    const StridedRows& rows_;
    const int width_;
    float* copy_;
};

// Behind the last row.
int64_t end_of(const std::vector<Stretch>& stretches) {
    int64_t rows = 0;
    for (const Stretch& stretch : stretches) rows = std::max(rows, stretch.row + stretch.tokens);
    return rows;
}

class Step {
  public:
    Step(const SelectiveScan& of, const ScanCall& call, const std::vector<Stretch>& stretches, float* found)
        : of_(of), steps_(call.steps), stretches_(stretches), found_(found), variant_(current_variant()), rows_(end_of(stretches)),
          x_(call.x, of.heads * of.width, rows_, workspace_), in_(call.in, of.groups * of.state, rows_, workspace_),
          out_(call.out, of.groups * of.state, rows_, workspace_) {}

    void run() {
        const int items = int(stretches_.size()) * of_.heads;
        if (rows_ * of_.heads * of_.width * of_.state < ALONE) {
            for (int64_t row = 0; row < rows_; row++) fill(row);
            for (int item = 0; item < items; item++) scan(item);
            return;
        }
        Phase fills{int(rows_)}, scans(items);
        Pool::instance().run([&] {
            fills.run([&](int row, int) { fill(row); });
            scans.run([&](int item, int) { scan(item); });
        });
    }

  private:
    void fill(int64_t row) {
        x_.fill(row);
        in_.fill(row);
        out_.fill(row);
    }

    // Of at most TOKENS tokens: [padded tokens].
    void time_steps(int64_t row, int tokens, int head, float* steps) const {
        const float bias = at(of_.step_bias, head);
        for (int token = 0; token < tokens; token++) {
            read_row(steps_.row(row + token, head), steps_.dtype, 0, 1, steps + token);
            steps[token] += bias;
        }
        std::fill(steps + tokens, steps + padded(tokens), 0.0f);
        round_to(steps_.dtype, steps, tokens);
        variant_.softplus(steps, padded(tokens));
        for (int token = 0; token < tokens; token++) {  // NaN comes through
            if (steps[token] < of_.least_step) steps[token] = of_.least_step;
            if (steps[token] > of_.most_step) steps[token] = of_.most_step;
        }
        round_to(steps_.dtype, steps, tokens);
    }

    void scan(int item) const {
        const Stretch& stretch = stretches_[item / of_.heads];
        const int head = item % of_.heads, width = of_.width, wide = padded(width), inner = of_.heads * width;
        const int64_t group = int64_t(head / (of_.heads / of_.groups)) * of_.state, place = int64_t(head) * of_.state * wide;
        Workspace workspace;
        float *steps = workspace.take<float>(TOKENS), *decay = workspace.take<float>(TOKENS);
        float *input = workspace.take<float>(size_t(TOKENS) * wide), *found = workspace.take<float>(size_t(TOKENS) * wide);
        std::fill_n(input, size_t(TOKENS) * wide, 0.0f);
        const float rate = at(of_.rate, head), skip = of_.skip.at ? at(of_.skip, head) : 0.0f;
        const float* before = static_cast<const float*>(stretch.before) + place;
        float* after = static_cast<float*>(stretch.after) + place;
        auto copy = stretch.copies.begin();
        int tokens;
        for (int64_t done = 0; done < stretch.tokens; done += tokens) {
            const int64_t end = copy != stretch.copies.end() ? copy->tokens : stretch.tokens;
            tokens = int(std::min<int64_t>(TOKENS, end - done));
            const int64_t row = stretch.row + done;
            time_steps(row, tokens, head, steps);
            for (int token = 0; token < padded(tokens); token++) decay[token] = rate * steps[token];
            variant_.exponentials(decay, padded(tokens));
            std::fill_n(found, size_t(tokens) * wide, 0.0f);
            for (int token = 0; token < tokens; token++)
                for (int i = 0; i < width; i++) input[token * wide + i] = x_.row(row + token)[head * width + i] * steps[token];
            variant_.scan({tokens, wide, of_.state, decay, input, in_.row(row) + group, in_.stride(), out_.row(row) + group, out_.stride(),
                           before, after, found});
            for (int token = 0; token < tokens; token++) {
                const float* x = x_.row(row + token) + head * width;
                float* answer = found_ + (row + token) * inner + head * width;
                for (int i = 0; i < width; i++) answer[i] = found[token * wide + i] + x[i] * skip;
            }
            before = after;
            if (copy != stretch.copies.end() && done + tokens == copy->tokens)
                std::copy_n(after, int64_t(of_.state) * wide, static_cast<float*>((copy++)->to) + place);
        }
    }

    const SelectiveScan& of_;
    const StridedRows& steps_;
    const std::vector<Stretch>& stretches_;
    float* found_;
    const Variant& variant_;
    const int64_t rows_;
    Workspace workspace_;
    FloatRows x_, in_, out_;
};

}  // namespace

void scan(const SelectiveScan& of, const ScanCall& call, const std::vector<Stretch>& stretches, float* found) {
    Step(of, call, stretches, found).run();
}

}  // namespace dali
